"""A model's card with the files that it needs: served by the worker over HTTP, fetched by the ingress.

So the ingress needs no copy of the model: of a GGUF file the metadata are sent, of a folder its tokenizer and
configuration. Every file has a blake3 checksum and a size, and what does not match is not used.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from blake3 import blake3

from model_cards.card import ModelCard, TokenizerRef
from model_cards.errors import ModelFileError
from model_cards.gguf import GgufFile
from runner import __version__
from runner.net.records import RecordError
from runner.types import EngineInfo

_MAX_FILE_BYTES = 256 << 20
_MAX_FILES, _MAX_TOTAL_BYTES, _MAX_NAME_BYTES = 64, 512 << 20, 200
_FETCH_S = 60.0
_TEMPLATE = "chat_template.jinja"
_SUFFIXES = (".json", ".jinja", ".model", ".tiktoken", ".txt")


class CardFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file as it stands in the card."""

    url: str
    blake3: str
    size: int


class OwnCard(msgspec.Struct, frozen=True, kw_only=True):
    """What an llmrun worker says beyond Dynamo's card (`user_data.llmrun`). Paths in `card` are names of `files`."""

    card: str
    info: EngineInfo
    files: dict[str, CardFile] = {}
    version: str = ""
    """Of the worker's llmrun, for messages."""
    takes_text: bool = False
    """Messages and text instead of token ids."""

    def read(self) -> ModelCard:
        """The card itself. Raises RecordError."""
        try:
            return ModelCard.from_json(self.card, origin="the worker's card")
        except ModelFileError as error:
            raise RecordError(_other_version(self.version, str(error))) from None


class CardServer:
    """The worker's HTTP server for the files of one card."""

    def __init__(
        self, card: ModelCard, info: EngineInfo, *, migration_limit: int = 0, takes_text: bool = False
    ) -> None:
        """`takes_text`: the worker takes messages and text, not token ids, and its card needs no files."""
        self._card = msgspec.structs.replace(card, tokenizer=None) if takes_text else card
        self._info, self._takes_text = info, takes_text
        self._migration_limit = migration_limit
        self._files: dict[str, bytes] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, host: str) -> dict[str, Any]:
        """Listen; returns Dynamo's card_json. Raises OSError and CardError."""
        self._files = await asyncio.to_thread(_gather, self._card)
        app = web.Application()
        app.router.add_get("/files/{name}", self._send)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0).start()
        port = self._runner.addresses[0][1]
        name = f"[{host}]" if ":" in host else host
        return self._card_json(f"http://{name}:{port}/files/")

    async def _send(self, request: web.Request) -> web.Response:
        data = self._files.get(request.match_info["name"])
        return web.Response(status=404) if data is None else web.Response(body=data)

    def _card_json(self, base: str) -> dict[str, Any]:
        card = self._card
        files = {
            name: CardFile(url=base + quote(name, safe=""), blake3=blake3(data).hexdigest(), size=len(data))
            for name, data in self._files.items()
        }
        own = OwnCard(
            card=_portable(card).to_json(), info=self._info, files=files, version=__version__,
            takes_text=self._takes_text,
        )  # fmt: skip
        return {
            "display_name": card.name,
            "slug": card.slug,
            **_dynamo_files(card, files),
            "context_length": self._info.context_length or card.context_length,
            "kv_cache_block_size": self._info.details.get("block_size") or card.kv_cache_block_size,
            "migration_limit": self._migration_limit,
            "model_type": "Chat | Completions" if self._info.makes_text else "Embedding",
            "model_input": "Text" if self._takes_text else "Tokens",
            "user_data": {"llmrun": msgspec.to_builtins(own)},
        }

    async def close(self) -> None:
        """Safe twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def _gather(card: ModelCard) -> dict[str, bytes]:
    if card.tokenizer is None:
        return {}
    path = Path(card.tokenizer.path)
    if card.tokenizer.kind == "gguf":
        with GgufFile.open(path) as gguf:
            return {path.name: gguf.head_bytes()}
    beside = [other for other in path.parent.iterdir() if other.suffix in _SUFFIXES and other.is_file()]
    wanted = sorted({path, *(other for other in beside if not other.name.endswith(".index.json"))})
    return {other.name: other.read_bytes() for other in wanted if other.stat().st_size <= _MAX_FILE_BYTES}


def _portable(card: ModelCard) -> ModelCard:
    """Without paths of the worker's machine."""
    tokenizer = card.tokenizer
    if tokenizer is not None:
        tokenizer = TokenizerRef(kind=tokenizer.kind, path=Path(tokenizer.path).name)
    return msgspec.structs.replace(card, path=None, kind="none", tokenizer=tokenizer, adapters=(), source=card.name)


