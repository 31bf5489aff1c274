"""From what a user names to a ModelCard; the only place that downloads (through hub.py).

Owns the order of meanings, the served name, and what a flag overrides:

    alias of a preset > something on this disk > a path that does not exist (an error) > a Hub name

The served name is --model-name, else the Hub id as given without its quantization, the alias, the folder's name, or the
GGUF file's name without `.gguf` (and without the shard number). Knows nothing of engines.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import msgspec

from model_cards.card import ModelCard
from model_cards.checksum import checksum
from model_cards.errors import ModelFileError, ModelNotFound
from model_cards.hub import HubSettings, Progress, fetch_model, spell
from model_cards.hub_names import HubName, parse_hub_name
from model_cards.presets import Preset, aliases

_LENT_FIELDS = (
    "tokenizer",
    "chat_template",
    "named_templates",
    "special_tokens",
    "eos_token_ids",
    "bos_token_id",
    "add_bos",
    "add_eos",
    "sampling",
    "vocab_size",
)
"""What --model-config lends to weights that do not have it, or have it wrong."""
_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
_PATH_SUFFIXES = (".gguf", ".json", ".safetensors", ".bin", ".engine", ".jinja")


def resolve(
    source: str,
    *,
    name: str | None = None,
    model_config: str | None = None,
    chat_template: str | None = None,
    context_length: int | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> ModelCard:
    """The card of `source`: alias, GGUF file, folder, card file or Hub name.

    `model_config`: a folder that lends tokenizer and template. `chat_template`: a file or the template itself.
    `download=False` looks into the cache only. Raises CardError.
    """
    text = source.strip()
    if not text:
        raise ModelNotFound("the model's name is empty; give a .gguf file, a folder, an alias or a Hub name (org/repo)")
    card = _find(text, model_config, download=download, progress=progress)
    card = _override(card, source, name, chat_template, context_length)
    return msgspec.structs.replace(card, mdcsum=checksum(card, _weight_files(card)))


def _override(
    card: ModelCard, source: str, name: str | None, chat_template: str | None, context_length: int | None
) -> ModelCard:
    changes: dict[str, Any] = {"source": source}
    if name is not None:
        changes["name"] = name
    if chat_template is not None:
        from model_cards.template import read_template

        changes |= {"chat_template": read_template(chat_template), "named_templates": {}}
    if context_length is not None:
        if context_length <= 0:
            raise ModelFileError(f"the context length is {context_length}; a positive number of tokens is wanted")
        changes["context_length"] = context_length
    return msgspec.structs.replace(card, **changes)


def _find(text: str, model_config: str | None, *, download: bool, progress: Progress | None) -> ModelCard:
    alias = _split_alias(text)
    if alias is not None:
        return _from_preset(*alias, model_config, download=download, progress=progress)
    path = Path(text.removeprefix("file://")).expanduser()
    if _exists(path):
        return _from_path(path, text, model_config)
    if _looks_like_path(text):
        raise ModelNotFound(_no_such_path(path))
    hub_name = parse_hub_name(text, endpoint=HubSettings.from_environment().endpoint)
    if hub_name is None:
        raise ModelNotFound(_unknown_name(text))
    return _from_hub(hub_name, text, model_config, download=download, progress=progress)


def _split_alias(text: str) -> tuple[str, Preset, str | None] | None:
    """Alias, preset and quantization of `alias`, `alias:QUANT` or `alias@QUANT`; None if it is no alias."""
    alias, _, quant = re.sub("[:@]", "\0", text, count=1).partition("\0")
    preset = aliases().get(alias.lower())
    return None if preset is None else (alias.lower(), preset, quant or None)


def _from_preset(
    alias: str, preset: Preset, quant: str | None, model_config: str | None, *, download: bool,
    progress: Progress | None,
) -> ModelCard:  # fmt: skip
    path = Path(preset.source)
    if path.is_absolute():
        if not _exists(path):
            raise ModelNotFound(f"the files of the preset {alias} are missing ({path}); install llmrun again")
        if quant is not None:
            raise ModelNotFound(f"the preset {alias} has one quantization only; leave {quant} away")
        card = _from_path(path, alias, model_config)
    else:
        hub_name = parse_hub_name(preset.source)
        assert hub_name is not None, preset
        hub_name = hub_name._replace(quant=quant) if quant else hub_name
        card = _from_hub(hub_name, alias, model_config, download=download, progress=progress)
    fields = msgspec.convert(preset.card, dict[str, Any])
    return msgspec.structs.replace(card, **{**fields, "name": alias})


def _from_hub(
    name: HubName, text: str, model_config: str | None, *, download: bool, progress: Progress | None
) -> ModelCard:
    path = fetch_model(name, download=download, progress=progress)
    card = _from_path(path, text, model_config)
    return msgspec.structs.replace(card, name=name.repo, details={**card.details, "hub": spell(name)})


def _from_path(path: Path, text: str, model_config: str | None) -> ModelCard:
    path = path.absolute()
    if path.is_dir():
        return _from_folder(path, text, model_config)
    if path.suffix.lower() == ".json":
        return _from_card_file(path)
    if path.suffix.lower() in (".safetensors", ".bin", ".engine"):
        raise ModelFileError(f"{path} is one file of a model; give its folder, {path.parent}")
    return _from_gguf(path, text, model_config)


def _from_folder(path: Path, text: str, model_config: str | None) -> ModelCard:
    from model_cards.hf_card import fields_from_hf
    from model_cards.hf_weights import weight_files
    from model_cards.trtllm_card import is_engine_folder

    if is_engine_folder(path):
        return _from_engine_folder(path, text, model_config)
    ggufs = _models_in(path)
    if ggufs and not weight_files(path):
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs[:8]) + (", …" if len(ggufs) > 8 else "")
            raise ModelNotFound(f"{path} holds {len(ggufs)} GGUF models; give one of them: {names}")
        card = _from_gguf(ggufs[0], text, model_config)
        return msgspec.structs.replace(card, name=path.name or card.name)
    fields = fields_from_hf(path)
    if fields["tokenizer"] is None:
        fields["details"]["tokenizer_error"] = (
            f"{path} has none of tokenizer.json, tekken.json, tokenizer.model, *.tiktoken"
        )
    fields |= _lent_fields(model_config)
    return ModelCard(name=path.name or str(path), source=text, kind="hf", path=str(path), **fields)


def _models_in(path: Path) -> list[Path]:
    """GGUF models of a folder: whole files and first shards, without vision projectors."""
    files = sorted(file for file in path.glob("*.gguf") if file.is_file() and not file.name.startswith("mmproj"))
    return [file for file in files if not _SHARD_SUFFIX.search(file.stem) or "-00001-of-" in file.stem]


def _from_gguf(path: Path, text: str, model_config: str | None) -> ModelCard:
    from model_cards.gguf import GgufFile
    from model_cards.gguf_card import fields_from_gguf

    with GgufFile.open(path) as gguf:
        fields = fields_from_gguf(gguf)
        first = gguf.path
    fields |= _lent_fields(model_config)
    return ModelCard(name=_SHARD_SUFFIX.sub("", first.stem), source=text, kind="gguf", path=str(first), **fields)


def _from_engine_folder(path: Path, text: str, model_config: str | None) -> ModelCard:
    from model_cards.trtllm_card import engine_fields

    fields = engine_fields(path)
    if model_config is None:
        raise ModelNotFound(
            f"{path} is a TensorRT-LLM engine, which has no tokenizer and no chat template; "
            "name the folder of the Hugging Face model that it was built from: --model-config FOLDER"
        )
    fields = {**fields, **_lent_fields(model_config), "vocab_size": fields["vocab_size"]}
    return ModelCard(name=path.name or str(path), source=text, kind="trtllm", path=str(path), **fields)


def _from_card_file(path: Path) -> ModelCard:
    card = ModelCard.load(path)
    wanted = [card.path, card.tokenizer.path if card.tokenizer else None]
    for missing in (file for file in wanted if file is not None and not _exists(Path(file))):
        raise ModelNotFound(f"the card {path} names {missing}, which does not exist; fetch it again or edit the card")
    return card


def _lent_fields(model_config: str | None) -> dict[str, Any]:
    """Fields out of --model-config; empty without it. Raises CardError."""
    if model_config is None:
        return {}
    from model_cards.hf_card import fields_from_hf

    folder = Path(model_config).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if _exists(folder) else "does not exist"
        raise ModelNotFound(f"--model-config {model_config} {what}; give a Hugging Face model folder")
    fields = fields_from_hf(folder.absolute(), needs_config=False)
    if fields["tokenizer"] is None:
        raise ModelNotFound(f"--model-config {model_config} has no tokenizer (tokenizer.json, tokenizer.model ...)")
    return {name: fields[name] for name in _LENT_FIELDS if fields[name] not in (None, (), {}, 0)}


def _weight_files(card: ModelCard) -> list[Path]:
    if card.path is None:
        return []
    path = Path(card.path)
    if card.kind == "gguf":
        from model_cards.gguf import find_shards

        return list(find_shards(path)[1])
    if card.kind == "hf":
        from model_cards.hf_weights import weight_files

        return weight_files(path)
    return sorted(path.glob("rank*.engine"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a path, or no permission on the way
        return False


def _looks_like_path(text: str) -> bool:
    """Could nobody mean a Hub name by this?"""
    if ("://" in text and not text.startswith("file://")) or text.lower().startswith(("hf.co/", "huggingface.co/")):
        return False
    bare = text.split(":", 1)[0]
    has_path_form = text.startswith(("/", "./", "../", "~", ".\\", "file://")) or "\\" in text or text.endswith("/")
    # `models/foo` where the folder `models` is here is a path; Hub names have exactly one slash.
    return (
        has_path_form
        or (text.lower().endswith(_PATH_SUFFIXES) and ":" not in text)
        or bare.count("/") > 1
        or ("/" in bare and Path(bare.split("/", 1)[0]).is_dir())
    )


def _no_such_path(path: Path) -> str:
    try:
        path.stat()
    except PermissionError:
        return f"{path}: Permission denied on the way to it; ask for read and search permission of its folders"
    except OSError:
        pass
    parent = path.parent
    while not _exists(parent) and parent != parent.parent:
        parent = parent.parent
    if parent != path.parent:
        return f"{path}: no such file or folder; {parent} exists, but not {path.relative_to(parent).parts[0]} in it"
    near = _neighbours(path)
    hint = f"; did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""
    return f"{path}: no such file or folder{hint or '; give a .gguf file, a folder, an alias or a Hub name (org/repo)'}"


def _neighbours(path: Path) -> list[str]:
    try:
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(path.name.lower(), by_lower, n=3, cutoff=0.6)
    return [by_lower[name] for name in close]


def _unknown_name(text: str) -> str:
    near = difflib.get_close_matches(text.lower(), aliases(), n=3, cutoff=0.6)
    near += [f"./{name}" for name in _neighbours(Path(text)) if name not in near]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"aliases are: {', '.join(aliases())}"
    return f"there is no model {text!r}: it is no alias, no file or folder here, and no Hub name (org/repo); {hint}"
