"""GgufVocab: the vocabulary in a GGUF file's metadata, read the way llama.cpp reads it.

Owns which token is normal, control, user-defined or byte, which ids end a text, and the flags `add_bos` and so on, with
llama.cpp's defaults and corrections (`llama_vocab::impl::load`, src/llama-vocab.cpp at llama-cpp-python 0.3.36). Does
not encode: gguf_tokenizer.py does.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterable, Sequence

from model_cards.errors import TokenizerError
from model_cards.gguf import GgufFile
from model_cards.pretokenizers import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_BPE_MODELS = ("gpt2", "gemma4")
_SPECIAL_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
    "rwkv": {},
    "plamo2": {"bos": 1, "eos": 2, "unknown": 0, "padding": 3},
}
"""tokenizer.ggml.model -> ids that hold where the file has no `tokenizer.ggml.NAME_token_id`."""

_SPECIAL_NAMES = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)  # fmt: skip
_OLD_NAMES = {"prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid"}

_END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
"""Texts of tokens that end a text wherever they occur in a vocabulary."""

_TEXTS_OF: dict[str, tuple[str, ...]] = {
    "eot": (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
        "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
"""Special ids that a file need not name, found by the token's text."""

_MAX_SQUARED_LENGTHS = 200_000_000
"""Vocabularies of 256,000 tokens have about 20 million."""

_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclasses.dataclass
class GgufVocab:
    """Tokens with their types, special ids and flags; `make_vocab` fills it."""

    model: str
    pre_name: str
    pre: PreTokenizer
    tokens: list[str]
    """Text of each token as stored: GPT-2's byte alphabet, U+2581 for spaces or escapes, by `model`."""
    ids: dict[str, int]
    types: bytearray
    """NORMAL, CONTROL ... of each token; 0 for a type that does not exist."""
    special: dict[str, int]
    """"bos", "eos", "eot" ... -> id."""
    invalid: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """Bytes of the tokens that are not UTF-8; they match no text, and `tokens` has a made-up name for them."""
    end_ids: tuple[int, ...] = ()
    """Every id that ends a text, the eos first, then ascending."""
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    lowercase: bool = True
    strip_accents: bool = True
    left_stripping: frozenset[int] = frozenset()
    """Special ids that swallow whitespace before them."""
    right_stripping: frozenset[int] = frozenset()

    def is_type(self, token_id: int, *types: int) -> bool:
        """Whether the token has one of `types`."""
        return self.types[token_id] in types

    def ids_of(self, *types: int) -> list[int]:
        """Ids of all tokens of `types`, ascending."""
        return [match.start() for match in re.finditer(b"[" + re.escape(bytes(types)) + b"]", self.types)]


def make_vocab(gguf: GgufFile) -> GgufVocab:
    """The vocabulary of `gguf`. Raises TokenizerError for what llama.cpp refuses, ModelFileError for wrong types."""
    model, pre_name, pre = _read_kind(gguf)
    tokens, invalid = _read_tokens(gguf)
    ids = {text: index for index, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        first = next(index for index, text in enumerate(tokens) if ids[text] != index)
        raise TokenizerError(f"{gguf.path}: token {tokens[first]!r} is there twice ({first} and {ids[tokens[first]]})")
    vocab = GgufVocab(model, pre_name, pre, tokens, ids, read_types(gguf, len(tokens)), {}, invalid)
    _set_flags(vocab, gguf)
    _set_special(vocab, gguf)
    _set_end_ids(vocab)
    _set_stripping(vocab, gguf)
    return vocab


def _read_kind(gguf: GgufFile) -> tuple[str, str, PreTokenizer]:
    model = gguf.get("tokenizer.ggml.model", str)
    if model is None or model in ("none", "no_vocab"):
        raise TokenizerError(
            f"{gguf.path} has no tokenizer (tokenizer.ggml.model is {model!r}); give one with --tokenizer"
        )
    if model not in _SPECIAL_DEFAULTS:
        known = ", ".join(_SPECIAL_DEFAULTS)
        raise TokenizerError(f"{gguf.path}: tokenizer model {model!r} is not supported; supported are {known}")
    if model not in _BPE_MODELS:
        return model, "default", PRE_TOKENIZERS["default"]
    # No name at all is llama.cpp's "default" too (files of 2023); a name it does not know is an error there and here.
    pre_name = "gemma4" if model == "gemma4" else gguf.get("tokenizer.ggml.pre", str) or "default"
    if pre_name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{gguf.path}: pre-tokenizer {pre_name!r} (tokenizer.ggml.pre) is not known, so text would be split "
            f"wrongly; known are {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return model, pre_name, PRE_TOKENIZERS[pre_name]


def _read_tokens(gguf: GgufFile) -> tuple[list[str], dict[int, bytes]]:
    array = gguf.get_strings("tokenizer.ggml.tokens")
    if array is None or not len(array):
        raise TokenizerError(f"{gguf.path} has no tokens (tokenizer.ggml.tokens)")
    tokens = array.decode()
    check_lengths(tokens, str(gguf.path))
    if "" in tokens:
        tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(tokens)]
    invalid: dict[int, bytes] = {}
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        for index, text in enumerate(tokens):
            if any("\ud800" <= char <= "\udfff" for char in text):
                invalid[index] = text.encode("utf-8", "surrogateescape")
                tokens[index] = f"[INVALID_{index}]"
    return tokens, invalid


