"""`llmrun engines list | install | remove | check`: the texts; runner.engines.environments does the work.

Data goes to stdout, everything else to stderr; each command returns an exit code. Knows nothing of typer (cli.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from runner.console import EXIT_FAILURE, say, style
from runner.errors import UsageError
from runner.steps import Steps

if TYPE_CHECKING:
    from runner.engines import EngineEntry
    from runner.engines.environments import Accelerator, EngineStatus


_KINDS = {
    "gguf": "GGUF files",
    "hf": "Hugging Face folders",
    "trtllm": "TensorRT-LLM engines",
}


def list_engines(*, as_json: bool = False) -> int:
    """Print every engine, whether it is usable here and, if not, the command that makes it so."""
    from runner.engines import environments

    found = environments.list_engines()
    if as_json:
        _print(json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False))
    else:
        _print("\n".join(line for status in found for line in _lines(status)))
    return 0


def install(
    name: str,
    *,
    prebuilt: bool,
    accelerators: Sequence[str],
    version: str | None,
    if_missing: bool,
    cpu: bool = False,
    python: str | None = None,
) -> int:
    """Install an engine and print its folder. Raises UsageError, InstallFailed."""
    from runner.engines import environments

    if len(accelerators) > 1:
        raise UsageError(f"one accelerator at a time; got {', '.join(f'--{name}' for name in accelerators)}")
    accelerator = cast("Accelerator", accelerators[0]) if accelerators else None
    with Steps() as steps:
        folder = environments.install(
            name,
            prebuilt=prebuilt,
            accelerator=accelerator,
            version=version,
            cpu=cpu,
            python=python,
            if_missing=if_missing,
            say=steps.say,
        )
    _print(str(folder))
    return 0


def remove(name: str) -> int:
    """Remove what install made. Raises UsageError."""
    from runner.engines import environments

    say(f"{name} is removed" if environments.remove(name) else f"{name} was not installed by llmrun; nothing to remove")
    return 0


def check(name: str, *, python: str | None = None) -> int:
    """Import an engine, then run it on the demo model; a line for each verdict. 1 if it fails. Raises UsageError.

    `python`: see environments.check.
    """
    from runner.engines import ENGINES, environments

    status = environments.check(name, python=python)
    _print("\n".join(_lines(status)))
    if not status.is_usable:
        return EXIT_FAILURE
    if name not in environments.RECIPES:
        return 0
    with asyncio.Runner() as runner:
        return runner.run(_hold_trial(ENGINES[name], python))


async def _hold_trial(entry: EngineEntry, python: str | None) -> int:
    from runner.trial import hold_trial

    num_failed = num_passed = 0
    async with contextlib.aclosing(hold_trial(entry, python=python)) as verdicts:
        async for verdict in verdicts:
            num_passed += verdict.is_passed
            num_failed += not verdict.is_passed
            mark = style("pass", "32", sys.stdout) if verdict.is_passed else style("FAIL", "31", sys.stdout)
            _print(f"  {mark}  {verdict.name:<24} {verdict.detail}")
    _print(f"{entry.name}: {num_failed} failed, {num_passed} passed")
    return EXIT_FAILURE if num_failed else 0


def _lines(status: EngineStatus) -> list[str]:
    """Usable or not, what it is and where; then what it runs, and what makes it usable."""
    mark = style("yes", "32", sys.stdout) if status.is_usable else style("no ", "33", sys.stdout)
    lines = [f"{status.name:<10} {mark}  {status.detail}"]
    about = [status.summary] if status.summary and status.summary != status.detail else []
    kinds = [_KINDS[kind] for kind in status.models if kind != "none"]
    about += [f"runs {' and '.join(kinds)}"] if kinds else []
    about += ["needs no model"] if "none" in status.models and "no model" not in status.detail else []
    more = ["; ".join(about)] if about else []
    more += [f"→ {status.command}"] if status.command else []
    return [*lines, *(f"{'':<16}{style(line, '2', sys.stdout)}" for line in more)]


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
