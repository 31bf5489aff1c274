"""What a Hugging Face folder says about its model, as fields of a ModelCard.

Owns which file is asked for what, and which file wins. Does not name the model and downloads nothing (resolve.py).

    limits, ids       config.json (its `text_config` where the top level is silent), generation_config.json
    template, tokens  chat_template.jinja > chat_template.json > tokenizer_config.json; special_tokens_map.json
    tokenizer         tokenizer.json > tekken.json > tokenizer.model > *.tiktoken
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from model_cards.card import TokenizerKind, TokenizerRef
from model_cards.errors import ModelFileError, ModelNotFound
from model_cards.hf_weights import describe_weights

_MAX_JSON_BYTES = 64 * 1024 * 1024
_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "model_max_length",
    "n_ctx", "max_target_positions",
)  # fmt: skip
_UNLIMITED = 10**9
"""transformers writes 1e30 for `model_max_length` when it does not know."""
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
_SAMPLING_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
                     "repetition_penalty": 1.0}  # fmt: skip
_DETAILS = {
    "num_hidden_layers": "layers", "n_layer": "layers", "hidden_size": "hidden_size", "n_embd": "hidden_size",
    "num_attention_heads": "heads", "n_head": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim",
    "num_experts": "experts", "num_local_experts": "experts", "n_routed_experts": "experts",
    "sliding_window": "sliding_window",
}  # fmt: skip
_TOKENIZER_FILES: tuple[tuple[str, TokenizerKind], ...] = (
    ("tokenizer.json", "hf"),
    ("tekken.json", "tekken"),
    ("tokenizer.model", "sentencepiece"),
    ("*.tiktoken", "tiktoken"),
)
_TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_END_NAMES = ("eos_token", "eot_token", "eom_token")


class _TokenizerJson(msgspec.Struct):
    """What a card needs of tokenizer.json; the vocabulary stays undecoded until a special token is looked up in it."""

    added_tokens: list[dict[str, Any]] = []
    post_processor: Any = None
    model: dict[str, msgspec.Raw] = {}

    @classmethod
    def read(cls, path: Path) -> _TokenizerJson:
        """Raises ModelFileError where the file is broken."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path} is not a valid tokenizer: {error}") from None

    def ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Ids of the added tokens and of `texts`."""
        ids = {
            token["content"]: token["id"]
            for token in self.added_tokens
            if isinstance(token.get("content"), str) and isinstance(token.get("id"), int)
        }
        wanted = [text for text in texts if text not in ids]
        vocab = self._vocab() if wanted else {}
        ids.update({text: vocab[text] for text in wanted if isinstance(vocab.get(text), int)})
        return ids

    def _vocab(self) -> dict[str, Any]:
        vocab = msgspec.json.decode(self.model["vocab"]) if "vocab" in self.model else {}
        if isinstance(vocab, list):  # Unigram: [[text, score], ...]
            return {entry[0]: index for index, entry in enumerate(vocab) if isinstance(entry, list) and entry}
        return vocab if isinstance(vocab, dict) else {}

    def num_tokens(self) -> int:
        """Tokens in the vocabulary, added ones included."""
        ids = [token["id"] for token in self.added_tokens if isinstance(token.get("id"), int)]
        return max(len(self._vocab()), 1 + max(ids, default=-1))


class _Folder:
    """The JSON files of one folder, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = self.read("config.json")
        self.generation = self.read("generation_config.json")
        self.tokenizer_config = self.read("tokenizer_config.json")
        self.special_map = self.read("special_tokens_map.json")
        self.tokenizer_ref = find_tokenizer(path)
        ref = self.tokenizer_ref
        self.tokenizer = _TokenizerJson.read(Path(ref.path)) if ref and ref.kind == "hf" else _TokenizerJson()

    def read(self, name: str) -> dict[str, Any]:
        """A JSON object; empty where there is no such file. Raises ModelFileError where it is something else."""
        value = read_json(self.path / name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ModelFileError(f"{self.path / name} holds {type(value).__name__}; a JSON object is wanted")
        return value

    def config_value(self, key: str) -> Any:
        """A value of config.json, else of its `text_config` (models with vision or audio)."""
        if self.config.get(key) is not None:
            return self.config[key]
        inner = self.config.get("text_config") or self.config.get("llm_config") or {}
        return inner.get(key) if isinstance(inner, dict) else None


def read_json(path: Path) -> Any:
    """The file's JSON, None where there is none. Raises ModelFileError where it is broken or too large."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size:,} bytes; at most {_MAX_JSON_BYTES:,} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}") from None


def fields_from_hf(path: Path, *, needs_config: bool = True) -> dict[str, Any]:
    """Keyword arguments for ModelCard out of the folder `path`.

    `needs_config=False` is for a folder that only lends tokenizer and template (`--model-config`). Raises ModelNotFound
    where config.json is missing (the message lists what is there), ModelFileError where a file is broken.
    """
    if needs_config and not (path / "config.json").is_file():
        raise ModelNotFound(_missing_config(path))
    folder = _Folder(path)
    vocab = _vocabulary(folder)
    default, named = _templates(folder)
    texts = _special_texts(folder)
    bos_id = _token_id(_first(folder.config_value("bos_token_id"), folder.generation.get("bos_token_id")))
    if bos_id is None:
        bos_id = vocab.get(texts.get("bos_token", ""))
    return {
        "architecture": _architecture(folder),
        "context_length": _context_length(folder),
        "vocab_size": _number(folder.config_value("vocab_size")) or folder.tokenizer.num_tokens(),
        "bos_token_id": bos_id,
        "eos_token_ids": _end_ids(folder, texts, vocab),
        "tokenizer": folder.tokenizer_ref,
        "chat_template": default,
        "named_templates": named,
        "special_tokens": {name: texts[name] for name in _TEMPLATE_TOKENS if name in texts},
        "add_bos": _adds(folder, "bos_token", texts, sentencepiece_default=True),
        "add_eos": _adds(folder, "eos_token", texts, sentencepiece_default=False),
        "sampling": _sampling(folder),
        "details": {**_details(folder), **describe_weights(path)},
    }


def _missing_config(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return (
        f"{path} is not a model folder: it has no config.json (there is: {shown}); "
        "give a Hugging Face model folder, or the path of a .gguf file"
    )


def find_tokenizer(path: Path) -> TokenizerRef | None:
    """The folder's tokenizer file, the richest kind first."""
    for pattern, kind in _TOKENIZER_FILES:
        for file in sorted(path.glob(pattern)):
            if file.is_file():
                return TokenizerRef(kind=kind, path=str(file))
    return None


def _architecture(folder: _Folder) -> str | None:
    value = folder.config.get("model_type") or folder.config_value("model_type")
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < _UNLIMITED else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _token_id(value: Any) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _context_length(folder: _Folder) -> int:
    """Tokens the model can attend to: what config.json states, extended by yarn where yarn's own numbers say more.

    Other kinds of scaling (llama3, longrope, linear, dynamic) are stated beside a length that counts them already.
    tokenizer_config's `model_max_length` is asked where config.json is silent.
    """
    for key in _CONTEXT_KEYS:
        length = _number(folder.config_value(key))
        if length is not None:
            return max(length, _scaled_length(folder, length))
    return _number(folder.tokenizer_config.get("model_max_length")) or 0


def _scaled_length(folder: _Folder, length: int) -> int:
    scaling = folder.config_value("rope_scaling") or folder.config_value("rope_parameters")
    if not isinstance(scaling, dict):
        return length
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    original = _number(scaling.get("original_max_position_embeddings"))
    if not isinstance(factor, (int, float)) or not 1 < factor < 1e4:
        return length
    return int(original * factor) if kind == "yarn" and original is not None else length


def _special_texts(folder: _Folder) -> dict[str, str]:
    """Real text of every named special token (a string, or an object with `content`)."""
    texts = {}
    sources = (folder.tokenizer_config, folder.special_map)
    for name in {*_TEMPLATE_TOKENS, *_END_NAMES}:
        for source in sources:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                texts[name] = text
                break
    return texts


def _vocabulary(folder: _Folder) -> dict[str, int]:
    """Ids by text: of the added tokens, and of every token that tokenizer.json knows and a special token names."""
    vocab: dict[str, int] = dict(folder.tokenizer.ids(_special_texts(folder).values()))
    decoder = folder.tokenizer_config.get("added_tokens_decoder")
    for key, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and str(key).isdigit():
            vocab[token["content"]] = int(key)
    added = read_json(folder.path / "added_tokens.json")
    if isinstance(added, dict):
        vocab.update({text: index for text, index in added.items() if isinstance(index, int)})
    return vocab


def _end_ids(folder: _Folder, texts: dict[str, str], vocab: dict[str, int]) -> tuple[int, ...]:
    """Every id that ends a turn, generation_config's first."""
    ids: list[int] = []
    for source in (folder.generation.get("eos_token_id"), folder.config_value("eos_token_id")):
        values = source if isinstance(source, list) else [source]
        ids += [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value >= 0]
    ids += [vocab[texts[name]] for name in _END_NAMES if texts.get(name) in vocab]
    return tuple(dict.fromkeys(ids))


def _sampling(folder: _Folder) -> dict[str, Any]:
    """generation_config's sampling defaults; none where it says `do_sample: false`."""
    if folder.generation.get("do_sample") is False:
        return {}
    defaults = {}
    for key in _SAMPLING_KEYS:
        value = folder.generation.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value != _SAMPLING_NEUTRAL[key]:
            defaults[key] = value
    return defaults


def _templates(folder: _Folder) -> tuple[str | None, dict[str, str]]:
    """The default template and further ones by name."""
    named: dict[str, str] = {}
    for source in (folder.tokenizer_config, folder.read("chat_template.json")):
        named.update(_templates_of(source.get("chat_template")))
    jinja = folder.path / "chat_template.jinja"
    if jinja.is_file():
        named["default"] = _read_text(jinja)
    for file in sorted((folder.path / "additional_chat_templates").glob("*.jinja")):
        named[file.stem] = _read_text(file)
    return named.pop("default", None), named


def _templates_of(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        return {name: text for name, text in value.items() if isinstance(text, str)}
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    return {e["name"]: e["template"] for e in entries if {type(e.get(key)) for key in ("name", "template")} == {str}}


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # newline="": the template's line ends are kept
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"cannot read the chat template {path}: {error}") from None


def _adds(folder: _Folder, name: str, texts: dict[str, str], *, sentencepiece_default: bool) -> bool:
    """Does encoding a raw text add this token? A flag says so, else tokenizer.json's post-processor, else the kind."""
    if name not in texts or folder.tokenizer_ref is None:
        return False
    stated = folder.tokenizer_config.get(f"add_{name}")
    if isinstance(stated, bool):
        return stated
    if folder.tokenizer_ref.kind == "hf":
        return _template_adds(folder.tokenizer.post_processor, texts[name])
    return sentencepiece_default and folder.tokenizer_ref.kind in ("sentencepiece", "tekken")


def _template_adds(processor: Any, text: str) -> bool:
    """Is `text` written by a TemplateProcessing (or one in a Sequence, or a Bert/Roberta pair) around one sequence?"""
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence":
        return any(_template_adds(inner, text) for inner in processor.get("processors") or [])
    if processor.get("type") == "TemplateProcessing":
        pieces = [piece.get("SpecialToken", {}) for piece in processor.get("single") or [] if isinstance(piece, dict)]
        return any(isinstance(piece, dict) and piece.get("id") == text for piece in pieces)
    return any(isinstance(pair, list) and text in pair for pair in (processor.get("cls"), processor.get("sep")))


def _details(folder: _Folder) -> dict[str, Any]:
    details: dict[str, Any] = {"format": "Hugging Face"}
    for key, name in _DETAILS.items():
        value = folder.config_value(key)
        if isinstance(value, int) and not isinstance(value, bool):
            details.setdefault(name, value)
    dtype = _first(folder.config_value("dtype"), folder.config_value("torch_dtype"))
    if isinstance(dtype, str):
        details["dtype"] = dtype
    quantization = folder.config_value("quantization_config")
    if isinstance(quantization, dict):
        details["quantization"] = str(quantization.get("quant_method", "unknown"))
    return details
