"""DecodeGraphs with a capture that only calls: sizes, padding, what is copied, what is captured when."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runner.engines.native.graphs import DecodeGraphs, Run, graph_sizes  # noqa: E402
from runner.engines.native.layers.batch import Batch  # noqa: E402
from runner.engines.native.plan import StepPlan  # noqa: E402


class FakeCapture:
    """Counts captures and replays."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def __call__(self, run: Run) -> Run:
        self.num_captured += 1

        def replay() -> torch.Tensor:
            self.num_replayed += 1
            return run()

        return replay


def make_graphs(max_batch: int = 20) -> tuple[DecodeGraphs, FakeCapture, list[Batch]]:
    capture, seen = FakeCapture(), []

    def forward(batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return batch.token_ids.float().unsqueeze(1)

    graphs = DecodeGraphs(
        forward, torch.device("cpu"), max_batch=max_batch, max_context=64, block_size=16, capture=capture
    )
    return graphs, capture, seen


def make_plan(num: int, width: int = 2, first: int = 100) -> StepPlan:
    rows = np.arange(num, dtype=np.int32)
    return StepPlan(
        token_ids=rows + first,
        positions=rows + 3,
        slots=rows + 50,
        query_starts=np.arange(num + 1, dtype=np.int32),
        context_lens=rows + 4,
        block_tables=np.arange(num * width, dtype=np.int32).reshape(num, width) + first,
        sample_rows=rows,
        copies=np.zeros((0, 2), np.int32),
    )


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 16]), (40, [1, 2, 4, 8, 16, 32, 48])],
)
def test_sizes(most: int, sizes: list[int]) -> None:
    assert graph_sizes(most) == sizes


def test_rows_and_padding() -> None:
    graphs, _, seen = make_graphs()
    hidden = graphs.run(make_plan(3))
    assert hidden.flatten().tolist() == [100, 101, 102]
    batch = seen[-1]
    assert batch.token_ids.tolist() == [100, 101, 102, 0]
    assert batch.positions.tolist() == [3, 4, 5, 0]
    assert batch.slots.tolist() == [50, 51, 52, -1]
    assert batch.context_lens.tolist() == [4, 5, 6, 0]
    assert batch.query_starts.tolist() == [0, 1, 2, 3, 4]
    assert batch.block_tables[:3, :2].tolist() == make_plan(3).block_tables.tolist()
    assert batch.block_tables.shape == (4, 4) and batch.max_query_len == 1 and batch.plan is None


def test_buffers_stay_and_padding_is_renewed() -> None:
    graphs, _, seen = make_graphs()
    graphs.run(make_plan(4))
    addresses = seen[-1].slots.data_ptr(), seen[-1].block_tables.data_ptr()
    graphs.run(make_plan(3, width=1, first=200))
    assert (seen[-1].slots.data_ptr(), seen[-1].block_tables.data_ptr()) == addresses
    assert seen[-1].slots.tolist() == [50, 51, 52, -1]
    assert seen[-1].context_lens.tolist() == [4, 5, 6, 0]
    assert seen[-1].block_tables[:3, 0].tolist() == [200, 201, 202]


def test_each_size_is_captured_once() -> None:
    graphs, capture, _ = make_graphs()
    for num in (1, 3, 4, 1, 9, 16):
        graphs.run(make_plan(num))
    assert (capture.num_captured, capture.num_replayed) == (3, 6)


def test_capture_all() -> None:
    graphs, capture, _ = make_graphs()
    shares: list[float] = []
    graphs.capture_all(lambda phase, share: shares.append(share))
    assert capture.num_captured == len(graph_sizes(20)) and capture.num_replayed == 0
    assert shares == sorted(shares) and shares[-1] == 1.0
    graphs.run(make_plan(20))
    assert capture.num_captured == len(graph_sizes(20))


def test_a_model_that_cannot_be_captured_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = DecodeGraphs(
        lambda batch: batch.token_ids.float().unsqueeze(1), torch.device("cpu"), max_batch=4, max_context=64,
        block_size=16, capture=refuse,
    )  # fmt: skip
    for num in (3, 1, 3):
        assert graphs.run(make_plan(num)).flatten().tolist() == [100 + row for row in range(num)]
    assert capsys.readouterr().err.splitlines() == [
        "native: decode steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_fits() -> None:
    graphs, _, _ = make_graphs(max_batch=16)
    assert graphs.fits(make_plan(16))
    assert not graphs.fits(make_plan(17))
    assert not graphs.fits(make_plan(2, width=5))
    chunk = make_plan(2)
    mixed = StepPlan(
        chunk.token_ids, chunk.positions, chunk.slots, np.array([0, 2], np.int32), chunk.context_lens[:1],
        chunk.block_tables[:1], np.array([1], np.int32), chunk.copies,
    )  # fmt: skip
    assert not graphs.fits(mixed)
