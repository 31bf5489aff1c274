"""in=text through a real pseudo-terminal, and over a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "tests.runner.frontends.text_program"]
_BOUND_S = 30.0


class Terminal:
    """A program on a pty: type with `send`, and `expect` what must appear next."""

    def __init__(self, arguments: list[str], **env: str) -> None:
        self.fd, child = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            arguments,
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "xterm-256color", **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(child)
        self.output = ""
        self._seen = 0

    def send(self, text: str) -> None:
        """Type."""
        os.write(self.fd, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """A new window size; the kernel sends SIGWINCH."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, pattern: str) -> str:
        """Wait for a pattern in what came since the last match, escapes taken out; returns the text up to its end."""
        until = time.monotonic() + _BOUND_S
        while time.monotonic() < until:
            fresh = _plain(self.output)[self._seen :]
            if found := re.search(pattern, fresh):
                self._seen += found.end()
                return fresh[: found.end()]
            if not self._read(0.2):
                break
        raise AssertionError(f"no {pattern!r} in {_plain(self.output)[self._seen :]!r}")

    def _read(self, timeout_s: float) -> bool:
        if select.select([self.fd], [], [], timeout_s)[0]:
            try:
                fresh = os.read(self.fd, 65536).decode("utf-8", "replace")
                self.output += fresh
                for _ in range(fresh.count("\x1b[6n")):  # where is the cursor? A real terminal answers
                    self.send("\x1b[2;1R")
            except OSError:  # Linux says EIO when the other side has closed
                return False
        return True

    def wait(self) -> int:
        """The exit code; reads on meanwhile, or the program would block on a full pty."""
        until = time.monotonic() + _BOUND_S
        while self.process.poll() is None and time.monotonic() < until:
            if not self._read(0.05):
                break  # closed; polling on would keep Linux in its tty_release
        return self.process.wait(_BOUND_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[ -/]*[@-~]|\x1b[=>]|\r", "", text)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal(PROGRAM)
    try:
        opened.expect("/help for help")
        opened.expect(">>> ")
        yield opened
    finally:
        opened.close()


def test_ask_and_leave_with_ctrl_d(terminal: Terminal) -> None:
    terminal.send("hello\r")
    terminal.expect(r"\[1\] you said 'hello'\n")
    assert "\x1b[1m'hello'\x1b[0m" in terminal.output
    terminal.expect(r"ctx 5/2,048")
    terminal.send("\x04")
    assert terminal.wait() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_session(terminal: Terminal) -> None:
    terminal.send("slow\r")
    terminal.expect("word3 ")
    terminal.send("\x03")
    terminal.expect(r"\(stopped\)")
    terminal.send("/show messages\r")
    shown = terminal.expect(r"assistant \(stopped\): word0 word1 word2 word3 ")
    assert "user: slow" in shown
    terminal.send("next\r")
    terminal.expect(r"\[3\] you said 'next'")
    terminal.send("/bye\r")
    assert terminal.wait() == 0


def test_ctrl_c_at_the_prompt_clears_the_line_then_hints(terminal: Terminal) -> None:
    terminal.send("half a line")
    terminal.expect("half a line")
    terminal.send("\x03")
    terminal.send("\x03")
    terminal.expect("Use /bye or Ctrl-D to leave")
    terminal.send("x\r")
    terminal.expect(r"\[1\] you said 'x'")


def test_several_lines_by_quotes_by_paste_and_by_alt_enter(terminal: Terminal) -> None:
    terminal.send('"""one\r')
    terminal.expect(r"\.\.\.")
    terminal.send('two"""\r')
    terminal.expect(r"you said 'one\\ntwo'")
    terminal.expect(">>> ")
    terminal.send("\x1b[200~three\nfour\x1b[201~\r")
    terminal.expect(r"you said 'three\\nfour'")
    terminal.expect(">>> ")
    terminal.send("five\x1b\rsix\r")
    terminal.expect(r"you said 'five\\nsix'")


def test_an_error_is_told_and_the_turn_can_be_sent_again(terminal: Terminal) -> None:
    terminal.send("fail\r")
    terminal.expect("half an\n")
    terminal.expect("error: the engine broke on purpose")
    terminal.expect(">>> ")
    terminal.send("\x1b[A")
    terminal.expect("fail")
    terminal.send("\x7f\x7f\x7f\x7ffine\r")
    terminal.expect(r"\[1\] you said 'fine'")


def test_a_resize_in_an_answer_loses_and_doubles_nothing(terminal: Terminal) -> None:
    terminal.send("slow\r")
    text = terminal.expect("word9 ")
    terminal.resize(10, 30)
    text += terminal.expect("word19 ")
    terminal.send("\x03")
    assert re.findall(r"word(\d+)", text)[:20] == [str(number) for number in range(20)]


def test_the_history_is_kept_between_runs_in_a_private_file(clean_home: Path) -> None:
    for expected in ("1", "2"):
        opened = Terminal(PROGRAM)
        try:
            opened.expect(">>> ")
            opened.send("remember me\r" if expected == "1" else "\x1b[A\r")
            opened.expect(r"\[1\] you said 'remember me'")
            opened.expect(">>> ")
            opened.send("\x04")
            assert opened.wait() == 0
        finally:
            opened.close()
    history = next(clean_home.rglob("history"))
    assert history.stat().st_mode & 0o077 == 0


def test_no_history_when_not_wanted(clean_home: Path) -> None:
    opened = Terminal(PROGRAM, LLMRUN_NOHISTORY="1")
    try:
        opened.expect(">>> ")
        opened.send("secret\r")
        opened.expect("you said 'secret'")
        opened.expect(">>> ")
        opened.send("\x04")
        opened.wait()
    finally:
        opened.close()
    assert not list(clean_home.rglob("history"))


def test_ctrl_g_edits_in_the_editor(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf ' from the editor' >> \"$1\"\n")
    editor.chmod(0o755)
    opened = Terminal(PROGRAM, EDITOR=str(editor), VISUAL="")
    try:
        opened.expect(">>> ")
        opened.send("begun")
        opened.expect("begun")
        opened.send("\x07")
        opened.expect("from the editor")
        opened.send("\r")
        opened.expect(r"you said 'begun ?\\?n? ?from the editor'")
    finally:
        opened.close()


def test_plain_shows_marks_as_they_are() -> None:
    opened = Terminal([*PROGRAM, "--plain"])
    try:
        opened.expect(">>> ")
        opened.send("x\r")
        opened.expect(r"\[1\] you said \*\*'x'\*\*")
    finally:
        opened.close()


def test_sigterm_ends_an_answer_and_the_program(terminal: Terminal) -> None:
    terminal.send("slow\r")
    terminal.expect("word1 ")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.wait() != 0


def test_over_a_pipe_every_line_is_a_message_and_a_failure_is_told_by_the_exit_code() -> None:
    lines = 'one\n\n/set temperature 9999\n"""two\nlines"""\nfail\nthree'
    done = subprocess.run(PROGRAM, input=lines, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [
        "[1] you said **'one'**",
        "[3] you said **'two\\nlines'**",
        "half an ",
        "[5] you said **'three'**",
    ]
    assert "temperature: got 9999" in done.stderr
    assert "the engine broke on purpose" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_under_the_launcher_a_signal_at_the_prompt_ends_it_and_restores_the_terminal(
    number: signal.Signals, code: int
) -> None:
    opened = Terminal([sys.executable, "-m", "runner", "in=text", "out=echo_full", "hello"])
    try:
        opened.expect(">>> hello\n")
        opened.expect("hello\n")
        opened.expect(">>> ")
        is_raw = not termios.tcgetattr(opened.fd)[3] & termios.ICANON
        assert is_raw
        opened.process.send_signal(number)
        assert opened.wait() == code
        assert "Traceback" not in opened.output
        assert opened.output.rstrip().endswith("\x1b[?2004l") or "\x1b[?2004l" in opened.output[-200:]
    finally:
        opened.close()


def test_what_is_no_utf8_is_an_error_and_what_came_before_is_answered() -> None:
    command = [sys.executable, "-m", "runner", "in=text", "out=echo_full"]
    done = subprocess.run(command, input=b"one\n\xff\xfe\ntwo\n", capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"stdin is not UTF-8" in done.stderr
    assert b"two" not in done.stdout


def test_a_terminal_that_cannot_show_a_character_does_not_end_the_answer() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LLMRUN_TOKEN_ECHO_DELAY_MS": "0"}
    command = [sys.executable, "-m", "runner", "in=text", "out=echo_full", "caf\u00e9 end"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"caf? end\n"), done.stderr
