"""The flags of `llmrun bench`. Owns their names and checks; knows nothing of measuring."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from runner import flags
from runner.errors import UsageError

_EPILOG = """examples:
  llmrun bench MODEL.gguf --concurrency 1,8,32          an engine in this process
  llmrun bench out=mocker demo --rate 20                open loop, 20 requests a second
  llmrun bench --url http://127.0.0.1:8080 --json       any OpenAI server, ours or a rival's
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"bench: {message} (llmrun bench --help lists everything)")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str], dict[str, Any]]:
    """(bench's own flags, bare words, flags of the engine by key). Raises UsageError; exits on --help."""
    parser = _make_parser()
    engine_keys = _add_engine_flags(parser)
    known, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        raise UsageError(f"bench: no such flag: {rest[0]} (llmrun bench --help lists everything)")
    given = {key: getattr(known, key) for key in engine_keys if getattr(known, key) is not None}
    _check(known)
    return known, known.words, given


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="llmrun bench",
        description="Measure an engine in this process, or any OpenAI server by its URL.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="out=… MODEL", help="what to measure in this process")
    _add_target(parser.add_argument_group("what is measured"))
    _add_load(parser.add_argument_group("load"))
    _add_requests(parser.add_argument_group("requests"))
    _add_output(parser.add_argument_group("output"))
    return parser


def _add_target(group: Any) -> None:
    group.add_argument("--url", help="an OpenAI server; MODEL is then not loaded")
    group.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    group.add_argument(
        "--request-model", metavar="NAME", default="", help="model name in requests (default: the first)"
    )
    group.add_argument("--api-key", metavar="KEY")
    group.add_argument("--extra-body", metavar="JSON", help='fields for every body; null leaves one out: {"a": 1}')
    group.add_argument("--tokenizer", metavar="MODEL", help="with --url: whose tokenizer makes prompt lengths exact")
    group.add_argument("--server-pid", type=int, metavar="PID", help="report CPU and memory of this process too")


def _add_load(group: Any) -> None:
    group.add_argument(
        "--concurrency", default="1,8", metavar="N,N,…", help="closed loop: requests at once (default 1,8)"
    )
    group.add_argument("--rate", type=_positive, metavar="R", help="open loop: requests a second")
    group.add_argument("--arrival", choices=("poisson", "constant"), default="poisson", help="open loop's spacing")
    group.add_argument(
        "--trace", metavar="FILE", help="open loop: times and lengths of a trace (Mooncake JSONL, Azure CSV)"
    )
    group.add_argument("--trace-speed", type=_positive, default=1.0, metavar="X", help="replay X times as fast")
    group.add_argument(
        "--num-requests", type=_count, metavar="N", help="for each load (default 4 x concurrency, at least 8)"
    )
    group.add_argument(
        "--warm-up", type=int, default=None, metavar="N", help="requests before measuring (default: concurrency)"
    )
    group.add_argument("--repeat", type=_count, default=1, metavar="N", help="measure N times and take medians")


def _add_requests(group: Any) -> None:
    group.add_argument("--input-len", type=_count, default=64, metavar="TOKENS")
    group.add_argument("--output-len", type=_count, default=128, metavar="TOKENS")
    group.add_argument(
        "--prefix-len", type=int, default=0, metavar="TOKENS", help="of the input, the same in all prompts"
    )
    group.add_argument("--dataset", metavar="FILE.jsonl", help="prompts from a file instead")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="a request may take this long")


def _add_output(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_engine_flags(parser: argparse.ArgumentParser) -> list[str]:
    """The flags that the run itself has for model and engine, spelled the same."""
    group = parser.add_argument_group("engine in this process (see llmrun --help)")
    rows = [flag for flag in flags.FLAGS if flag.panel in (flags.MODEL, flags.ENGINE)]
    for flag in rows:
        if flag.kind == "bool":
            group.add_argument(*flag.names, dest=flag.key, action="store_true", default=None, help=argparse.SUPPRESS)
        elif flag.kind == "list":
            group.add_argument(*flag.names, dest=flag.key, action="append", help=argparse.SUPPRESS)
        else:
            group.add_argument(*flag.names, dest=flag.key, metavar=flag.metavar or None, help=argparse.SUPPRESS)
    return [flag.key for flag in rows]


def _check(known: argparse.Namespace) -> None:
    if known.rate is not None and known.trace is not None:
        raise UsageError("bench: --rate and --trace are two kinds of open loop; give one")
    if known.url and known.words:
        raise UsageError(f"bench: --url measures a server; {known.words[0]!r} would not be used. Give one of the two")
    if known.prefix_len > known.input_len:
        raise UsageError(f"bench: --prefix-len {known.prefix_len} is more than --input-len {known.input_len}")
    levels(known.concurrency)


def levels(text: str) -> list[int]:
    """`1,8,32` as numbers. Raises UsageError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UsageError(f"bench: --concurrency: got {text!r}; allowed: whole numbers from 1, such as 1,8,32")
    return numbers


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
