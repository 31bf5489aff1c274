"""Streaming markdown: the same for every way of cutting the stream, and no character lost or doubled."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.frontends.text_render import MAX_HELD, MarkdownStream, printable

SAMPLE = """# A title
Some *it* and **bold text** and `code x`; 2*3*4, a * b, snake_case, *args and **kw.
- a bullet that is long enough to be wrapped at forty columns
  * nested **b** text
10. number
> quote me
```python
def f(*a):
    return 1 ** 2

```
| a | b |
漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字
*open only
end **bold**"""


def render(*chunks: str, columns: int = 40) -> str:
    out: list[str] = []
    stream = MarkdownStream(out.append, lambda: columns)
    for chunk in chunks:
        stream.push(chunk)
    stream.finish()
    return "".join(out)


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def letters(text: str) -> str:
    return re.sub(r"[\s*`•]|^ *[-+] ", "", text, flags=re.MULTILINE)


def test_styles() -> None:
    assert render("**b** *i* `c`") == "\x1b[1mb\x1b[0m \x1b[3mi\x1b[0m \x1b[36mc\x1b[0m\n"
    assert render("## head") == "\x1b[1;35mhead\x1b[0m\n"
    assert visible(render("- item")) == "• item\n"


@pytest.mark.parametrize(
    "text",
    ["2*3*4 = 24", "a * b * c", "f(*args, **kwargs)", "snake_case_name", "---", "``x``", "a ** b", "1.5", "-5",
     "#hashtag", "***", "**", "*", "`", "C*", "_x_", "5) ", "+1", "  indented"],
)  # fmt: skip
def test_what_is_no_markdown_stays_as_it_is(text: str) -> None:
    assert visible(render(text)).rstrip() == text.rstrip()


def test_code_is_neither_wrapped_nor_read_as_markdown() -> None:
    code = "```\nx = **a** # " + "y" * 100 + "\n  ```not the end\n```\nafter **bold**\n"
    assert visible(render(code)) == code.replace("**bold**", "bold")


def test_long_lines_break_at_spaces_and_bullets_are_indented() -> None:
    lines = visible(render("- " + "word " * 20, columns=20)).splitlines()
    assert max(map(len, lines)) <= 20
    assert lines[0].startswith("• word") and all(line.startswith("  word") for line in lines[1:])


def test_a_word_longer_than_the_line_is_not_lost() -> None:
    assert visible(render("x" * 100)).strip() == "x" * 100


def test_emphasis_that_never_ends_is_released() -> None:
    out: list[str] = []
    stream = MarkdownStream(out.append, lambda: 1000)
    stream.push("**" + "word " * MAX_HELD)
    assert "**word" in "".join(out)


def test_plain_words_are_shown_as_they_come() -> None:
    out: list[str] = []
    stream = MarkdownStream(out.append, lambda: 80)
    for word in ("one ", "two ", "three "):
        stream.push(word)
    assert "".join(out) == "one two three"


def test_control_characters_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\r\nd\te") == "a\ufffd[2Jb\ufffd\ufffdc\nd\te"
    assert "\x1b[2J" not in render("a\x1b[2Jb")


@given(cuts=st.lists(st.integers(1, 12), min_size=1), columns=st.integers(10, 100))
def test_the_way_the_stream_is_cut_changes_nothing(cuts: list[int], columns: int) -> None:
    chunks, at = [], 0
    while at < len(SAMPLE):
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(SAMPLE[at : at + size])
        at += size
    assert render(*chunks, columns=columns) == render(SAMPLE, columns=columns)


@given(text=st.text(alphabet="ab *`#->1.|~_\n漢", max_size=60), columns=st.integers(5, 40))
def test_nothing_is_lost_or_doubled(text: str, columns: int) -> None:
    shown = visible(render(text, columns=columns))
    assert re.sub(r"[^ab漢]", "", shown) == re.sub(r"[^ab漢]", "", text)
    assert render(*text, columns=columns) == render(text, columns=columns)
