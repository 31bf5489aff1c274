"""Encoders of vocabularies that few decoder models have: RWKV, T5, PLaMo 2, BERT."""

from __future__ import annotations

import struct

import pytest

from model_cards.charsmap import Charsmap
from model_cards.errors import TokenizerError
from model_cards.gguf_vocab import BYTE, NORMAL, UNKNOWN, USER_DEFINED
from model_cards.longest_match_encoder import LongestMatchEncoder
from model_cards.token_pieces import alphabet_bytes, unescape
from model_cards.unigram_encoder import LeastCostEncoder, UnigramEncoder
from model_cards.wordpiece_encoder import WordPieceEncoder


def test_rwkv_takes_the_longest_token() -> None:
    tokens = [b"<s>", b"a", b"ab", b"abcd", b"\xc3", b"\xa9", b" "]
    encoder = LongestMatchEncoder(tokens, unknown_id=0)
    assert encoder.encode("abcabcd") == [2, 0, 3]
    assert encoder.encode("é a") == [4, 5, 6, 1]


def test_rwkv_escapes() -> None:
    assert unescape(r"\t\n\x00\xff\\a") == b"\t\n\x00\xff\\a"


def test_bytes_of_the_alphabet() -> None:
    assert alphabet_bytes("Ġthe") == b" the"
    # Characters outside the alphabet stand for themselves, a space and a soft hyphen too.
    assert alphabet_bytes("a b\xad漢") == "a b\xad漢".encode()


def unigram(**changes: object) -> UnigramEncoder:
    tokens = ["<unk>", "\u2581", "a", "b", "\u2581a", "ab", "<x>"]
    types = [UNKNOWN, *[NORMAL] * 5, USER_DEFINED]
    scores = [0.0, -2.0, -2.0, -2.0, -3.0, -1.0, 0.0]
    options = {"unknown_id": 0, "charsmap": b"", "add_space_prefix": True, "merge_spaces": True} | changes
    return UnigramEncoder(tokens, types, scores, **options)  # type: ignore[arg-type]


def test_unigram_sums_scores_and_joins_unknowns() -> None:
    assert unigram().encode("ab") == [1, 5]
    assert unigram().encode("a  aé漢b") == [4, 4, 0, 3]
    assert unigram(merge_spaces=False).encode("  a") == [1, 1, 4]
    assert unigram(add_space_prefix=False, merge_spaces=False).encode("a") == [2]
    assert unigram().encode("") == [] and unigram().encode("   ") == []


def test_unigram_spells_unknowns_in_bytes() -> None:
    assert unigram(byte_ids=range(1000, 1256)).encode("aé") == [4, 1000 + 0xC3, 1000 + 0xA9]


def test_plamo2_prefers_cheap_and_spells_the_rest() -> None:
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab", "abb"]
    types = [UNKNOWN, UNKNOWN, *[BYTE] * 256, *[NORMAL] * 4]
    encoder = LeastCostEncoder(tokens, types, [-9.0] * 258 + [-1.0, -1.0, -1.5, -9.0])
    assert encoder.encode("abb") == [260, 259]
    assert encoder.encode("\ufeffaé") == [258, 2 + 0xC3, 2 + 0xA9]
    assert encoder.encode("") == []


def test_wordpiece_words_and_matches() -> None:
    ids = {text: n for n, text in enumerate(["[UNK]", "\u2581hel", "lo", "\u2581,", "\u2581世", "\u2581界", "\u2581e"])}
    encoder = WordPieceEncoder(ids, 0, lowercase=True, strip_accents=True)
    assert encoder.encode("Hello, HELLO") == [1, 2, 3, 1, 2]
    assert encoder.encode("世界\t é\0") == [4, 5, 6]
    assert encoder.encode("hellx") == [0]
    assert WordPieceEncoder(ids, 0, lowercase=False, strip_accents=False).encode("Hello") == [0]


def charsmap(size: int, units: list[int], replacements: bytes) -> bytes:
    return struct.pack("<I", size) + struct.pack(f"<{len(units)}I", *units) + replacements


def test_charsmap_replaces_prefixes() -> None:
    # Root's base is 0; "A" is at 0x41, a leaf whose value is at 0x41 ^ 1.
    units = [0] * 0x100
    units[0x41] = 0x41 | 1 << 8 | 1 << 10
    units[0x40] = 0
    assert Charsmap(charsmap(len(units) * 4, units, b"aa\0")).normalize("xAé") == "xaaé"
    assert Charsmap(charsmap(len(units) * 4, units, b"aa\0"), kept=["<A>"]).normalize("<A>A") == "<A>aa"


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"\1\0", "claims a trie"),
        (charsmap(1 << 31, [0], b""), "claims a trie"),
        (charsmap(4, [0x3FF << 10], b"\0"), "outside its trie"),
        (bytes(9 << 20), "at most"),
    ],
)
def test_hostile_charsmaps(blob: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Charsmap(blob).normalize("abc")
