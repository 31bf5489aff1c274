"""Tokenizer out of a GGUF file's vocabulary, with the ids that llama.cpp gives.

Owns the choice of encoder by `tokenizer.ggml.model` and the joining of fragments between special tokens
(`llama_vocab::impl::tokenize`, src/llama-vocab.cpp). Reads vocabularies through GgufVocab only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_cards.card import ModelCard
from model_cards.errors import TokenizerError
from model_cards.gguf import GgufFile
from model_cards.gguf_vocab import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, GgufVocab, make_vocab, read_types
from model_cards.library_encode import encode_ids
from model_cards.pretokenizers import PreTokenizer
from model_cards.special_splitter import SpecialSplitter
from model_cards.spm_encoder import SPACE, SpmEncoder
from model_cards.token_pieces import alphabet_bytes, byte_token, raw_bytes, spaced_bytes, unescape
from model_cards.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

EncodeFragment = Callable[[str, bool], list[int]]
"""(text between special tokens, whether a special token or nothing is before it) -> ids."""

_NEWLINES = re.compile(r"(\n+)")


def load(path: Path, card: ModelCard | None = None) -> Tokenizer:
    """Tokenizer of the GGUF file at `path`."""
    with GgufFile.open(path) as gguf:
        return make_tokenizer(gguf)


def make_tokenizer(gguf: GgufFile) -> Tokenizer:
    """Tokenizer out of `gguf`'s metadata; does not need the file any more when it returns."""
    vocab = make_vocab(gguf)
    fragment, make_json = _make_encoder(vocab, gguf)
    special = vocab.special
    prefix = [special["bos"]] if vocab.add_bos and "bos" in special else []
    suffix = [special["eos"]] if vocab.add_eos and "eos" in special else []
    if vocab.model == "bert":
        suffix = [special["seperator"]] if "seperator" in special else []
    return Tokenizer(
        encoder=FragmentEncoder(vocab, fragment),
        decoder=VocabDecoder(vocab),
        vocab_size=len(vocab.tokens),
        special_ids=vocab.ids_of(CONTROL, UNKNOWN),
        bos_token_id=special.get("bos"),
        eos_token_ids=vocab.end_ids,
        prefix_ids=prefix,
        suffix_ids=suffix,
        strips_first_space=vocab.add_space_prefix or vocab.model == "bert",
        make_json=make_json,
    )


class FragmentEncoder:
    """Cuts a text at special tokens and encodes what is between them."""

    def __init__(self, vocab: GgufVocab, fragment: EncodeFragment, inline_ids: Collection[int] = ()) -> None:
        """`fragment` encodes the text between special tokens; after `inline_ids` a text goes on, it does not begin."""
        self._fragment, self._inline = fragment, frozenset(inline_ids)
        # User-defined tokens are always read; control tokens and the unknown token only where that is asked for.
        self._plain = self._make_splitter(vocab, USER_DEFINED)
        self._special = self._make_splitter(vocab, USER_DEFINED, CONTROL, UNKNOWN)

    @staticmethod
    def _make_splitter(vocab: GgufVocab, *types: int) -> SpecialSplitter:
        tokens = {vocab.tokens[index]: index for index in vocab.ids_of(*types)}
        return SpecialSplitter(tokens, vocab.left_stripping, vocab.right_stripping)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """See tokenizer.Encoder."""
        splitter = self._special if parse_special else self._plain
        ids: list[int] = []
        is_after_special = True
        for fragment in splitter.split(text):
            if isinstance(fragment, int):
                ids.append(fragment)
                is_after_special = fragment not in self._inline
            else:
                ids.extend(self._fragment(fragment, is_after_special))
                is_after_special = False
        return ids


