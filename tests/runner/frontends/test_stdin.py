from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.frontends.stdin import AnswerWriter

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import asyncio, sys
from runner.console import report
from runner.errors import EngineDied, LlmrunError
from runner.frontends.base import FrontendSpec
from runner.frontends.stdin import StdinFrontend
from runner.options import RunOptions
from runner.types import TextDelta, Usage
from tests.runner.fakes import TextService, catalog_of, last_text, shout

def answer(request):
    text = last_text(request)
    if text == "die":
        return [TextDelta(text="half"), EngineDied("the engine is gone")]
    if text == "long":
        return [TextDelta(text="cut", finish="length", usage=Usage(prompt_tokens=1, completion_tokens=7))]
    if text == "endless":
        return (TextDelta(text="y\\n" * 100) for _ in iter(int, 1))
    if text == "show":
        system = request.messages[0]["content"] if len(request.messages) > 1 else ""
        return shout(type(request)(id="x", prompt=f"{system} {request.sampling.temperature} {request.max_tokens}"))
    if text == "lenient":
        return [TextDelta(warnings=("engine 'x' does not honour top_k",)), *shout(request)]
    return shout(request)

service = TextService(answer)
prompt = sys.argv[1] if len(sys.argv) > 1 else None
options = RunOptions(system="Be brief.", temperature=0.0, max_tokens=9)
try:
    frontend = StdinFrontend(FrontendSpec(name="stdin", prompt=prompt, options=options))
    code = asyncio.run(frontend.run(catalog_of(service)))
except LlmrunError as error:
    code = report(error)
assert service.num_open == 0, "the stream was not closed"
sys.exit(code)
"""


def llmrun(*arguments: str, stdin: bytes | int = b"") -> subprocess.CompletedProcess[bytes]:
    """The frontend in a process of its own, on real pipes."""
    given: dict[str, Any] = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
    return run([sys.executable, "-c", PROGRAM, *arguments], **given)


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """A command line in which LLMRUN stands for the frontend."""
    return run(["bash", "-c", command.replace("LLMRUN", f'{sys.executable} -c "$0"'), PROGRAM])


def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60, **given)


def test_stdin_is_one_prompt_and_stdout_the_answer_alone() -> None:
    done = llmrun(stdin=b"hi\nthere\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"HI THERE\n", b"")


def test_prompt_goes_after_stdin() -> None:
    assert llmrun("summarise", stdin="größe\n".encode()).stdout.decode() == "GRÖSSE SUMMARISE\n"


def test_prompt_alone_with_an_empty_pipe() -> None:
    assert llmrun("hi", stdin=b"").stdout == b"HI\n"
    assert llmrun("hi", stdin=subprocess.DEVNULL).stdout == b"HI\n"


def test_prompt_alone_on_a_terminal_does_not_wait_for_stdin() -> None:
    ours, theirs = pty.openpty()
    try:
        assert llmrun("hi", stdin=theirs).stdout == b"HI\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_prompt_alone_with_a_closed_stdin() -> None:
    done = shell("exec LLMRUN hi <&-")
    assert (done.returncode, done.stdout) == (0, b"HI\n"), done.stderr


def test_a_pipe_that_stays_open_is_waited_for_with_a_word() -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "please"], cwd=ROOT, stdin=reader, stdout=-1, stderr=-1, bufsize=0
    )
    os.close(reader)
    assert process.stderr is not None and process.stdout is not None
    assert b"waiting for the end of stdin" in process.stderr.read(300)
    os.write(writer, b"now")
    os.close(writer)
    assert process.stdout.read() == b"NOW PLEASE\n"
    assert process.wait(30) == 0
    process.stderr.close()
    process.stdout.close()


@pytest.mark.parametrize("stdin", [b"", b"\n \n"])
def test_nothing_at_all_is_a_usage_error(stdin: bytes) -> None:
    done = llmrun(stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"stdin is empty and there is no PROMPT" in done.stderr
    assert b"Traceback" not in done.stderr


def test_bytes_that_are_no_text_are_refused_with_their_place() -> None:
    done = llmrun(stdin=b"abc\xff\xfe")
    assert done.returncode == 2
    assert b"byte 0xff at offset 3" in done.stderr


def test_flags_reach_the_request() -> None:
    assert llmrun("show").stdout == b"BE BRIEF. 0.0 9\n"


def test_an_error_in_the_middle_ends_the_line_and_fails() -> None:
    done = llmrun("die")
    assert (done.returncode, done.stdout) == (1, b"half\n")
    assert b"the engine is gone" in done.stderr


def test_a_cut_answer_is_said_on_stderr() -> None:
    done = llmrun("long")
    assert (done.returncode, done.stdout) == (0, b"cut\n")
    assert b"cut at 7 tokens" in done.stderr


def test_what_was_not_honoured_is_said_on_stderr() -> None:
    done = llmrun("lenient")
    assert done.stdout == b"LENIENT\n"
    assert b"does not honour top_k" in done.stderr


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    done = shell('LLMRUN endless | head -n 3; echo "${PIPESTATUS[0]}"')
    assert (done.stdout, done.stderr) == (b"y\ny\ny\n141\n", b"")


def test_a_closed_stdout_is_an_error_without_a_traceback() -> None:
    done = shell("exec LLMRUN hi >&-")
    assert done.returncode == 1
    assert b"stdout" in done.stderr and b"Traceback" not in done.stderr


def test_a_full_disk_behind_stdout_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = shell("exec LLMRUN hi >/dev/full")
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr and b"Traceback" not in done.stderr


async def test_a_slow_reader_does_not_stop_the_loop() -> None:
    reader, fd = os.pipe()
    writer = AnswerWriter(fd)
    text = "x" * 300_000
    task = asyncio.create_task(writer.write(text))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not task.done(), "a pipe does not hold that much; the loop goes on"
    received = 0
    while received < len(text):
        received += len(await asyncio.to_thread(os.read, reader, 65536))
    await asyncio.wait_for(task, 10)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await writer.write("y")
    with contextlib.suppress(OSError):
        os.close(fd)


async def test_a_line_is_ended_once_and_nothing_stays_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for texts, expected in (([], ""), (["a"], "a\n"), (["a\n"], "a\n"), (["a", ""], "a\n")):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        writer = AnswerWriter(fd)
        for text in texts:
            await writer.write(text)
        await writer.end_line()
        os.close(fd)
        assert path.read_text() == expected
