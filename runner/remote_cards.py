"""A worker's card as this ingress can use it: llmrun's own with its files, or Dynamo's with its Hugging Face files.

Owns turning what stands in the discovery into a ModelCard and an EngineInfo. Knows nothing of the workers' state.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from model_cards.card import ModelCard
from model_cards.resolve import resolve
from runner.net.card_files import fetch_card, read_own_card
from runner.net.messages import DYNAMO_CAPABILITIES
from runner.net.records import RecordError
from runner.types import EngineInfo

_FILE_FIELDS = ("model_info", "tokenizer", "prompt_formatter", "chat_template_file", "gen_config")
_DEFAULT_BLOCK_SIZE = 16
_DEFAULT_MAX_RUNNING = 256


class RemoteCard(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker serves."""

    card: ModelCard
    info: EngineInfo
    is_own: bool
    """The worker is llmrun."""
    checksum: str
    """Workers of one model have the same."""
    migration_limit: int = 0
    block_size: int = _DEFAULT_BLOCK_SIZE
    takes_text: bool = False
    """Messages and text, not token ids."""

    def why_not_with(self, first: RemoteCard) -> str | None:
        """Why this worker cannot join those of `first`, or None."""
        if self.takes_text != first.takes_text:
            one, others = ("text", "token ids") if self.takes_text else ("token ids", "text")
            return f"it takes {one}, the others take {others}; give it a --model-name of its own"
        if self.checksum != first.checksum:
            return (
                f"its card of {self.card.name} is another one (checksum {self.checksum[:12]}, the others have "
                f"{first.checksum[:12]}): other weights, tokenizer or template; give it a --model-name of its own"
            )
        if self.info.context_length != first.info.context_length:
            return (
                f"its context is {self.info.context_length:,}, the others have {first.info.context_length:,}; start it "
                f"with --context-length {first.info.context_length}, or give it a --model-name of its own"
            )
        missing = sorted(set(first.info.capabilities) - set(self.info.capabilities))
        if missing:
            return f"it does not honour {', '.join(missing)}, which the others do; give it a --model-name of its own"
        return None


async def read_card(card_json: dict[str, Any] | None, given: ModelCard | None, folder: Path) -> RemoteCard:
    """What a worker's card says. `given` is the user's own MODEL, which then stands for the worker's files; `folder`
    keeps what is fetched. Raises RecordError and CardError."""
    own = read_own_card(card_json) if card_json is not None else None
    if own is not None:
        theirs = own.read()
        if given is not None and not own.takes_text and given.vocab_size != theirs.vocab_size:
            raise RecordError(
                f"{given.name}, which is named here, has {given.vocab_size:,} tokens, the worker's {theirs.name} has "
                f"{theirs.vocab_size:,}: it is another model. Leave MODEL out, and the worker's own files are used"
            )
        card = given or await fetch_card(own, folder)
        checksum = f"{own.info.name} {theirs.mdcsum}" if own.takes_text else theirs.mdcsum
        return RemoteCard(
            card=card,
            info=own.info,
            is_own=True,
            checksum=checksum,
            takes_text=own.takes_text,
            **_limits(card_json or {}, card),
        )
    if card_json is None:
        if given is None:
            raise RecordError("the worker publishes no card; name the MODEL on the command line")
        return _foreign(given, {})
    if card_json.get("model_input", "Tokens") == "Text" and "Embedding" not in _kinds(card_json):
        return _foreign(ModelCard(name=_name(card_json), source=_name(card_json)), card_json, takes_text=True)
    if given is not None:
        return _foreign(given, card_json)
    return _foreign(await asyncio.to_thread(_dynamo_card, card_json), card_json)


def _kinds(card_json: dict[str, Any]) -> list[str]:
    """Of "Chat | Completions". Raises RecordError where there is none that we serve."""
    said = card_json.get("model_type")
    kinds = [kind.strip() for kind in said.split("|")] if isinstance(said, str) else ["Chat"]
    if not {"Chat", "Completions", "Embedding"} & set(kinds):
        raise RecordError(f"the worker's model_type is {said!r:.60}; Chat, Completions and Embedding are served here")
    return kinds


