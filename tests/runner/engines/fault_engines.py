"""StepEngines for the children of the fault tests: one that works, and one for each way to go wrong."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

from model_cards.errors import ModelFileError
from runner.engines.base import EngineSpec, StepOutput
from runner.errors import EngineStartFailed, RequestError, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest


class Counter:
    """Counts 1, 2, 3 ... for every request; `extra.step_s` is the time of a step."""

    def __init__(self) -> None:
        self.made: dict[str, list[int]] = {}
        self.step_s = 0.001

    def start(self, spec: EngineSpec) -> EngineInfo:
        self.step_s = spec.options.extra.get("step_s", 0.001)
        return EngineInfo(name="counter", context_length=1 << 30, max_running=spec.options.max_running or 64)

    def add(self, request: TokenRequest) -> None:
        if request.token_ids == [13]:
            raise RequestError("13 brings bad luck", field="prompt")
        if request.token_ids == [14]:
            raise ValueError("a bug of add")
        self.made[request.id] = [0, request.max_tokens]

    def cancel(self, request_id: str) -> None:
        self.made.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self.made)

    def step(self) -> list[StepOutput]:
        time.sleep(self.step_s)
        return [self.advance(request_id) for request_id in list(self.made)]

    def advance(self, request_id: str) -> StepOutput:
        state = self.made[request_id]
        state[0] += 1
        is_last = state[0] >= state[1]
        if is_last:
            del self.made[request_id]
        return StepOutput(request_id, TokenDelta([state[0]], "length" if is_last else None))

    def embed(self, request: EmbedRequest) -> EmbedResult:
        raise UnsupportedField("no embeddings", field="model")

    def interrupt(self) -> None:
        pass

    def stats(self) -> dict[str, float]:
        return {"num_running": float(len(self.made)), "num_waiting": 0.0}

    def close(self) -> None:
        pass


class Parent(Counter):
    """Starts a process of its own and writes both ids to a file."""

    def start(self, spec: EngineSpec) -> EngineInfo:
        sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
        near = subprocess.Popen(sleep)
        Path(spec.options.extra["pids"]).write_text(f"{os.getpid()} {near.pid}")
        return super().start(spec)


class StepFails(Counter):
    """Raises in its third step."""

    def advance(self, request_id: str) -> StepOutput:
        if self.made[request_id][0] == 2:
            raise ValueError("the third step is wrong")
        return super().advance(request_id)


class Loses(Counter):
    """Forgets its requests."""

    def step(self) -> list[StepOutput]:
        self.made.clear()
        return []


class OneFails(Counter):
    """Ends requests for [5] with an error output."""

    def add(self, request: TokenRequest) -> None:
        super().add(request)
        if request.token_ids == [5]:
            self.made[request.id][1] = -1

    def advance(self, request_id: str) -> StepOutput:
        if self.made[request_id][1] == -1:
            del self.made[request_id]
            return StepOutput(request_id, None, "no room for five", "engine")
        return super().advance(request_id)


class Slow(Counter):
    """One step takes ten minutes, unless it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = False

    def step(self) -> list[StepOutput]:
        self.stop = False
        end = time.monotonic() + 600
        while not self.stop and time.monotonic() < end:
            time.sleep(0.005)
        return []

    def interrupt(self) -> None:
        self.stop = True


class Segfaults(Counter):
    def start(self, spec: EngineSpec) -> EngineInfo:
        print("about to read address 0", file=sys.stderr, flush=True)
        ctypes.string_at(0)
        return super().start(spec)


class OutOfMemory(Counter):
    def start(self, spec: EngineSpec) -> EngineInfo:
        print("ggml: failed to allocate buffer of size 99", file=sys.stderr, flush=True)
        raise MemoryError("cannot allocate 99 GB")


class Refuses(Counter):
    def start(self, spec: EngineSpec) -> EngineInfo:
        raise EngineStartFailed("the model has wings", hint="clip them")


class BrokenModel(Counter):
    def start(self, spec: EngineSpec) -> EngineInfo:
        raise ModelFileError("a shard is missing")


class NeverReady(Counter):
    """Tells its progress, then hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = lambda phase, share: None

    def start(self, spec: EngineSpec) -> EngineInfo:
        self.progress("loading model", 0.25)
        time.sleep(600)
        return super().start(spec)


class Garbage(Counter):
    """Writes rubbish to its outputs, and later into the owner's socket."""

    def start(self, spec: EngineSpec) -> EngineInfo:
        sys.stdout.write("garbage\n" * 1000)
        return super().start(spec)

    def step(self) -> list[StepOutput]:
        for fd in range(3, 64):
            try:
                target = str(Path(f"/proc/self/fd/{fd}").readlink())
            except OSError:
                continue
            if target.startswith("socket:"):
                with_rubbish(fd)
        return super().step()


def with_rubbish(fd: int) -> None:
    try:
        os.write(fd, b"\xff" * 64)
    except OSError:
        return
