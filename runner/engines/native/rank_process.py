"""`python -m runner.engines.native.rank_process RANK HOST PORT`: a rank in its own process; its EngineSpec is stdin."""

from __future__ import annotations

import os
import sys

import msgspec

from runner.engines.base import EngineSpec
from runner.engines.failures import describe
from runner.engines.native.member import Member
from runner.engines.native.ranks import TOKEN_VARIABLE


def main() -> None:
    """Serve until the leader says close or is gone; never returns."""
    rank, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=EngineSpec)
    member = Member(spec, rank, (host, port), os.environ.get(TOKEN_VARIABLE, ""))
    code = 0
    try:
        member.join(spec.options.start_timeout_s)
        while member.handle(None):
            pass
    except BaseException as error:
        sys.stderr.write(f"native: rank {rank} ends: {describe(error)}\n")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # no atexit: a library's teardown must not keep the process


if __name__ == "__main__":
    main()
