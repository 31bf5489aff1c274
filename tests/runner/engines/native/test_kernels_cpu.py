"""Kernels in C++ against the torch reference: every op over random shapes, and whole decoders of every block shape."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runner.engines.native.kernels import cpu, cpu_build, torch_ops  # noqa: E402
from runner.engines.native.kernels import cpu_library as c  # noqa: E402
from runner.engines.native.kernels.cpu_decoder import CpuDecoder, accelerate  # noqa: E402
from runner.engines.native.kernels.ops import HeadNorms, Rotation  # noqa: E402
from runner.engines.native.layers.batch import Batch  # noqa: E402
from runner.engines.native.layers.cache import KVCache, LayerCache  # noqa: E402
from runner.engines.native.layers.decoder import Decoder  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from runner.engines.native.plan import StepPlan  # noqa: E402
from runner.engines.native.spec import DecoderSpec, RopeSpec  # noqa: E402
from tests.runner.engines.native.families import Runner, tokens  # noqa: E402

try:
    cpu_build.find_compiler()
except cpu_build.BuildFailed as problem:
    pytest.skip(str(problem), allow_module_level=True)

F32, BF16 = torch.float32, torch.bfloat16
CACHES = [F32, BF16, torch.float16, torch.int8, torch.float8_e4m3fn]
TOLERANCE = {F32: 2e-5, BF16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def kernels() -> Any:
    library = c.open_library(2)
    assert library is not None
    return library


@pytest.fixture(scope="module")
def ops(kernels: Any) -> Any:
    return cpu.CpuOps(kernels)


def close(got: Any, wanted: Any, tolerance: float) -> None:
    torch.testing.assert_close(got.float(), wanted.float(), rtol=tolerance, atol=tolerance)


def normal(*shape: int, dtype: Any = F32, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- matrices --------------------------------------------------------------------------------------------------------


def linear(kernels: Any, x: Any, weight: Any, bias: Any, gated: bool = False) -> Any:
    """Through a packed weight, as the decoder does it."""
    kind, (n, k) = cpu.TYPES[weight.dtype], weight.shape
    described = c.Weight(None, None if bias is None else bias.data_ptr(), n, k, kind, gated)
    memory = torch.empty(kernels.packed_bytes(ctypes.byref(described)) + 64, dtype=torch.uint8)
    described.data = memory.data_ptr() + -memory.data_ptr() % 64
    kernels.pack(kernels.pool, weight.data_ptr(), kind, weight.stride(0), ctypes.byref(described))
    rows = torch.zeros(-(-len(x) // 32) * 32, -(-k // 32) * 32 + 32, dtype=weight.dtype)
    rows[: len(x), :k] = x
    y = torch.empty(len(x), n)
    kernels.linear(kernels.pool, ctypes.byref(described), len(x), rows.data_ptr(), rows.stride(0), y.data_ptr())
    return y


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 11, 16, 17, 32, 33, 200])
@pytest.mark.parametrize(
    ("k", "n", "gated"), [(64, 96, False), (40, 33, False), (256, 1000, False), (72, 2 * 40, True)]
)
def test_linear_equals_torchs(kernels: Any, dtype: Any, rows: int, k: int, n: int, gated: bool) -> None:
    x, weight = normal(rows, k, dtype=dtype), normal(n, k, dtype=dtype, seed=1) / k**0.5
    bias = normal(n, seed=2) if n % 2 else None
    wanted = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    close(linear(kernels, x, weight, bias, gated), wanted, 1e-5)


def test_linear_reads_halves_and_strides(kernels: Any) -> None:
    wide = normal(48, 100, dtype=torch.float16)
    described = c.Weight(None, None, 48, 64, c.F32, 0)
    memory = torch.zeros(kernels.packed_bytes(ctypes.byref(described)), dtype=torch.uint8)
    described.data = memory.data_ptr()
    kernels.pack(kernels.pool, wide.data_ptr(), c.F16, wide.stride(0), ctypes.byref(described))
    x, y = normal(32, 64), torch.empty(32, 48)
    kernels.linear(kernels.pool, ctypes.byref(described), 32, x.data_ptr(), 64, y.data_ptr())
    close(y, x @ wide[:, :64].float().T, 1e-5)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (7, 100), (33, 256)])
def test_norms(ops: Any, dtype: Any, shape: tuple[int, int]) -> None:
    x, delta, weight = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1), normal(shape[1], seed=2)
    close(ops.rms_norm(x, weight, 1e-5), torch_ops.rms_norm(x, weight, 1e-5), TOLERANCE[dtype])
    ours, theirs = x.clone(), x.clone()
    got = ops.add_rms_norm(ours, delta, weight, 1e-5)
    close(got, torch_ops.add_rms_norm(theirs, delta, weight, 1e-5), TOLERANCE[dtype])
    close(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("activation", list(torch_ops.ACTIVATIONS))
def test_gate(ops: Any, dtype: Any, activation: str) -> None:
    x = 4 * normal(9, 2 * 52, dtype=dtype)
    close(ops.gate(x, activation), torch_ops.gate(x.clone(), activation), TOLERANCE[dtype])


def test_silu_of_extremes(ops: Any) -> None:
    x = torch.tensor([[-1e9, -90.0, 0.0, 90.0, 1e9, float("nan"), 1, 1] + [1.0] * 8])
    close(ops.gate(x, "silu")[0, :5], torch_ops.gate(x.clone(), "silu")[0, :5], 1e-6)
    assert ops.gate(x, "silu")[0, 5].isnan()


def make_cache(dtype: Any, blocks: int, block_size: int, kv_heads: int, dim: int) -> LayerCache:
    return KVCache(1, blocks, block_size, kv_heads, dim, dtype, "cpu").layers[0]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize(
    ("dim", "rope_dim", "interleaved", "has_norms"), [(64, 64, False, False), (24, 16, True, True)]
)
def test_rope_write(
    ops: Any, dtype: Any, cache_dtype: Any, dim: int, rope_dim: int, interleaved: bool, has_norms: bool
) -> None:
    heads, kv_heads, count = 6, 2, 13
    qkv = normal(count, heads + 2 * kv_heads, dim, dtype=dtype)
    norms = HeadNorms(normal(dim, seed=3), normal(dim, seed=4), 1e-6) if has_norms else None
    angles = normal(count, rope_dim // 2, seed=5)
    rotation = Rotation(torch.cat([angles.cos(), angles.sin()], -1), interleaved)
    slots = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:count]
    results = []
    for backend in (ops, torch_ops):
        cache, mine = make_cache(cache_dtype, 4, 8, kv_heads, dim), qkv.clone()
        backend.rope_write(mine, heads, norms, rotation, cache, slots)
        results.append((mine[:, : heads + kv_heads], values(cache.k, cache.k_scale), values(cache.v, cache.v_scale)))
    tolerance = 0.13 if cache_dtype == torch.float8_e4m3fn else 0.03 if torch.int8 in (cache_dtype,) else 2e-5
    for index, (got, wanted) in enumerate(zip(*results, strict=True)):
        close(got, wanted, max(TOLERANCE[dtype], TOLERANCE.get(cache_dtype, tolerance) if index else 0))


def values(store: Any, scales: Any) -> Any:
    return store.float() if scales is None else store.float() * scales.unsqueeze(-1)


def test_write_cache_of_projections(ops: Any) -> None:
    kv = normal(5, 4, 16)
    ours, theirs = make_cache(F32, 2, 4, 2, 16), make_cache(F32, 2, 4, 2, 16)
    slots = torch.tensor([7, 0, 3, 5, 1])
    ops.write_cache(kv[:, :2], kv[:, 2:], ours, slots)
    torch_ops.write_cache(kv[:, :2], kv[:, 2:], theirs, slots)
    assert torch.equal(ours.k, theirs.k)
    assert torch.equal(ours.v, theirs.v)


def test_every_fp8_value_is_read_and_written_as_torch_does(ops: Any) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    exact = codes.float().nan_to_num(0.0).view(1, 1, 256)
    exact[0, 0, 0] = 448.0  # the scale is one
    cache = make_cache(torch.float8_e4m3fn, 1, 1, 1, 256)
    ops.write_cache(exact, exact, cache, torch.tensor([0]))
    assert torch.equal(values(cache.k, cache.k_scale)[0, 0], exact[0])


# --- attention -------------------------------------------------------------------------------------------------------


def random_plan(pick: random.Random, block_size: int, blocks: int) -> StepPlan:
    """Decodes and chunks of prompts, with cached tokens before them, on scattered blocks."""
    query_lens = [pick.choice([1, 1, 1, 2, 5, 17, 70]) for _ in range(pick.randint(1, 6))]
    lens = [count + pick.choice([0, 0, 3, 40, 150]) for count in query_lens]
    free = list(range(1, blocks))
    pick.shuffle(free)
    width = max(-(-length // block_size) for length in lens)
    tables = np.zeros((len(lens), width), np.int32)
    for row, length in enumerate(lens):
        for column in range(-(-length // block_size)):
            tables[row, column] = free.pop()
    starts = np.cumsum([0, *query_lens], dtype=np.int32)
    positions = [p for count, length in zip(query_lens, lens, strict=True) for p in range(length - count, length)]
    empty = np.zeros(int(starts[-1]), np.int32)
    return StepPlan(empty, np.asarray(positions, np.int32), empty, starts, np.asarray(lens, np.int32), tables,
                    starts[1:] - 1, np.zeros((0, 2), np.int32))  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_paged_attention(ops: Any, seed: int) -> None:
    pick = random.Random(seed)
    block_size, dim = pick.choice([1, 4, 16, 32, 48]), pick.choice([8, 24, 64, 80, 128, 256])
    heads, kv_heads = pick.choice([(1, 1), (4, 4), (4, 2), (6, 2), (8, 1), (12, 3), (71, 1), (96, 2)])
    cache_dtype, dtype = pick.choice(CACHES), pick.choice([F32, F32, BF16])
    window, softcap = pick.choice([None, None, 1, 7, 64]), pick.choice([None, None, 5.0])
    slopes = torch.tensor([2.0 ** -(i % 8 + 1) for i in range(heads)]) if pick.random() < 0.3 else None
    blocks = 1500 if block_size < 16 else 120
    cache = make_cache(cache_dtype, blocks, block_size, kv_heads, dim)
    for store, scales in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        store.copy_((normal(*store.shape, seed=seed) * (20 if scales is not None else 1)).to(store.dtype))
        if scales is not None:
            scales.fill_(0.05)
    plan = random_plan(pick, block_size, blocks)
    batch = Batch.from_plan(plan, "cpu")
    qkv = normal(plan.num_tokens, heads + 2, dim, dtype=dtype, seed=seed + 1)
    options = {"scale": dim**-0.5, "window": window, "softcap": softcap, "alibi_slopes": slopes}
    got = ops.paged_attention(qkv[:, :heads], cache, batch, **options)
    wanted = torch_ops.paged_attention(qkv[:, :heads].float(), cache, batch, **options)
    assert got.dtype == dtype
    close(got, wanted, 3e-5 if dtype == F32 else 2e-2)


# --- whole decoders --------------------------------------------------------------------------------------------------

LLAMA = DecoderSpec(vocab_size=101, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
                    intermediate_size=104, norm_eps=1e-5, rope=RopeSpec(dim=16, max_position=256))  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tied_head": True, "vocab_size": 96},
    "odd sizes": {"hidden_size": 72, "head_dim": 24, "intermediate_size": 50,
                  "rope": RopeSpec(dim=8, interleaved=True)},
    "qwen": {"qkv_bias": True, "qk_norm": "head", "out_bias": True, "mlp_bias": True},
    "gemma": {"block": "sandwich", "norm_plus_one": True, "activation": "gelu_tanh", "embed_scale": 8.0,
              "attn_softcap": 5.0, "logit_softcap": 3.0, "windows": (6, None), "tied_head": True, "qk_norm": "head",
              "rope_local": RopeSpec(theta=100.0, dim=16)},
    "olmo2": {"block": "post_norm", "qk_norm": "full"},
    "granite": {"residual_scale": 0.5, "logit_scale": 0.7, "scale": 0.3, "embed_scale": 3.0},
    "no rope": {"no_rope_layers": frozenset({1})},
    "falcon": {"block": "parallel", "norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu",
               "num_kv_heads": 1},
    "neox": {"block": "parallel_two_norms", "norm": "layer", "norm_bias": True, "gated": False, "mlp_bias": True,
             "activation": "gelu", "qkv_bias": True, "out_bias": True},
    "bloom": {"position": "alibi", "alibi_slopes": (0.5, 0.25, 0.125, 0.0625), "norm": "layer", "norm_bias": True,
              "embed_norm": True, "residual_post_norm": True, "gated": False, "activation": "gelu_tanh",
              "num_kv_heads": 4},
    "opt": {"position": "learned", "max_position": 200, "position_offset": 2, "norm": "layer", "gated": False,
            "activation": "relu", "head_bias": True, "clip_qkv": 0.5},
}  # fmt: skip


def make_decoder(spec: DecoderSpec, dtype: Any) -> Decoder:
    model = Decoder(spec, Parallel.single(), dtype, "cpu")
    generator = torch.Generator().manual_seed(0)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_scale = value.dim() == 1 and "norm" in name and "weight" in name
            value.copy_(1 + 0.2 * noise if is_scale else noise * (0.9 / value.shape[-1] ** 0.5))
    model.set_context(256)
    return model


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", list(SPECS))
def test_decoder_equals_the_reference(name: str, dtype: Any) -> None:
    spec = dataclasses.replace(LLAMA, **SPECS[name])
    reference, ours = Runner(make_decoder(spec, F32), F32), accelerate(make_decoder(spec, dtype))
    assert isinstance(ours, CpuDecoder)
    fast = Runner(ours, dtype)  # type: ignore[arg-type]
    if dtype == BF16:  # the same rounded weights, exact arithmetic
        for value in reference.model.parameters():
            value.data = value.to(BF16).float()
    streams = [
        (runner.stream(tokens(96, 40, 1), 9), runner.stream(tokens(96, 9, 2), 9)) for runner in (reference, fast)
    ]
    for steps in [[(0, 23)], [(0, 17), (1, 4)], [(1, 5)]]:
        wanted, got = (
            runner.step(*[(pair[index], count) for index, count in steps])
            for runner, pair in zip((reference, fast), streams, strict=True)
        )
        for row, other in zip(wanted, got, strict=True):
            close(other, row, 1e-4 if dtype == F32 else 0.06)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma", "bloom"])
def test_a_step_computes_the_sampled_rows_only(name: str) -> None:
    """step(plan) leaves rows out after the last attention; the logits are those of all rows."""
    from tests.runner.engines.native.families import make_plan

    fast = Runner(accelerate(make_decoder(dataclasses.replace(LLAMA, **SPECS[name]), F32)), F32)  # type: ignore[arg-type]
    model: Any = fast.model
    pieces = [(fast.stream(tokens(96, 30, 1), 9), 30), (fast.stream(tokens(96, 9, 2), 9), 4)]
    plan = make_plan(pieces)
    wanted = model.logits(model(Batch.from_plan(plan, "cpu")))[plan.sample_rows]
    close(torch.from_numpy(model.step(plan)), wanted, 1e-6)
    assert model.step(dataclasses.replace(plan, sample_rows=plan.sample_rows[:0])) is None


def test_what_the_decoder_cannot_do_stays_op_by_op() -> None:
    from runner.engines.native.spec import MoeSpec

    experts = dataclasses.replace(LLAMA, moe=MoeSpec(4, 2, 32))
    assert isinstance(accelerate(make_decoder(experts, F32)), Decoder)
    assert isinstance(accelerate(make_decoder(LLAMA, torch.float16)), Decoder)


def test_no_second_copy_of_weights() -> None:
    model = make_decoder(dataclasses.replace(LLAMA, tied_head=True, vocab_size=96), F32)
    before = sum(value.nbytes for value in model.parameters())
    fast = accelerate(model)
    assert sum(value.nbytes for value in model.parameters()) < 0.05 * before  # norms
    assert sum(value.nbytes for value in fast.parameters()) < 1.2 * before


# --- building --------------------------------------------------------------------------------------------------------


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert c.open_library(1) is None
    assert "no C++ compiler (no-such-compiler)" in capsys.readouterr().err


def test_a_compiler_that_fails_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho 'api.cpp:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(cpu_build.BuildFailed, match=r"failed: api\.cpp:1: error: no such thing"):
        cpu_build.library_path()


def test_fewer_threads_give_the_same(kernels: Any) -> None:
    x, weight = normal(9, 64), normal(96, 64, seed=1)
    wanted = linear(kernels, x, weight, None)
    for threads in (1, 2, 1, 2):
        kernels.use_threads(threads)
        assert torch.equal(linear(kernels, x, weight, None), wanted)
