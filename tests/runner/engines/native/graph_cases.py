"""Decode steps through DecodeGraphs and Triton against the torch backend, hidden state by hidden state.

python -m tests.runner.engines.native.graph_cases      prints a JSON list of differences
"""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import torch

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from runner.engines.native.graphs import DecodeGraphs
from runner.engines.native.layers.batch import Batch
from runner.engines.native.plan import StepPlan
from tests.runner.engines.native.random_models import bind_cache, random_decoder

CONFIG = {
    "model_type": "qwen3", "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
BLOCK_SIZE = 16


def _plan(lens: list[tuple[int, int]], ids: np.ndarray) -> StepPlan:
    """(queries, context) of each sequence; sequence i owns the blocks 3 i + 1 .. 3 i + 3."""
    tables = np.arange(1, 3 * len(lens) + 1, dtype=np.int32).reshape(-1, 3)
    rows = [(row, position) for row, (num, end) in enumerate(lens) for position in range(end - num, end)]
    positions = np.array([position for _, position in rows], np.int32)
    slots = [tables[row, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for row, position in rows]
    starts = np.cumsum([0, *(num for num, _ in lens)], dtype=np.int32)
    return StepPlan(
        token_ids=np.array([ids[row, position] for row, position in rows], np.int32), positions=positions,
        slots=np.array(slots, np.int32), query_starts=starts, context_lens=np.array([end for _, end in lens], np.int32),
        block_tables=tables, sample_rows=starts[1:] - 1, copies=np.zeros((0, 2), np.int32),
    )  # fmt: skip


@torch.inference_mode()
def decode_differences(device: str, *, is_captured: bool, dtype: torch.dtype = torch.float32) -> list[str]:
    """A prompt step, then decodes of 3, 3 and 2 sequences (in graphs for 4 and 2). Returns what differs."""
    right, ours = (random_decoder(CONFIG, dtype, device, 64, backend) for backend in ("torch", "triton"))
    for model in (right, ours):
        bind_cache(model, 10, BLOCK_SIZE, dtype)
    options = {} if is_captured else {"capture": lambda run: run}
    graphs = DecodeGraphs(ours, torch.device(device), max_batch=4, max_context=48, block_size=BLOCK_SIZE, **options)  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(0, 97, (3, 48))
    steps = [[(5, 5), (17, 17), (1, 1)], [(1, 6), (1, 18), (1, 2)], [(1, 7), (1, 19), (1, 3)], [(1, 8), (1, 20)]]
    problems = []
    for index, lens in enumerate(steps):
        plan = _plan(lens, ids)
        want = right.logits(right(Batch.from_plan(plan, device)))
        got = ours.logits(graphs.run(plan) if graphs.fits(plan) else ours(Batch.from_plan(plan, device)))
        gap = (got - want).abs().max().item()
        if not gap < (1e-3 if dtype == torch.float32 else 0.1):
            problems.append(f"step {index}: logits differ by {gap:.3g}")
    return problems


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    has_cuda = torch.cuda.is_available()
    print(json.dumps(decode_differences("cuda" if has_cuda else "cpu", is_captured=has_cuda)))
