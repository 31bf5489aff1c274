"""SpmEncoder: the fast way and the exact way give the same ids."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from model_cards.spm_encoder import SPACE, SpmEncoder, merges_by_score

_PIECES = st.text(f"ab{SPACE}", min_size=2, max_size=5)


def encoder(pieces: dict[str, float]) -> SpmEncoder:
    bytes_first = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", *bytes_first, *pieces]
    scores = [0.0] * 257 + list(pieces.values())
    return SpmEncoder({text: index for index, text in enumerate(tokens)}, scores, 0, None)


def test_merges_are_in_order_of_score() -> None:
    ids = {"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4}
    assert merges_by_score(ids, [0, 0, -2.0, -1.0, -3.0]) == [("b", "a"), ("a", "b"), ("a", "ba"), ("ab", "a")]


def test_leftmost_of_equal_scores_wins() -> None:
    spm = encoder({"a": 0.0, "b": 0.0, "c": 0.0, "bc": -1.0, "ab": -1.0})
    assert [spm.encode("abc"), spm.encode("bcab")] == [spm.encode_exactly("abc"), spm.encode_exactly("bcab")]
    assert spm.encode("abc") == [261, 259]


def test_characters_without_a_token_are_bytes_or_joined_by_score() -> None:
    spm = encoder({"a": 0.0, "éa": -1.0})
    assert spm.encode("é") == [1 + 0xC3, 1 + 0xA9]
    assert spm.encode("éa") == [258]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(_PIECES, st.sampled_from([-1.0, -2.0, -3.0, -4.0, -1e9]), max_size=12),
    st.lists(st.text(f"abé{SPACE}", max_size=25), min_size=1, max_size=5),
)
def test_fast_is_exact(pieces: dict[str, float], texts: list[str]) -> None:
    spm = encoder({"a": -5.0, "b": -6.0, SPACE: -7.0} | pieces)
    for text in texts:
        assert spm.encode(text) == spm.encode_exactly(text)