def check_lengths(tokens: list[str], name: str) -> None:
    """Raises TokenizerError where cutting each token everywhere, as encoders do, would take unbounded time."""
    lengths = list(map(len, tokens))
    if sum(map(operator.mul, lengths, lengths)) > _MAX_SQUARED_LENGTHS:
        longest = max(range(len(tokens)), key=lengths.__getitem__)
        raise TokenizerError(
            f"{name}: tokens are too long to be a vocabulary's; token {longest} has {lengths[longest]} characters"
        )


def read_types(gguf: GgufFile, num_tokens: int) -> bytearray:
    """Token types as the file has them, before `make_vocab` corrects them."""
    array = gguf.get_numbers("tokenizer.ggml.token_type")
    if array is None:
        return bytearray([NORMAL]) * num_tokens
    if len(array) < num_tokens:
        raise TokenizerError(f"{gguf.path}: {len(array)} token types for {num_tokens} tokens")
    return pack_types(array.values()[:num_tokens])


def pack_types(types: Sequence[int]) -> bytearray:
    """`types` as bytes, 0 for those that do not exist."""
    if min(types, default=0) < 0 or max(types, default=0) > BYTE:
        types = [kind if 0 < kind <= BYTE else 0 for kind in types]
    return bytearray(list(types))


def _set_flags(vocab: GgufVocab, gguf: GgufFile) -> None:
    model, pre = vocab.model, vocab.pre
    is_bpe = model in _BPE_MODELS
    bos = pre.add_bos if is_bpe else model in ("llama", "bert")
    sep = pre.add_sep if is_bpe else model == "bert"
    # Gemma 4 files say no begin-of-text and mean the contrary (llama.cpp pull 21500).
    forced = vocab.pre_name in ("gemma4", "granite-embed-multi-311m")
    vocab.add_bos = forced or gguf.get("tokenizer.ggml.add_bos_token", bool, bos)
    vocab.add_eos = gguf.get("tokenizer.ggml.add_eos_token", bool, model == "t5")
    vocab.add_sep = gguf.get("tokenizer.ggml.add_sep_token", bool, sep)
    vocab.add_space_prefix = gguf.get("tokenizer.ggml.add_space_prefix", bool, model == "llama")
    vocab.remove_extra_whitespaces = gguf.get("tokenizer.ggml.remove_extra_whitespaces", bool, False)
    vocab.lowercase = gguf.get("tokenizer.ggml.normalizer.lowercase", bool, True)
    vocab.strip_accents = gguf.get("tokenizer.ggml.normalizer.strip_accents", bool, vocab.lowercase)


def _set_special(vocab: GgufVocab, gguf: GgufFile) -> None:
    special = {name: index for name, index in _SPECIAL_DEFAULTS[vocab.model].items() if index < len(vocab.tokens)}
    if not vocab.pre.has_bos:
        special.pop("bos", None)
    for name in (*_SPECIAL_NAMES, *_OLD_NAMES):
        index = gguf.get(f"tokenizer.ggml.{name}_token_id", int)
        # An id out of range is ignored, as llama.cpp does: real files carry -1 and 4294967295 for "none".
        if index is not None and 0 <= index < len(vocab.tokens):
            special[_OLD_NAMES.get(name, name)] = index
    for name, texts in _TEXTS_OF.items():
        found = [vocab.ids[text] for text in texts if text in vocab.ids]
        if name not in special and found:
            special[name] = found[0]
            vocab.types[found[0]] = CONTROL
    vocab.special = special


def _set_end_ids(vocab: GgufVocab) -> None:
    special, ids = vocab.special, vocab.ids
    by_text = {ids[text] for text in _END_TEXTS if text in ids}
    for index in by_text:
        vocab.types[index] = CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            vocab.types[ids[text]] = USER_DEFINED
    names = ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom")
    ends = by_text | {special[name] for name in names if name in special}
    _drop_false_ends(vocab, ends)
    eos = special.get("eos")
    vocab.end_ids = tuple(sorted(ends, key=lambda index: (index != eos, index)))


def _drop_false_ends(vocab: GgufVocab, ends: set[int]) -> None:
    """Harmony and solar-open end a part, not the answer, with `<|end|>`; gemma 4 and plamo use `</s>` as plain text."""

    def has(*texts: str) -> bool:
        return any(vocab.ids.get(text) in ends for text in texts)

    calls = has("<|call|>", "<|calls|>")
    if has("<|end|>") and calls and has("<|return|>", "<|flush|>"):
        ends.discard(vocab.ids["<|end|>"])
        vocab.types[vocab.ids["<|end|>"]] = USER_DEFINED
    if has("<|tool_response>", "<|plamo:eos|>") and has("</s>"):
        ends.discard(vocab.ids["</s>"])
        vocab.types[vocab.ids["</s>"]] = NORMAL


def _set_stripping(vocab: GgufVocab, gguf: GgufFile) -> None:
    name = (gguf.get("general.name", str) or "").lower()
    pre, architecture = gguf.get("tokenizer.ggml.pre", str) or "", gguf.architecture or ""
    by_pre = any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code"))
    if by_pre or any(part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")):
        vocab.left_stripping = _ids(vocab, ["<mask>"])
    elif "phi-3" in name or "phi3" in name:
        stripping = frozenset(vocab.ids_of(CONTROL, USER_DEFINED, UNKNOWN)) | _ids(vocab, ["</s>"])
        vocab.right_stripping = stripping - _ids(vocab, ["<unk>", "<s>", "<|endoftext|>"])
    elif "modern-bert" in name:
        vocab.left_stripping = _ids(vocab, ["[MASK]"])


def _ids(vocab: GgufVocab, texts: Iterable[str]) -> frozenset[int]:
    return frozenset(vocab.ids[text] for text in texts if text in vocab.ids)
