from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.stops import StopMatcher, StopStrings


def run(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    matcher = StopMatcher(StopStrings(stops), include=include)
    shown: list[str] = []
    for piece in pieces:
        shown.append(matcher.push(piece))
        if matcher.found is not None:
            return shown, matcher.found
    return [*shown, matcher.flush()], None


def test_a_partial_stop_string_is_held_back_and_released() -> None:
    assert run(["END"], ["a E", "N", "x", "E"]) == (["a ", "", "ENx", "", "E"], None)


def test_a_stop_string_over_three_pieces_is_cut() -> None:
    assert run(["END"], ["a E", "N", "Dxyz", "never"]) == (["a ", "", ""], "END")


def test_the_stop_string_can_be_kept() -> None:
    assert run(["END"], ["a E", "NDxyz"], include=True) == (["a ", "END"], "END")


def test_a_restart_inside_a_partial_match() -> None:
    assert run(["aab"], ["aa", "ab", "c"]) == (["", "a"], "aab")


def test_the_first_complete_match_wins_and_of_two_the_longer() -> None:
    assert run(["abcd", "bc"], ["xabcd"]) == (["xa"], "bc")
    assert run(["bc", "abc"], ["xabcd"]) == (["x"], "abc")


def test_held_text_of_another_stop_string_is_shown_before_a_match() -> None:
    assert run(["abcx", "cy"], ["ab", "cy"]) == (["", "ab"], "cy")


@pytest.mark.parametrize("special", ["]", "^", "-", "\\", "[", ".*", "\n", "é", "😀"])
def test_any_character_can_begin_a_stop_string(special: str) -> None:
    assert run([special], ["a" + special + "b"]) == (["a"], special)


text = st.text(alphabet="abc", max_size=30)


def naive(stops: list[str], whole: str) -> tuple[str, str | None]:
    """Character by character, with str.endswith."""
    for end in range(1, len(whole) + 1):
        found = [stop for stop in stops if whole[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return whole[: end - len(longest)], longest
    return whole, None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=5), st.lists(text, max_size=8))
def test_equals_the_naive_search_however_the_text_is_cut(stops: list[str], pieces: list[str]) -> None:
    shown, found = run(stops, pieces)
    assert ("".join(shown), found) == naive(stops, "".join(pieces))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(text, max_size=8))
def test_nothing_shown_is_ever_part_of_a_later_match_and_nothing_harmless_is_held(
    stops: list[str], pieces: list[str]
) -> None:
    matcher = StopMatcher(StopStrings(stops))
    so_far = shown = ""
    for piece in pieces:
        so_far += piece
        shown += matcher.push(piece)
        if matcher.found is not None:
            break
        held = so_far[len(shown) :]
        tails = [so_far[start:] for start in range(len(so_far))]
        can_begin = [tail for tail in tails if any(stop.startswith(tail) for stop in stops)]
        assert held == max(can_begin, key=len, default="")


def test_ten_thousand_stop_strings_are_searched_at_once() -> None:
    matcher = StopMatcher(StopStrings([f"<stop {number}>" for number in range(10_000)]))
    started = time.monotonic()
    for _ in range(20_000):
        matcher.push("a < b <st")
    assert time.monotonic() - started < 10, "one pass over the text, not one for each stop string"
    matcher.push("op 77")
    assert matcher.found is None
    matcher.push("77> and more")
    assert matcher.found == "<stop 7777>"
