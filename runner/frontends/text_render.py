"""Streaming markdown for a terminal: text is styled and wrapped as it comes, and nothing is ever drawn twice.

No cursor is moved, so a resize, a long answer or a scrolled window cannot lose or duplicate text. What is held back:
the word being written, a line's first marks until they tell what the line is, and an emphasis until its end is seen
(it is released as it stands if the line ends first, or if it grows too long). Knows no model and no prompt.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

from prompt_toolkit.utils import get_cwidth

BOLD, ITALIC, CODE, DIM, HEADING = "1", "3", "36", "2", "1;35"
MAX_HELD = 160
"""Characters of an unfinished emphasis that are held back at most."""
_UNDECIDED = re.compile(r"[ \t]{0,12}(?:#{1,6}|[-*+_]{1,3}|\d{1,9}[.)]?|`{1,2}|~{1,2})?")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#{1,6} ")
_BULLET = re.compile(r"([ \t]*)[-*+] ")
_NUMBER = re.compile(r"[ \t]*\d{1,9}[.)] ")
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")
_MARK = re.compile(r"[*`]")
_SPAN = re.compile(r"\*\*(?=[^\s*])(.+?)(?<![\s*])\*\*(?!\*)|`([^`]+)`|\*(?=[^\s*])([^*]+?)(?<!\s)\*(?!\*)")
_STYLES = (BOLD, CODE, ITALIC)


def printable(text: str) -> str:
    """Text without control characters: a model must not steer the terminal. Newline and tab stay."""
    return text.replace("\r\n", "\n").translate(_CONTROL)


class Wrapper:
    """Writes words, breaking lines at spaces. `columns()` is asked at every break, so a resize just works."""

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int]) -> None:
        self._write = write
        self._columns = columns
        self._column = 0
        self._spaces = 0
        self._word: list[tuple[str, str]] = []
        self.indent = 0
        """Columns by which continuation lines are indented."""

    def put(self, text: str, style: str = "") -> None:
        """Add text without newlines."""
        for character in text:
            if character in " \t":
                self.flush()
                self._spaces += 1 if character == " " else 4
            elif get_cwidth(character) > 1:
                # Scripts without spaces: a line may break at every character.
                self.flush()
                self._word.append((character, style))
                self.flush()
            else:
                self._word.append((character, style))

    def flush(self) -> None:
        """Write the word that is held back."""
        if not self._word:
            return
        width = sum(max(get_cwidth(character), 0) for character, _ in self._word)
        if self._column + self._spaces + width > self._columns() and self._column > self.indent:
            self._write("\n" + " " * self.indent)
            self._column, self._spaces = self.indent, 0
        self._write(" " * self._spaces + _styled(self._word))
        self._column += self._spaces + width
        self._spaces = 0
        self._word = []

    def raw(self, text: str, style: str = "") -> None:
        """Write without breaking: code and tables."""
        self.flush()
        self._write(" " * self._spaces + (f"\x1b[{style}m{text}\x1b[0m" if style and text else text))
        self._column += self._spaces + get_cwidth(text)
        self._spaces = 0

    def newline(self) -> None:
        """End the line."""
        self.flush()
        self._write("\n")
        self._column = self._spaces = self.indent = 0

    @property
    def at_line_start(self) -> bool:
        return self._column == 0 and not self._word


def _styled(word: list[tuple[str, str]]) -> str:
    """Characters with their styles, as few escapes as it takes."""
    out: list[str] = []
    current = ""
    for character, style in word:
        if style != current:
            out.append(("\x1b[0m" if current else "") + (f"\x1b[{style}m" if style else ""))
            current = style
        out.append(character)
    return "".join(out) + ("\x1b[0m" if current else "")


class MarkdownStream:
    """Feed it text as it comes with `push`, and call `finish` at the end."""

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int] | None = None) -> None:
        self._out = Wrapper(write, columns or (lambda: shutil.get_terminal_size().columns))
        self._line = self._start_of_line
        self._held = ""
        """Characters of this line that are not decided yet."""
        self._previous = ""
        self._line_style = ""
        self._fence = ""

    def push(self, text: str) -> None:
        """Show more text."""
        for character in printable(text):
            if character == "\n":
                self._end_line()
            else:
                self._line(character)

    def finish(self) -> None:
        """Show what is held back, and end the last line."""
        if self._held or not self._out.at_line_start:
            self._end_line()

    def _end_line(self) -> None:
        if self._line == self._start_of_line and self._fence and self._held.strip().strip(self._fence[0]) == "":
            self._close_fence()
        else:
            self._finish_line()
        self._out.newline()
        self._held = self._previous = self._line_style = ""
        self._line = self._start_of_line

    def _finish_line(self) -> None:
        if self._line == self._inline:
            self._settle(final=True)
        elif self._fence:
            self._out.raw(self._held, CODE)
        else:
            self._out.put(self._held, self._line_style)

    def _close_fence(self) -> None:
        """The line is blank or only fence marks; three or more of them end the code."""
        if len(self._held.strip()) >= 3:
            self._fence = ""
            self._out.raw(self._held, DIM)
        else:
            self._out.raw(self._held, CODE)

    def _start_of_line(self, character: str) -> None:
        """Gather the first characters until they tell what kind of line this is."""
        self._held += character
        if self._fence:
            if self._held.strip().strip(self._fence[0]) == "":
                return
            lead, self._held = self._held, ""
            self._line = self._code
            self._out.raw(lead, CODE)
            return
        if fence := _FENCE.match(self._held):
            lead, self._held = self._held, ""
            self._fence = fence.group(1)
            self._line = self._fence_info
            self._out.raw(lead, DIM)
        elif not _UNDECIDED.fullmatch(self._held):
            self._decide()

    def _decide(self) -> None:
        lead, self._held = self._held, ""
        self._line = self._inline
        if _HEADING.fullmatch(lead):
            self._line_style = HEADING
        elif bullet := _BULLET.fullmatch(lead):
            self._out.put(bullet.group(1) + "• ")
            self._out.indent = len(bullet.group(1).expandtabs(4)) + 2
        elif _NUMBER.fullmatch(lead):
            self._out.put(lead)
            self._out.indent = len(lead.expandtabs(4))
        elif lead.lstrip().startswith("|"):
            self._line = self._table
            self._out.raw(lead)
        elif lead.lstrip().startswith(">"):
            self._out.put(lead, DIM)
            self._line_style = ITALIC
        else:
            for character in lead:
                self._inline(character)

    def _fence_info(self, character: str) -> None:
        self._out.raw(character, DIM)

    def _code(self, character: str) -> None:
        self._out.raw(character, CODE)

    def _table(self, character: str) -> None:
        self._out.raw(character)

    def _inline(self, character: str) -> None:
        """Text with emphasis. An opening mark is held back, with what follows, until its closing mark comes."""
        if self._held or character in "*`":
            self._held += character
            self._settle(final=False)
            return
        self._plain(character)

    def _plain(self, text: str, style: str = "") -> None:
        self._out.put(text, style or self._line_style)
        self._previous = text[-1:] or self._previous

    def _settle(self, *, final: bool) -> None:
        """Release as much of the held text as is decided; all of it if the line is over."""
        while self._held:
            marks = len(self._held) - len(self._held.lstrip(self._held[0]))
            span = _SPAN.match(self._held)
            if self._held[0] not in "*`":
                at = _MARK.search(self._held)
                self._release(at.start() if at else len(self._held))
            elif span and not self._opens(marks):
                self._release(marks)
            elif span and (final or span.end() < len(self._held) or self._held[0] == "`"):
                self._held = self._held[span.end() :]
                self._plain(span.group(span.lastindex or 0), _STYLES[(span.lastindex or 1) - 1])
            elif not final and (span or marks == len(self._held) or self._opens(marks)) and len(self._held) <= MAX_HELD:
                return
            else:
                self._release(marks)

    def _release(self, length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        self._plain(text)

    def _opens(self, marks: int) -> bool:
        """Whether the marks that begin the held text can open an emphasis: 2*3*4 and `a * b` do not."""
        following = self._held[marks : marks + 1]
        if self._held[0] == "`":
            return marks == 1
        return marks <= 2 and not following.isspace() and not (marks == 1 and self._previous.isalnum())
