"""How people name a model on the Hub, read into one record; and which files of a repository that means.

Owns spellings and the choice of files. Touches neither network nor disk.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from model_cards.errors import ModelNotFound

_REPO = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")
_QUANT = re.compile(r"^(UD-)?(I?Q\d\w*|TQ\d\w*|MXFP\d\w*|NVFP\d\w*|BF16|F16|FP16|F32|FP32)$", re.IGNORECASE)
_QUANT_IN_NAME = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_\w+)?|TQ\d_\d|MXFP\d(?:_\w+)?|NVFP\d|BF16|F16|FP16|F32|FP32))(?=[-./]|$)",
    re.IGNORECASE,
)
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_PREFIXES = ("hf://", "huggingface://", "hf.co/", "huggingface.co/")
DEFAULT_QUANT = "Q4_K_M"
"""llama.cpp's choice where nothing is asked; else the first file."""
_SIDE_FILES = re.compile(r"(^|/)(mmproj|imatrix)", re.IGNORECASE)
_CONFIG_PATTERNS = (
    "*.json", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
_UNUSED_JSON = ("*.safetensors.index.fp*.json", "pytorch_model.bin.index.json", "onnx*", "openvino*", "quantize*log*")


class HubName(NamedTuple):
    """A repository, and what of it: a quantization, one file, a revision."""

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str = "main"


def parse_hub_name(source: str, *, endpoint: str = "https://huggingface.co") -> HubName | None:
    """Read `org/repo`, `org/repo:Q4_K_M`, `org/repo@q4_k_m`, `hf://…`, `hf.co/…`, a Hub URL; None if it is none.

    Raises ModelNotFound for something that says it is a Hub name and cannot be one.
    """
    text = source.strip()
    if text.startswith(("http://", "https://")):
        return _parse_url(text, endpoint)
    prefix = next((p for p in _PREFIXES if text.lower().startswith(p)), None)
    name = text[len(prefix) :] if prefix else text
    repo, quant, revision = _split_tag(name.strip("/"))
    if not _REPO.match(repo) and not (prefix and re.match(r"^[\w][\w.-]{0,95}$", repo)):
        if prefix:
            raise ModelNotFound(f"{source} is not a Hub name; org/repo or org/repo:QUANT is wanted after {prefix}")
        return None
    if quant is not None and quant.lower().endswith(".gguf"):
        return HubName(repo, None, quant, revision)
    return HubName(repo, quant, None, revision)


def _split_tag(name: str) -> tuple[str, str | None, str]:
    """repo, quantization (or file), revision."""
    if ":" in name:
        repo, _, tag = name.partition(":")
        return repo, tag or None, "main"
    if "@" in name:
        repo, _, tag = name.partition("@")
        return (repo, tag, "main") if _QUANT.match(tag) else (repo, None, tag or "main")
    return name, None, "main"


def _parse_url(url: str, endpoint: str) -> HubName:
    host = urlsplit(url).netloc.lower()
    if host not in ("huggingface.co", "www.huggingface.co", "hf.co", urlsplit(endpoint).netloc.lower()):
        raise ModelNotFound(f"{url} is not on the Hugging Face Hub; download the file and give its path")
    parts = [unquote(part) for part in urlsplit(url).path.split("/") if part]
    repo = "/".join(parts[:2])
    if not _REPO.match(_split_tag(repo)[0]):
        raise ModelNotFound(f"{url} names no model; https://huggingface.co/org/repo is wanted")
    if len(parts) > 4 and parts[2] in ("blob", "resolve"):
        return HubName(repo, None, "/".join(parts[4:]), parts[3])
    if len(parts) > 3 and parts[2] == "tree":
        return HubName(repo, None, None, parts[3])
    name, quant, revision = _split_tag(repo)
    return HubName(name, quant, None, revision)


def quant_of(file: str) -> str | None:
    """The quantization in a GGUF file's name (or its folder's), upper case; None if the name has none."""
    found = _QUANT_IN_NAME.findall(file.removesuffix(".gguf"))
    return found[-1].upper() if found else None


def choose_files(name: HubName, files: Mapping[str, int]) -> list[str]:
    """The files of a repository that `name` needs, the model's own first. `files`: path -> bytes.

    One GGUF (all shards of it) where a quantization or file is named or there is nothing else; else configuration,
    tokenizer and safetensors. Raises ModelNotFound that lists what could be had.
    """
    ggufs = sorted(file for file in files if file.lower().endswith(".gguf") and not _SIDE_FILES.search(file))
    if name.file is not None:
        if name.file not in files:
            raise ModelNotFound(f"{name.repo} has no file {name.file}; {_offer(ggufs)}")
        return _with_shards(name.file, files) if name.file.endswith(".gguf") else _hf_files(name, files)
    if name.quant is not None:
        return _with_shards(_find_quant(name, ggufs), files)
    if _has_hf_weights(files):
        return _hf_files(name, files)
    if not ggufs:
        raise ModelNotFound(
            f"{name.repo} holds no model that can be run: neither .safetensors with config.json nor .gguf files"
        )
    return _with_shards(_default_gguf(ggufs), files)


def _offer(ggufs: list[str]) -> str:
    quants = sorted({quant for quant in map(quant_of, ggufs) if quant})
    if quants:
        return f"there is: {', '.join(quants)}"
    return f"there is: {', '.join(ggufs[:8])}" if ggufs else "it has no .gguf files"


def _find_quant(name: HubName, ggufs: list[str]) -> str:
    wanted = (name.quant or "").upper()
    exact = [file for file in ggufs if quant_of(file) == wanted]
    loose = [file for file in ggufs if re.search(rf"(^|[-._/]){re.escape(wanted)}([-./]|$)", file, re.IGNORECASE)]
    if exact or loose:
        return (exact or loose)[0]
    raise ModelNotFound(f"{name.repo} has no quantization {name.quant}; {_offer(ggufs)}")


def _default_gguf(ggufs: list[str]) -> str:
    return next((file for file in ggufs if quant_of(file) == DEFAULT_QUANT), ggufs[0])


def _with_shards(file: str, files: Mapping[str, int]) -> list[str]:
    match = _SHARD.match(file)
    if match is None:
        return [file]
    count = int(match["count"])
    shards = [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, min(count, 9999) + 1)]
    missing = [shard for shard in shards if shard not in files]
    if missing:
        raise ModelNotFound(f"{len(missing)} of {count} shards are missing, the first is {missing[0]}")
    return shards


def _has_hf_weights(files: Mapping[str, int]) -> bool:
    return "config.json" in files and any("/" not in f and f.endswith((".safetensors", ".bin")) for f in files)


def _hf_files(name: HubName, files: Mapping[str, int]) -> list[str]:
    top = sorted(file for file in files if "/" not in file)
    weights = [file for file in top if file.endswith(".safetensors")]
    weights = [file for file in weights if not file.startswith("consolidated")] or weights
    if not weights:
        weights = [file for file in top if file.startswith("pytorch_model") and file.endswith(".bin")]
        weights += [file for file in top if file == "pytorch_model.bin.index.json"]
    config = [file for file in sorted(files) if _is_config(file) and file not in weights]
    if "config.json" not in files:
        raise ModelNotFound(f"{name.repo} has no config.json, so it is not a model that can be run")
    return [*config, *weights]


def _is_config(file: str) -> bool:
    wanted = any(fnmatch.fnmatchcase(file, p) for p in _CONFIG_PATTERNS if ("/" in p) == ("/" in file))
    return wanted and not any(fnmatch.fnmatchcase(file, pattern) for pattern in _UNUSED_JSON)