def _name(card_json: dict[str, Any]) -> str:
    name = card_json.get("display_name")
    if not isinstance(name, str) or not name:
        raise RecordError("the worker's card has no display_name")
    return name


def _foreign(card: ModelCard, card_json: dict[str, Any], *, takes_text: bool = False) -> RemoteCard:
    kinds = _kinds(card_json)
    runtime = card_json.get("runtime_config") or {}
    info = EngineInfo(
        name="dynamo",
        context_length=_number(card_json.get("context_length")) or card.context_length,
        max_running=_number(runtime.get("max_num_seqs") if isinstance(runtime, dict) else None) or _DEFAULT_MAX_RUNNING,
        capabilities=("embed",) if kinds == ["Embedding"] else DYNAMO_CAPABILITIES,
    )
    said = {name: card_json.get(name) for name in (*_FILE_FIELDS, "context_length")}
    if takes_text or kinds == ["Embedding"]:
        said["kind"] = [takes_text, *kinds]
    return RemoteCard(
        card=card,
        info=info,
        is_own=False,
        checksum=blake3(msgspec.json.encode(_without_paths(said), order="deterministic")).hexdigest(),
        takes_text=takes_text,
        **_limits(card_json, card),
    )


def _limits(card_json: dict[str, Any], card: ModelCard) -> dict[str, int]:
    return {
        "migration_limit": _number(card_json.get("migration_limit")),
        "block_size": _number(card_json.get("kv_cache_block_size")) or card.kv_cache_block_size or _DEFAULT_BLOCK_SIZE,
    }


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 0


def _without_paths(value: Any) -> Any:
    """The same model lies elsewhere on other machines."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items() if key != "path"}
    return value


def _dynamo_card(card_json: dict[str, Any]) -> ModelCard:
    """From the files that the card names on a shared disk, else from the Hub. Raises RecordError and CardError."""
    name = _name(card_json)
    if card_json.get("model_input", "Tokens") != "Tokens":
        what = f"{card_json['model_input']!r:.40} as {card_json.get('model_type')!r:.40}"
        raise RecordError(
            f"the worker of {name} takes {what}, which is not served here; token ids are, and text as Chat"
        )
    template = _custom_template(card_json)
    places = [str(path.parent) for path in _paths(card_json)]
    source_path = card_json.get("source_path")
    places += [place for place in (source_path, name) if isinstance(place, str)]
    found = next((place for place in places if Path(place).is_dir()), None)
    if found is not None:
        return _named(resolve(found, name=name, download=False, chat_template=template), card_json)
    hub = next((place for place in places if place.count("/") == 1 and not place.startswith("/")), None)
    if hub is None:
        raise RecordError(f"the files of {name} are at {', '.join(places)} on the worker's machine and not here; "
                          "share the disk, or name the MODEL on the command line")  # fmt: skip
    return _named(resolve(hub, name=name, chat_template=template), card_json)


def _custom_template(card_json: dict[str, Any]) -> str | None:
    """The file of a template that is not the model's own. Raises RecordError where it is not here: another one would
    answer in its place."""
    said = card_json.get("chat_template_file")
    entry = said.get("hf_chat_template") if isinstance(said, dict) else None
    if not isinstance(entry, dict) or entry.get("is_custom") is not True:
        return None
    file = entry.get("file")
    path = file.get("path") if isinstance(file, dict) else None
    if not isinstance(path, str) or not Path(path).is_file():
        raise RecordError(f"the worker has a chat template of its own at {path}, which is not here; share the disk")
    return path


def _named(card: ModelCard, card_json: dict[str, Any]) -> ModelCard:
    context_length = _number(card_json.get("context_length")) or card.context_length
    return msgspec.structs.replace(card, context_length=context_length, kind="none", path=None)


def _paths(card_json: dict[str, Any]) -> list[Path]:
    """Of the card's files: {"model_info": {"hf_config_json": {"path": …}}}, or the path alone (0.3, 0.4)."""
    found = []
    for field in _FILE_FIELDS:
        for entry in (card_json.get(field) or {}).values() if isinstance(card_json.get(field), dict) else ():
            path = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(path, str) and "://" not in path:
                found.append(Path(path))
    return found
