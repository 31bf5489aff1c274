"""SpecialSplitter: longest token first, over the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model_cards.special_splitter import Fragment, SpecialSplitter


def naive(text: str, tokens: dict[str, int]) -> list[Fragment]:
    """llama.cpp's loop, word for word: for each token, longest first, cut every fragment."""
    fragments: list[Fragment] = [text] if text else []
    for token in sorted(tokens, key=lambda token: (-len(token), token)):
        cut: list[Fragment] = []
        for fragment in fragments:
            while isinstance(fragment, str) and token in fragment:
                left, fragment = fragment.split(token, 1)
                cut += [left] if left else []
                cut.append(tokens[token])
            cut += [fragment] if fragment != "" else []
        fragments = cut
    return fragments


def test_longest_first_even_when_another_begins_before_it() -> None:
    assert SpecialSplitter({"ab": 1, "bcd": 2}).split("abcd") == ["a", 2]
    assert SpecialSplitter({"<a>": 1, "<a><b>": 2}).split("<a><b><a>") == [2, 1]


def test_no_tokens_and_no_text() -> None:
    assert SpecialSplitter({}).split("x") == ["x"]
    assert SpecialSplitter({}).split("") == [] and SpecialSplitter({"a": 1}).split("") == []


def test_stripping() -> None:
    splitter = SpecialSplitter({"<l>": 1, "<r>": 2}, left_stripping=[1], right_stripping=[2])
    assert splitter.split("a \n<l> b<r> \tc") == ["a", 1, " b", 2, "c"]
    assert splitter.split(" <l><r> ") == [1, 2]


@given(
    st.text("ab<>| ", max_size=30),
    st.sets(st.text("ab<>| ", min_size=1, max_size=4), min_size=1, max_size=6),
)
def test_same_as_the_plain_loop(text: str, tokens: set[str]) -> None:
    numbered = {token: n for n, token in enumerate(sorted(tokens))}
    lengths = [len(token) for token in tokens]
    got = SpecialSplitter(numbered).split(text)
    if len(set(lengths)) == len(lengths):  # among tokens of one length the order is not defined
        assert got == naive(text, numbered)
    by_id = {n: token for token, n in numbered.items()}
    assert "".join(part if isinstance(part, str) else by_id[part] for part in got) == text
