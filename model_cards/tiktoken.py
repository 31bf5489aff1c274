"""Tokenizers out of OpenAI's tiktoken ranks and Mistral's tekken.json.

Own both file formats and what a ranks file leaves unsaid: the pattern that splits text and the special tokens, known
for the vocabularies that are published in this form. The merging is the `tokenizers` library's.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model_cards.card import ModelCard
from model_cards.errors import ModelFileError, ModelNotFound, TokenizerError
from model_cards.gguf_tokenizer import FragmentEncoder, VocabDecoder, bpe_json
from model_cards.gguf_vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED, GgufVocab, check_lengths
from model_cards.pretokenizers import PRE_TOKENIZERS, PreTokenizer, cased_words
from model_cards.sentencepiece import read_added_tokens
from model_cards.spm_encoder import merges_by_score
from model_cards.token_pieces import CHAR_OF_BYTE
from model_cards.tokenizer import Tokenizer

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = PreTokenizer(
    (cased_words(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", _CONTRACTIONS, r"\p{N}{1,3}"),)
)


class _Family(NamedTuple):
    """A published vocabulary: how many ranks, how text is split, which special tokens follow the ranks."""

    name: str
    pre: PreTokenizer
    specials: tuple[str, ...]
    is_nfc: bool = False
    """Text is brought to Unicode's composed form first."""


def _llama3_specials() -> tuple[str, ...]:
    named = {
        0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>",
        7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
    }  # fmt: skip
    numbers = iter(range(256))
    return tuple(named.get(n) or f"<|reserved_special_token_{next(numbers)}|>" for n in range(256))


_QWEN_EXTRAS = tuple(f"<|extra_{n}|>" for n in range(205))
_FIM = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_FAMILIES: dict[int, _Family] = {
    50256: _Family("r50k_base", PRE_TOKENIZERS["gpt-2"], ("<|endoftext|>",)),
    100256: _Family("cl100k_base", PRE_TOKENIZERS["dbrx"], ("", *_FIM)),
    128000: _Family("Llama 3", PRE_TOKENIZERS["llama3"], _llama3_specials()),
    151643: _Family(
        "Qwen", PRE_TOKENIZERS["qwen2"], ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_QWEN_EXTRAS), is_nfc=True
    ),
    163584: _Family("Kimi K2", PRE_TOKENIZERS["kimi-k2"], ()),
    199998: _Family("o200k_base", _O200K, ("", "<|endoftext|>")),
}
"""Number of ranks -> what the file does not say; "" is an id that nothing has."""

