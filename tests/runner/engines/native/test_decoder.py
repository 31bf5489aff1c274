"""The Decoder beyond logits: quantised caches, block copies, no cache, and two gloo ranks equal to one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from runner.engines.native.kernels.ops import ops, use_ops  # noqa: E402
from runner.engines.native.kernels.torch_attention import paged_attention, write_cache  # noqa: E402
from runner.engines.native.layers.batch import Batch  # noqa: E402
from runner.engines.native.layers.cache import KVCache, bytes_per_block  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from runner.errors import EngineStartFailed  # noqa: E402
from tests.runner.engines.native.families import Runner, close, load_folder, make_plan, tokens, toy  # noqa: E402

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved toy llama with an odd vocabulary and four attention heads of two kinds."""
    toy(transformers.LlamaConfig, transformers.LlamaForCausalLM, vocab_size=129).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("dtype", "atol"), [(torch.int8, 0.1), (torch.float8_e4m3fn, 0.5), (torch.bfloat16, 0.1)])
def test_cache_of_another_type(folder: Path, dtype: Any, atol: float) -> None:
    model = load_folder(folder)
    token_ids = tokens(129, 20, 1)
    exact = Runner(model)
    wanted = exact.step((exact.stream(token_ids), 20))[0]
    runner = Runner(model, dtype)
    stream = runner.stream(token_ids)
    got = torch.cat([runner.step((stream, count))[0] for count in (7, 1, 1, 11)])
    close(got, wanted, atol)
    assert runner.cache.layers[0].k.dtype == dtype


def test_bytes_per_block_is_what_a_cache_takes() -> None:
    for dtype in (torch.float32, torch.int8):
        cache = KVCache(3, 5, 4, 2, 16, dtype, "cpu")
        held = sum(tensor.nbytes for layer in cache.layers for tensor in layer.tensors())
        assert held == 5 * bytes_per_block(3, 2, 16, 4, dtype)


def test_copied_blocks_serve_a_fork(folder: Path) -> None:
    runner = Runner(load_folder(folder))
    token_ids = tokens(129, 12, 1)
    parent = runner.stream(token_ids)
    wanted = runner.step((parent, 10))[0], runner.step((parent, 2))[0]
    fork = runner.stream(token_ids)
    fork.num_computed = 10
    runner.cache.copy_blocks(np.array(list(zip(parent.blocks, fork.blocks, strict=True)), np.int32))
    for layer in runner.cache.layers:
        layer.k[parent.blocks] = 0
    close(runner.step((fork, 2))[0], wanted[1])


def test_without_a_cache(folder: Path) -> None:
    """The memory profile's run: whole prompts, attention to themselves."""
    model = load_folder(folder)
    runner = Runner(model)
    pieces = [(runner.stream(tokens(129, 9, 1)), 9), (runner.stream(tokens(129, 5, 2)), 5)]
    plan = make_plan(pieces)
    wanted = torch.cat(runner.step(*pieces))
    for attention in model.attentions():
        attention.cache = None
    with torch.inference_mode():
        close(model.logits(model(Batch.from_plan(plan, "cpu"))), wanted)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_alibi", [False, True])
def test_paged_attention_is_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, window: int | None, softcap: float | None, has_alibi: bool
) -> None:
    monkeypatch.setattr("runner.engines.native.kernels.torch_attention._MAX_QUERIES", 4)
    generator = torch.Generator().manual_seed(0)
    layer = KVCache(1, 32, 4, 2, 8, torch.float32, "cpu").layers[0]
    runner = object.__new__(Runner)
    runner.free = list(range(32))
    streams = [
        (runner.stream([0] * 17), 1),
        (runner.stream([0] * 9), 6),
        (runner.stream([0] * 10), 10),
        (runner.stream([0] * 12), 1),
    ]
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]) if has_alibi else None
    wanted, queries = [], []
    for stream, count in streams:
        length = len(stream.token_ids)
        stream.num_computed = length - count
        k, v = torch.randn(2, length, 2, 8, generator=generator)
        q = torch.randn(count, 4, 8, generator=generator)
        slots = torch.tensor([stream.blocks[p // 4] * 4 + p % 4 for p in range(length)])
        write_cache(k, v, layer, slots)
        wanted.append(plain(q, k, v, window, softcap, slopes))
        queries.append(q)
    batch = Batch.from_plan(make_plan(streams), "cpu")
    got = paged_attention(
        torch.cat(queries), layer, batch, scale=0.3, window=window, softcap=softcap, alibi_slopes=slopes
    )
    close(got, torch.cat(wanted), 1e-5)


def plain(q: Any, k: Any, v: Any, window: int | None, softcap: float | None, slopes: Any) -> Any:
    """Query by query, head by head."""
    out = torch.empty_like(q)
    for i in range(len(q)):
        position = len(k) - len(q) + i
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(q.shape[1]):
            scores = k[first : position + 1, head // 2] @ q[i, head] * 0.3
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            if slopes is not None:
                scores = scores - slopes[head] * (position - torch.arange(first, position + 1))
            out[i, head] = scores.softmax(0) @ v[first : position + 1, head // 2]
    return out


def test_ops_are_set_on_every_module(folder: Path) -> None:
    model = load_folder(folder)
    chosen = ops("torch")
    use_ops(model, chosen)
    assert all(module.ops is chosen for module in model.modules() if hasattr(module, "ops"))


def test_ranks_that_do_not_divide_the_model(folder: Path) -> None:
    with pytest.raises(EngineStartFailed, match="cannot be split over 3 ranks"):
        load_folder(folder, parallel=Parallel(0, 3))


def test_two_ranks_equal_one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """OLMo-2 and a MoE too: norms over all heads, experts, and key/value heads that ranks share."""
    folders = [folder]
    for name, changes in (
        ("Olmo2", {"num_key_value_heads": 1}),
        ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}),
        ("Gemma2", {"head_dim": 24}),
        ("Cohere", {}),
    ):
        folders.append(tmp_path_factory.mktemp(name))
        classes = [getattr(transformers, name + kind) for kind in ("Config", "ForCausalLM")]
        toy(*classes, **changes).save_pretrained(folders[-1])
    store = tmp_path_factory.mktemp("store") / "store"
    command = [sys.executable, "-m", "tests.runner.engines.native.two_ranks", str(store)]
    ranks = [subprocess.Popen([*command, str(rank), *map(str, folders)], cwd=ROOT) for rank in range(2)]
    try:
        assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for path in folders:
        runner = Runner(load_folder(path))
        token_ids = torch.load(path / "ids.pt")
        assert runner.greedy(token_ids[:9], len(token_ids) - 9) == token_ids[9:]
        stream = runner.stream(token_ids)
        close(runner.step((stream, len(token_ids)))[0], torch.load(path / "logits.pt"))
