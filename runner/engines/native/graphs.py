"""DecodeGraphs: steps in which every sequence has one token, replayed as CUDA graphs; one graph for each padded size.

Owns the input buffers that graphs read and the padding. Knows the model as a function from a Batch to hidden states; no
cache, no sampling. The backend must be triton: its kernels read all lengths on the device, and take padding:

    token_ids     | t0 t1 t2 |  0 |      three sequences in the graph for four
    slots         | s0 s1 s2 | -1 |      negative: K and V are not written
    context_lens  | c0 c1 c2 |  0 |      no keys: attention gives zeros
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.engines.native.layers.batch import Batch
from runner.engines.native.plan import StepPlan

Run = Callable[[], Tensor]
"""Reads the buffers and gives hidden states; always the same tensor where it is a replay."""
Capture = Callable[[Run], Run]
"""Turns a run into its replay; it may run it, on padding or on a step's inputs."""


class CudaCapture:
    """CUDA graphs of the current device that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, run: Run) -> Run:
        """Run once, so that kernels are compiled and libraries have their workspaces; then record."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def graph_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, 8, then every 16: the largest is at least `max_batch`."""
    sizes = [size for size in (1, 2, 4, 8) if size < max_batch]
    last = max_batch if max_batch <= 8 else -(-max_batch // 16) * 16
    return sizes + list(range(16, last, 16)) + [last]


class DecodeGraphs:
    """`forward` is the Decoder; `max_context` (tokens) and `block_size` give the width of block tables."""

    def __init__(
        self,
        forward: Callable[[Batch], Tensor],
        device: torch.device,
        *,
        max_batch: int,
        max_context: int,
        block_size: int,
        capture: Capture | None = None,
    ) -> None:
        self._forward = forward
        self._capture: Capture = capture or CudaCapture(device)
        self._sizes = graph_sizes(max_batch)
        self._replays: dict[int, Run] = {}
        self._can_capture = True
        self._inputs = _Inputs(device, self._sizes[-1], -(-max_context // block_size))

    def fits(self, plan: StepPlan) -> bool:
        """Whether `run` takes this step: one token a sequence, not too many, no longer than the context."""
        return (
            plan.num_tokens == plan.num_sequences <= self._sizes[-1]
            and plan.block_tables.shape[1] <= self._inputs.width
            and plan.num_tokens > 0
        )

    def run(self, plan: StepPlan) -> Tensor:
        """Hidden states [sequences, hidden], overwritten by the next run; captures a size that is new."""
        size = next(size for size in self._sizes if size >= plan.num_sequences)
        self._inputs.fill(plan, size)
        return self._replay(size)()[: plan.num_sequences]

    def capture_all(self, progress: Callable[[str, float], None]) -> None:
        """Capture every size now, the largest first, so that the smaller ones find its memory in the pool."""
        for done, size in enumerate(reversed(self._sizes)):
            progress("capturing CUDA graphs", done / len(self._sizes))
            self._inputs.clear()
            self._replay(size)
        progress("capturing CUDA graphs", 1.0)

    def _replay(self, size: int) -> Run:
        if size not in self._replays:
            batch = self._inputs.batch(size)
            self._replays[size] = self._captured(lambda: self._forward(batch))
        return self._replays[size]

    def _captured(self, run: Run) -> Run:
        """The replay; `run` itself where it cannot be recorded (it makes the host wait), which is told once."""
        if not self._can_capture:
            return run
        try:
            return self._capture(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._can_capture = False
            sys.stderr.write(f"native: decode steps run without CUDA graphs: {str(error).splitlines()[0]}\n")
            return run


class _Inputs:
    """The tensors that graphs read, and their twins in pinned memory: two copies a step."""

    def __init__(self, device: torch.device, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self._longs = torch.zeros((3, rows), dtype=torch.int64, device=device)
        self._ints = torch.zeros(rows * (1 + width), dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._sample_rows = torch.arange(rows, device=device)
        is_cuda = device.type == "cuda"
        self._host_longs = torch.zeros((3, rows), dtype=torch.int64, pin_memory=is_cuda)
        self._host_ints = torch.zeros(len(self._ints), dtype=torch.int32, pin_memory=is_cuda)
        self._copied: Any = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        self.clear()

    def batch(self, size: int) -> Batch:
        """Views of the first `size` rows."""
        return Batch(
            token_ids=self._longs[0, :size],
            positions=self._longs[1, :size],
            slots=self._longs[2, :size],
            query_starts=self._starts[: size + 1],
            context_lens=self._ints[:size],
            block_tables=self._ints[self.rows :].view(self.rows, self.width)[:size],
            sample_rows=self._sample_rows[:size],
            max_query_len=1,
        )

    def fill(self, plan: StepPlan, size: int) -> None:
        """A step's rows, and padding up to `size`."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copies read the same pinned memory
        num = plan.num_sequences
        longs, lens = self._host_longs.numpy(), self._host_ints.numpy()[: self.rows]
        for row, values in enumerate((plan.token_ids, plan.positions, plan.slots)):
            longs[row, :num] = values
        longs[:2, num:size] = 0
        longs[2, num:size] = -1
        lens[:num] = plan.context_lens
        lens[num:size] = 0
        # what lies beyond a sequence's context is never read, so old blocks may stay there
        tables = self._host_ints.numpy()[self.rows :].reshape(self.rows, self.width)
        tables[:num, : plan.block_tables.shape[1]] = plan.block_tables
        self._copy(self.rows + size * self.width)

    def clear(self) -> None:
        """All rows are padding."""
        self._longs.zero_()
        self._longs[2].fill_(-1)
        self._ints.zero_()

    def _copy(self, num_ints: int) -> None:
        self._longs.copy_(self._host_longs, non_blocking=True)
        self._ints[:num_ints].copy_(self._host_ints[:num_ints], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