class VocabDecoder:
    """Texts and bytes of a GgufVocab's tokens (`token_to_piece`, src/llama-vocab.cpp)."""

    def __init__(self, vocab: GgufVocab) -> None:
        """Keeps `vocab`'s token list."""
        self._tokens, self._types, self._invalid = vocab.tokens, vocab.types, vocab.invalid
        is_spaced = vocab.model in ("llama", "bert", "t5") or vocab.pre.is_raw
        self._normal = spaced_bytes if is_spaced else alphabet_bytes
        if vocab.model == "rwkv":
            self._normal = unescape
        elif vocab.model == "plamo2":
            self._normal = raw_bytes

    def token_text(self, token_id: int) -> str:
        """See tokenizer.Decoder."""
        return self._tokens[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        """See tokenizer.Decoder. Unused tokens add nothing."""
        if token_id in self._invalid:
            return self._invalid[token_id]
        text, kind = self._tokens[token_id], self._types[token_id]
        if kind == NORMAL:
            return self._normal(text)
        if kind == BYTE:
            return byte_token(text)
        return raw_bytes(text) if kind in (CONTROL, UNKNOWN, USER_DEFINED) else b""


def _make_encoder(vocab: GgufVocab, gguf: GgufFile) -> tuple[EncodeFragment, Callable[[], str] | None]:
    if vocab.model in ("gpt2", "gemma4"):
        return _make_bpe(vocab, gguf)
    if vocab.model == "llama":
        return _make_spm(vocab, gguf)
    if vocab.model == "bert":
        from model_cards.wordpiece_encoder import WordPieceEncoder

        unknown = vocab.special.get("unknown", 0)
        words = WordPieceEncoder(vocab.ids, unknown, lowercase=vocab.lowercase, strip_accents=vocab.strip_accents)
        return (lambda text, _: words.encode(text)), None
    return _make_rare(vocab, gguf), None


def _make_rare(vocab: GgufVocab, gguf: GgufFile) -> EncodeFragment:
    from model_cards.longest_match_encoder import LongestMatchEncoder
    from model_cards.unigram_encoder import LeastCostEncoder, UnigramEncoder

    if vocab.model == "rwkv":
        rwkv = LongestMatchEncoder([unescape(text) for text in vocab.tokens], vocab.special.get("unknown", 0))
        return lambda text, _: rwkv.encode(text)
    scores = read_scores(gguf, len(vocab.tokens))
    # llama.cpp builds these two before it corrects the types of end tokens.
    types = read_types(gguf, len(vocab.tokens))
    if vocab.model == "plamo2":
        plamo = LeastCostEncoder(vocab.tokens, types, scores)
        return lambda text, _: plamo.encode(text)
    charsmap = gguf.get_numbers("tokenizer.ggml.precompiled_charsmap")
    unigram = UnigramEncoder(
        vocab.tokens,
        types,
        scores,
        unknown_id=vocab.special.get("unknown", 2),
        charsmap=charsmap.raw() if charsmap is not None else b"",
        add_space_prefix=vocab.add_space_prefix,
        merge_spaces=vocab.remove_extra_whitespaces,
    )
    return lambda text, _: unigram.encode(text)


def _make_spm(vocab: GgufVocab, gguf: GgufFile) -> tuple[EncodeFragment, Callable[[], str]]:
    scores = read_scores(gguf, len(vocab.tokens))
    encoder = SpmEncoder(vocab.ids, scores, vocab.special.get("unknown", 0), None)
    prefix = SPACE if vocab.add_space_prefix else ""

    def encode(text: str, is_after_special: bool) -> list[int]:
        text = text.replace(" ", SPACE)
        return encoder.encode(prefix + text if is_after_special else text)

    return encode, lambda: spm_json(encoder.model, vocab)


def _make_bpe(vocab: GgufVocab, gguf: GgufFile) -> tuple[EncodeFragment, Callable[[], str]]:
    model = _make_bpe_model(vocab, _read_merges(gguf, vocab))

    def encode(text: str, _: bool) -> list[int]:
        return encode_ids(model, text)

    if not vocab.pre.is_raw:
        vocab.ids = {}  # the library has its own copy; ten megabytes at 128,000 tokens
        return encode, lambda: bpe_json(model, vocab)
    keeps_newlines = vocab.pre_name != "sarvam-moe"

    def encode_raw(text: str, _: bool) -> list[int]:
        ids: list[int] = []
        for piece in filter(None, _NEWLINES.split(text.replace(" ", SPACE))):
            token = vocab.ids.get(piece) if keeps_newlines and piece[0] == "\n" else None
            ids.extend([token] if token is not None else encode_ids(model, piece))
        return ids

    return encode_raw, lambda: spm_json(model, vocab)


def _read_merges(gguf: GgufFile, vocab: GgufVocab) -> list[tuple[str, str]]:
    array = gguf.get_strings("tokenizer.ggml.merges")
    if array is None:
        if vocab.pre_name == "kimi-k2":
            return []
        raise TokenizerError(f"{gguf.path} has no merges (tokenizer.ggml.merges), which its byte-pair vocabulary needs")
    return array.decode_pairs()


def _make_bpe_model(vocab: GgufVocab, merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    options: dict[str, Any] = {"ignore_merges": vocab.pre.ignore_merges, "byte_fallback": vocab.pre.is_raw}
    ids = vocab.ids
    try:
        model = models.BPE(ids, merges, **options)
    except Exception as error:  # the library raises Exception itself for a merge whose parts or product are no tokens
        merges = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
        if not merges:
            raise TokenizerError(f"its merges do not fit its tokens: {error}") from error
        model = models.BPE(ids, merges, **options)
    tokenizer = Tokenizer(model)
    if not vocab.pre.is_raw:
        tokenizer.pre_tokenizer = make_pre_tokenizer(vocab.pre)
    return tokenizer


def make_pre_tokenizer(pre: PreTokenizer) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The `tokenizers` form of one row of the table."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.dated_patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def read_scores(gguf: GgufFile, num_tokens: int) -> list[float]:
    """A score for each token; zeros where the file has none, as in llama.cpp."""
    array = gguf.get_numbers("tokenizer.ggml.scores")
    if array is None:
        return [0.0] * num_tokens
    if len(array) < num_tokens:
        raise TokenizerError(f"{gguf.path}: {len(array)} scores for {num_tokens} tokens")
    return [float(score) for score in array.values()[:num_tokens]]


def bpe_json(model: tokenizers.Tokenizer, vocab: GgufVocab) -> str:
    """tokenizer.json of a byte-level BPE vocabulary, special tokens included."""
    return _json(
        model, vocab, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    )


def spm_json(model: tokenizers.Tokenizer, vocab: GgufVocab) -> str:
    """tokenizer.json of a vocabulary with U+2581 for spaces, special tokens included."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if vocab.add_space_prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if vocab.add_space_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {"type": "Sequence", "normalizers": [*prepend, replace]}
    return _json(model, vocab, {"type": "Sequence", "decoders": decoders}, normalizer)


def _json(model: tokenizers.Tokenizer, vocab: GgufVocab, decoder: dict[str, Any], normalizer: Any = None) -> str:
    whole = json.loads(model.to_str())
    whole["decoder"], whole["normalizer"] = decoder, normalizer
    whole["added_tokens"] = [
        {
            "id": index,
            "content": vocab.tokens[index],
            "single_word": False,
            "lstrip": index in vocab.left_stripping,
            "rstrip": index in vocab.right_stripping,
            "normalized": False,
            "special": vocab.types[index] != USER_DEFINED,
        }
        for index in vocab.ids_of(CONTROL, USER_DEFINED, UNKNOWN)
    ]
    return json.dumps(whole, ensure_ascii=False)
