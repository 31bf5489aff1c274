"""`llmrun up` and `llmrun workers`: the texts. local_daemons.py and net/ do the work.

Data goes to stdout, everything else to stderr; each command returns an exit code. Knows nothing of typer (cli.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from runner.console import say, warn
from runner.errors import LlmrunError

if TYPE_CHECKING:
    from runner.local_daemons import LocalDaemons, Ports
    from runner.net.listing import Unreadable, WorkerEntry
    from runner.net.loads import Load
    from runner.net.store import Store

_NEXT = """\
in other terminals, after these two lines:
  llmrun in=dyn://demo.backend.generate --store etcd     a worker (more of them: more workers)
  llmrun in=http out=dyn --store etcd                    serves the models of all workers on port 8080
  llmrun workers --store etcd                            what is registered
Ctrl-C stops both."""


def up(*, host: str, etcd_port: int, nats_port: int, install: bool = False) -> int:
    """Run etcd and nats-server until Ctrl-C or SIGTERM. Raises UsageError and LlmrunError."""
    from runner import local_daemons

    if install:
        local_daemons.install(say)
    return asyncio.run(_up(local_daemons.Ports(host, etcd_port, nats_port)))


async def _up(ports: Ports) -> int:
    from runner.local_daemons import LocalDaemons

    daemons = LocalDaemons(ports)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    serving = asyncio.create_task(_serve(daemons))
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()  # nothing happens to one that has failed
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    finally:
        stopping.cancel()
        await daemons.close()
    say("both are stopped")
    return 0


async def _serve(daemons: LocalDaemons) -> None:
    """Start both, say how to use them, and watch them."""
    await daemons.start()
    sys.stdout.write(f"export ETCD_ENDPOINTS={daemons.etcd_url}\nexport NATS_SERVER={daemons.nats_url}\n")
    sys.stdout.flush()
    if not daemons.is_loopback:
        warn("both take anyone who can reach this address: no password, no TLS. Only for a network that you trust")
    say(_NEXT)
    await daemons.died()


def workers(*, store: str | None, store_path: str | None = None, as_json: bool) -> int:
    """Print what discovery sees now. Raises UsageError and LlmrunError."""
    from runner.net.settings import make_store, read_settings
    from runner.options import RunOptions

    place = make_store(read_settings(RunOptions(store=store, store_path=store_path)))
    found, unreadable = asyncio.run(_look(place))
    for record in unreadable:
        warn(f"a record that cannot be used: {record.why}")
    if as_json:
        _print(json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False))
    elif found:
        _print(_table([_HEAD, *(_row(worker) for worker in found)]))
    else:
        say(f"no workers in {place.where}")
    return 0


async def _look(store: Store) -> tuple[list[WorkerEntry], list[Unreadable]]:
    from runner.net.listing import list_workers
    from runner.net.store import StoreRefused, StoreUnavailable

    try:
        return await list_workers(store)
    except StoreRefused as error:
        raise LlmrunError(str(error)) from None
    except StoreUnavailable as error:
        raise LlmrunError(f"{error}; is it running (llmrun up), and is ETCD_ENDPOINTS right?") from error
    finally:
        await store.close()


_HEAD = ("MODEL", "ENDPOINT", "INSTANCE", "ADDRESS", "CODEC", "LOAD", "LEASE")


def _row(worker: WorkerEntry) -> tuple[str, ...]:
    lease = "-" if worker.lease_s is None else f"{worker.lease_s:.0f} s"
    age = "" if worker.renewed_s_ago is None else f", renewed {worker.renewed_s_ago:.1f} s ago"
    address = f"{worker.plane}://{worker.target}"
    return worker.model or "-", worker.endpoint, worker.instance, address, worker.codec, _load(worker.load), lease + age


def _load(load: Load | None) -> str:
    if load is None:
        return "-"
    said = f"{load.num_running} run" + (f", {load.num_waiting} wait" if load.num_waiting else "")
    if load.kv_total_blocks is not None:
        said += f", {load.kv_used_blocks}/{load.kv_total_blocks} blocks"
    return said


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