def _dynamo_files(card: ModelCard, files: dict[str, CardFile]) -> dict[str, Any]:
    """The files of a Hugging Face folder, as Dynamo's frontend reads them (by path, on a shared disk)."""
    if card.tokenizer is None or card.tokenizer.kind != "hf" or card.path is None:
        return {}
    kinds = {
        "model_info": ("hf_config_json", "config.json"),
        "tokenizer": ("hf_tokenizer_json", "tokenizer.json"),
        "prompt_formatter": ("hf_tokenizer_config_json", "tokenizer_config.json"),
        "gen_config": ("hf_generation_config_json", "generation_config.json"),
    }
    folder = Path(card.tokenizer.path).parent

    def checked(name: str) -> dict[str, Any]:
        return {"path": str(folder / name), "checksum": f"blake3:{files[name].blake3}", "size": files[name].size}

    fields: dict[str, Any] = {field: {kind: checked(name)} for field, (kind, name) in kinds.items() if name in files}
    if _TEMPLATE in files:  # without it Dynamo's frontend refuses a tokenizer_config.json that has none inside
        fields["chat_template_file"] = {"hf_chat_template": {"is_custom": False, "file": checked(_TEMPLATE)}}
    return fields | {"source_path": card.path}


def read_own_card(card_json: dict[str, Any]) -> OwnCard | None:
    """None for a worker that is not llmrun's. Raises RecordError."""
    data = (card_json.get("user_data") or {}).get("llmrun") if isinstance(card_json.get("user_data"), dict) else None
    if data is None:
        return None
    try:
        own = msgspec.convert(data, OwnCard)
    except msgspec.ValidationError as error:
        version = data.get("version") if isinstance(data, dict) else None
        raise RecordError(_other_version(version if isinstance(version, str) else "", str(error))) from None
    total = sum(file.size for file in own.files.values())
    if len(own.files) > _MAX_FILES or total > _MAX_TOTAL_BYTES:
        raise RecordError(
            f"the worker's card names {len(own.files)} files of {total} bytes; "
            f"at most {_MAX_FILES} of {_MAX_TOTAL_BYTES} bytes are taken"
        )
    for name, file in own.files.items():
        if not _is_plain(name) or not 0 <= file.size <= _MAX_FILE_BYTES:
            raise RecordError(f"the worker's card names a file {name[:100]!r} of {file.size} bytes, which is not taken")
    return own


def _other_version(version: str, why: str) -> str:
    whose = f"llmrun {version[:40]}" if version else "another version of llmrun"
    return f"its card is of {whose} and cannot be read by {__version__}: {why}; run one version on both sides"


def _is_plain(name: str) -> bool:
    """A file's name that means the same on every system, and no path."""
    is_short = 0 < len(name.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
    return is_short and name.isprintable() and not name.startswith(".") and not set(name) & set("/\\")


async def fetch_card(own: OwnCard, folder: Path) -> ModelCard:
    """The card, with its files in `folder` (named by their checksums). Raises RecordError and CardError."""
    card = own.read()
    key = blake3(msgspec.json.encode(sorted((name, file.blake3) for name, file in own.files.items()))).hexdigest()
    target = folder / key
    for name, file in own.files.items():
        await _fetch(name, file, target)
    if card.tokenizer is None:
        return card
    if card.tokenizer.path not in own.files:
        raise RecordError(f"the worker's card needs {card.tokenizer.path!r} and does not offer it")
    tokenizer = TokenizerRef(kind=card.tokenizer.kind, path=str(target / card.tokenizer.path))
    return msgspec.structs.replace(card, tokenizer=tokenizer)


async def _fetch(name: str, file: CardFile, folder: Path) -> None:
    if not _is_plain(name) or not 0 <= file.size <= _MAX_FILE_BYTES:
        raise RecordError(f"the worker's card names a file {name[:100]!r} of {file.size} bytes, which is not taken")
    path = folder / name
    if path.exists() and await asyncio.to_thread(_digest, path) == file.blake3:
        return
    try:
        timeout = aiohttp.ClientTimeout(total=_FETCH_S)
        session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        async with session, session.get(file.url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > file.size:
                    break
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise RecordError(f"{name} cannot be fetched from {file.url}: {str(error) or repr(error)}") from error
    if len(data) != file.size or blake3(data).hexdigest() != file.blake3:
        raise RecordError(f"{name} from {file.url} does not match its checksum")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = folder / f".{secrets.token_hex(8)}"
        hidden.write_bytes(data)
        hidden.replace(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror}") from error


def _digest(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()