_TEKKEN_SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""Where the file names none (versions before v7)."""


def load_tiktoken(path: Path, card: ModelCard | None = None) -> Tokenizer:
    """Tokenizer of a ranks file (`TOKEN-IN-BASE64 RANK` a line).

    Special tokens: `tokenizer_config.json` beside it, else those that its family is published with. Raises
    TokenizerError for a vocabulary of no known family, since the file does not say how text is split.
    """
    ranks = _read_ranks(path)
    family = _FAMILIES.get(len(ranks))
    if family is None:
        known = ", ".join(f"{family.name} ({size})" for size, family in _FAMILIES.items())
        raise TokenizerError(
            f"{path} has {len(ranks)} ranks, which is no vocabulary known here, and the file does not say "
            f"how text is split; known are {known}; a tokenizer.json says it"
        )
    added = read_added_tokens(path.parent)
    specials = {len(ranks) + n: (text, True) for n, text in enumerate(family.specials) if text}
    return _make_tokenizer(ranks, family.pre, added or specials, card, is_nfc=family.is_nfc)


def load_tekken(path: Path, card: ModelCard | None = None) -> Tokenizer:
    """Tokenizer of a `tekken.json`: special tokens have the first ids, ranks follow."""
    try:
        whole = json.loads(_read(path))
        config = whole["config"]
        num_specials = int(config["default_num_special_tokens"])
        num_ranks = int(config["default_vocab_size"]) - num_specials
        entries = whole["vocab"][:num_ranks]
        ranks = {base64.b64decode(entry["token_bytes"]): int(entry["rank"]) + num_specials for entry in entries}
        pre = PreTokenizer((str(config["pattern"]),), ignore_merges=True)
        specials = _tekken_specials(whole.get("special_tokens"), num_specials)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path} is not a tekken.json that can be read: {error!r}") from error
    bos_and_eos = card or ModelCard(name="", source="", bos_token_id=1, eos_token_ids=(2,), add_bos=True)
    return _make_tokenizer(ranks, pre, specials, bos_and_eos)


def _tekken_specials(listed: Iterable[Mapping[str, Any]] | None, count: int) -> dict[int, tuple[str, bool]]:
    names = {
        int(token["rank"]): (str(token["token_str"]), bool(token.get("is_control", True))) for token in listed or ()
    }
    if not names:
        names = {n: (text, True) for n, text in enumerate(_TEKKEN_SPECIALS)}
    return {n: names.get(n, (f"<SPECIAL_{n}>", True)) for n in range(count)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelFileError(f"{path} line {number} is not a base64 token and a rank: {line[:60]!r}") from None
    if not ranks:
        raise ModelFileError(f"{path} holds no ranks")
    if max(ranks.values()) > 2 * len(ranks) + 100_000 or min(ranks.values()) < 0:
        raise ModelFileError(
            f"{path} has ranks from {min(ranks.values())} to {max(ranks.values())} for {len(ranks)} tokens"
        )
    return ranks


def _make_tokenizer(
    ranks: dict[bytes, int],
    pre: PreTokenizer,
    added: dict[int, tuple[str, bool]],
    card: ModelCard | None,
    is_nfc: bool = False,
) -> Tokenizer:
    pre = pre._replace(ignore_merges=True)
    texts = {"".join(map(CHAR_OF_BYTE.__getitem__, token)): rank for token, rank in ranks.items()}
    check_lengths(list(texts), "the ranks file")
    vocab = _make_vocab(texts, pre, added)
    library = _make_library(texts, pre, is_nfc)

    def encode(text: str, _: bool) -> list[int]:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    bos = card.bos_token_id if card is not None else None
    ends = card.eos_token_ids if card is not None else ()
    return Tokenizer(
        encoder=FragmentEncoder(vocab, encode),
        decoder=VocabDecoder(vocab),
        vocab_size=len(vocab.tokens),
        special_ids=vocab.ids_of(CONTROL),
        bos_token_id=bos,
        eos_token_ids=ends,
        prefix_ids=[bos] if bos is not None and card is not None and card.add_bos else [],
        suffix_ids=ends[:1] if card is not None and card.add_eos else [],
        make_json=lambda: bpe_json(library, vocab),
    )


def _make_vocab(texts: dict[str, int], pre: PreTokenizer, added: dict[int, tuple[str, bool]]) -> GgufVocab:
    size = max([*texts.values(), *added]) + 1
    tokens, types = [f"[UNUSED_{n}]" for n in range(size)], bytearray([UNUSED]) * size
    for text, rank in texts.items():
        tokens[rank], types[rank] = text, NORMAL
    for index, (text, is_special) in added.items():
        tokens[index], types[index] = text, CONTROL if is_special else USER_DEFINED
    return GgufVocab("gpt2", "", pre, tokens, {text: index for index, text in enumerate(tokens)}, types, {})


def _make_library(texts: dict[str, int], pre: PreTokenizer, is_nfc: bool) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    scores = [0.0] * (max(texts.values()) + 1)
    for rank in texts.values():
        scores[rank] = -float(rank)
    library = Tokenizer(models.BPE(texts, merges_by_score(texts, scores), ignore_merges=True))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    if is_nfc:
        library.normalizer = normalizers.NFC()
    return library
