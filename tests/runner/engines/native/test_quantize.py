"""Quantised weights: at load, and from checkpoints of three formats against the same numbers as floats."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_cards.errors import ModelFileError  # noqa: E402
from runner.engines.native.checkpoint import open_folder  # noqa: E402
from runner.engines.native.kernels import cpu  # noqa: E402
from runner.engines.native.kernels.cpu_decoder import CpuDecoder, is_eligible  # noqa: E402
from runner.engines.native.kernels.torch_quantized import dequantize_kv, pack_nibbles, quantize_kv, unpack_nibbles  # noqa: E402
from runner.engines.native.layers.decoder import Decoder  # noqa: E402
from runner.engines.native.layers.linear import Linear  # noqa: E402
from runner.engines.native.layers.quantized_linear import (  # noqa: E402
    QuantizedExperts,
    QuantizedHead,
    QuantizedLinear,
)
from runner.engines.native.loader import load  # noqa: E402
from runner.engines.native.models import find_family  # noqa: E402
from runner.engines.native.packed import Packer, open_packed  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from runner.engines.native.quantize import Quantizer, quantize  # noqa: E402
from runner.errors import EngineStartFailed  # noqa: E402
from tests.runner.engines.native import packing  # noqa: E402
from tests.runner.engines.native.families import Runner, load_folder, tokens, toy  # noqa: E402

PROMPT = tokens(128, 13, 1)


def randn(*shape: int, seed: int = 0) -> Any:
    """float32"""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model: Decoder) -> Any:
    """Of every token of PROMPT."""
    runner = Runner(model)
    return runner.step((runner.stream(PROMPT), len(PROMPT)))[0]


def load_packed(folder: Path, parallel: Parallel | None = None) -> tuple[Decoder, list[str]]:
    """What model.py does for a quantised checkpoint; and the paths that were dequantised."""
    config = json.loads((folder / "config.json").read_text())
    family: Any = find_family(config)
    source = open_packed(open_folder(folder), config)
    model = Decoder(family.spec(config), parallel or Parallel.single(), torch.float32, "cpu")
    packer = Packer(model, source, family.names)
    load(model, source, family.names, take=packer)
    return model, packer.dense


# --- at load ----------------------------------------------------------------------------------------------------------


def test_nibbles() -> None:
    q = torch.randint(0, 16, (6, 10), dtype=torch.uint8)
    packed = pack_nibbles(q)
    assert torch.equal(packed[:, 2], q[:, 4] + 16 * q[:, 5])
    assert torch.equal(unpack_nibbles(packed), q)


@pytest.mark.parametrize(("kind", "columns"), [("int8", 100), ("int4", 256), ("int4", 192), ("int4", 96)])
def test_round_trip(kind: Any, columns: int) -> None:
    weight = randn(1500, columns)
    matrix = quantize(weight, kind, "w")
    group = columns if kind == "int8" else {256: 128, 192: 64, 96: 32}[columns]
    assert matrix.group_size == group and matrix.scales.shape == (1500, columns // group)
    error = (matrix.dequantize() - weight).view(1500, -1, group)
    if kind == "int8":
        assert (error.abs().amax(-1) <= matrix.scales * 0.51).all()
    else:
        assert error.std() < {128: 0.1, 64: 0.093, 32: 0.084}[group]  # of weights with 1


def test_rows_without_numbers_and_a_positive_row() -> None:
    weight = torch.stack([torch.zeros(64), torch.full((64,), 3.0), torch.linspace(1, 2, 64)])
    for kind in ("int8", "int4"):
        got = quantize(weight, kind, "w").dequantize()
        assert (got - weight).abs().max() < 0.08 and not got[0].any()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product(kind: Any, rows: int, dtype: Any) -> None:
    matrix, x, bias = quantize(randn(1000, 384), kind, "w"), randn(rows, 384, seed=1).to(dtype), randn(1000).to(dtype)
    wanted = x.float() @ matrix.dequantize().T + bias.float()
    got = matrix(x, bias)
    assert got.dtype == dtype
    assert (got.float() - wanted).norm() / wanted.norm() < {torch.float32: 1e-5}.get(dtype, 1e-2)


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.03), ("int4", 0.4)])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_model_at_load(tmp_path: Path, kind: Any, limit: float, is_tied: bool) -> None:
    toy(
        transformers.Qwen2Config, transformers.Qwen2ForCausalLM, tie_word_embeddings=is_tied
    ).save_pretrained(tmp_path)  # fmt: skip
    wanted = logits(load_folder(tmp_path))
    model = load_folder(tmp_path, replace=Quantizer(kind))
    assert (logits(model) - wanted).norm() / wanted.norm() < limit
    assert isinstance(model.get_submodule("layers.1.attn.qkv"), QuantizedLinear)
    head = model.head
    assert isinstance(head, QuantizedHead) and (head.matrix is model.get_submodule("embed.matrix")) is is_tied
    assert not any(isinstance(module, Linear) for module in model.modules())


def test_experts_at_load(tmp_path: Path) -> None:
    toy(
        transformers.MixtralConfig, transformers.MixtralForCausalLM, num_local_experts=4, num_experts_per_tok=2
    ).save_pretrained(tmp_path)  # fmt: skip
    wanted = logits(load_folder(tmp_path))
    model = load_folder(tmp_path, replace=Quantizer("int8"))
    assert isinstance(model.get_submodule("layers.0.mlp.experts"), QuantizedExperts)
    assert isinstance(model.get_submodule("layers.0.mlp.router"), Linear)
    assert (logits(model) - wanted).norm() / wanted.norm() < 0.05


def test_refuses_with_the_reason(tmp_path: Path) -> None:
    toy(transformers.LlamaConfig, transformers.LlamaForCausalLM, intermediate_size=100).save_pretrained(tmp_path)
    with pytest.raises(EngineStartFailed, match=r"layers\.0\.mlp\.down has 100 columns .* multiple of 32.*int8"):
        load_folder(tmp_path, replace=Quantizer("int4"))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_ranks_at_load(tmp_path: Path, kind: Any) -> None:
    """An output split holds rows of the whole's matrix; an input split is quantised from its own columns."""
    toy(transformers.LlamaConfig, transformers.LlamaForCausalLM, intermediate_size=128).save_pretrained(tmp_path)
    whole, plain = load_folder(tmp_path, replace=Quantizer(kind)), load_folder(tmp_path)
    halves = [load_folder(tmp_path, parallel=Parallel(rank, 2), replace=Quantizer(kind)) for rank in range(2)]
    up = whole.get_submodule("layers.0.mlp.up").matrices[0].dequantize()
    parts = [half.get_submodule("layers.0.mlp.up").matrices[0].dequantize() for half in halves]
    assert torch.equal(torch.cat([part[:64] for part in parts]), up[:128])
    x = randn(5, 128)
    down = [half.get_submodule("layers.0.mlp.down") for half in halves]
    assert all(part.sums_over is not None for part in down)
    summed = sum(part.matrices[0](piece) for part, piece in zip(down, x.chunk(2, 1), strict=True))
    wanted = plain.get_submodule("layers.0.mlp.down")(x)
    assert (summed - wanted).norm() / wanted.norm() < {"int8": 0.02, "int4": 0.15}[kind]


# --- keys and values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_keys_and_values(dtype: Any) -> None:
    x = randn(7, 2, 64)
    x[3, 1] = 0
    q, scale = quantize_kv(x.bfloat16(), dtype)
    assert q.dtype == dtype and scale.shape == (7, 2) and scale.dtype == torch.float32
    error = (dequantize_kv(q, scale, torch.float32) - x.bfloat16().float()).abs()
    limit = scale.unsqueeze(-1) * 0.51 if dtype == torch.int8 else scale.unsqueeze(-1) + x.abs() / 15
    assert (error <= limit).all()


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved toy with biases of q, k and v."""
    toy(transformers.Qwen2Config, transformers.Qwen2ForCausalLM).save_pretrained(tmp_path)
    return tmp_path


def plain(bits: int, group: int | None, is_symmetric: bool) -> Any:
    """name, weight -> Quantized, groups in order; None for one group."""
    return lambda name, weight: packing.quantized(weight, bits, group or weight.shape[1], is_symmetric=is_symmetric)


def shuffled(bits: int, group: int, seeds: dict[str, int]) -> Any:
    """Act-order: the order is the same for all projections of one input unless `seeds` says otherwise."""

    def make(name: str, weight: Any) -> packing.Quantized:
        kind = next((seed for part, seed in seeds.items() if part in name), 0)
        order = np.random.default_rng(kind).permutation(weight.shape[1])
        return packing.quantized(weight, bits, group, is_symmetric=False, order=order)

    return make


def check(folder: Path, stated: dict[str, Any], pack: Any, make: Any) -> Decoder:
    """The packed checkpoint gives the logits of the dense one, and its dequantised weights are the dense ones."""
    packed, dense = packing.write_pair(folder, stated, pack, make)
    wanted = load_folder(dense)
    ours, left = load_packed(packed)
    assert left == [] and not any(isinstance(module, Linear) for module in ours.modules())
    for path in ("layers.1.attn.qkv", "layers.0.mlp.down"):
        got = torch.cat([matrix.dequantize() for matrix in ours.get_submodule(path).matrices])
        torch.testing.assert_close(got, wanted.get_submodule(path).weight.data, rtol=1e-6, atol=1e-7)
    expected = logits(wanted)
    assert (logits(ours) - expected).abs().max() < 1e-4 * expected.abs().max()
    source = open_packed(open_folder(packed), json.loads((packed / "config.json").read_text()))
    name = "model.layers.0.self_attn.k_proj.weight"
    part = source.read(name, (slice(3, 30), slice(5, 61)))
    torch.testing.assert_close(part, open_folder(dense).read(name)[3:30, 5:61], rtol=1e-6, atol=1e-7)
    return ours


@pytest.mark.parametrize("group", [32, None])
def test_awq(folder: Path, group: int | None) -> None:
    stated = {"quant_method": "awq", "bits": 4, "group_size": group or -1, "version": "GEMM", "zero_point": True}
    check(folder, stated, packing.awq, plain(4, group, False))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, None), (8, 32), (8, None)])
def test_gptq(folder: Path, bits: int, group: int | None, is_symmetric: bool, version: int) -> None:
    form = {1: "gptq", 2: "gptq_v2"}[version]
    stated = {"quant_method": "gptq", "bits": bits, "group_size": group or -1, "checkpoint_format": form}
    ours = check(folder, stated, partial(packing.gptq, version=version), plain(bits, group, is_symmetric))
    matrix = ours.get_submodule("layers.0.attn.out").matrices[0]
    assert matrix.perm is None and (matrix.zeros is None) is (bits == 8 and is_symmetric)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_act_order(folder: Path, bits: int) -> None:
    stated = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True}
    ours = check(folder, stated, packing.gptq, shuffled(bits, 32, {}))
    qkv = ours.get_submodule("layers.0.attn.qkv")
    assert len(qkv.matrices) == 1 and qkv.matrices[0].perm is not None


def test_gptq_orders_that_differ_within_a_fused_projection(folder: Path) -> None:
    stated = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
    ours = check(folder, stated, packing.gptq, shuffled(4, 32, {"q_proj": 1, "v_proj": 2}))
    assert len(ours.get_submodule("layers.0.attn.qkv").matrices) == 3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_compressed_tensors(folder: Path, bits: int, group: int | None, is_symmetric: bool) -> None:
    weights = {"num_bits": bits, "type": "int", "strategy": "group" if group else "channel", "symmetric": is_symmetric}
    pack = partial(packing.compressed, is_symmetric=is_symmetric)
    check(folder, compressed_config(weights), pack, plain(bits, group, is_symmetric))


def test_compressed_tensors_in_act_order(folder: Path) -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": False, "actorder": "group"}
    pack = partial(packing.compressed, is_symmetric=False, has_order=True)
    check(folder, compressed_config(weights), pack, shuffled(4, 32, {}))


def compressed_config(weights: dict[str, Any]) -> dict[str, Any]:
    """As llm-compressor writes it."""
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


GPTQ4 = {"quant_method": "gptq", "bits": 4, "group_size": 32}


def test_experts_of_a_checkpoint(tmp_path: Path) -> None:
    model = toy(transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, num_experts=4, num_experts_per_tok=2,
                moe_intermediate_size=32, head_dim=16)  # fmt: skip
    model.save_pretrained(tmp_path)
    packed, dense = packing.write_pair(tmp_path, GPTQ4, packing.gptq, plain(4, 32, False))
    ours, left = load_packed(packed)
    assert left == [] and isinstance(ours.get_submodule("layers.0.mlp.experts"), QuantizedExperts)
    assert (logits(ours) - logits(load_folder(dense))).abs().max() < 1e-4


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_ranks_of_a_checkpoint(folder: Path, is_shuffled: bool) -> None:
    """Each rank's part equals its part of the floats; what act-order makes impossible is dequantised."""
    make = shuffled(4, 32, {}) if is_shuffled else plain(4, 32, False)
    packed, dense = packing.write_pair(folder, GPTQ4, packing.gptq, make)
    for rank in range(2):
        parallel = Parallel(rank, 2)
        (ours, left), wanted = load_packed(packed, parallel), load_folder(dense, parallel=parallel)
        # down has 96 columns: 48 on each rank are no multiple of a group
        splits = ("attn.out", "mlp.down") if is_shuffled else ("mlp.down",)
        assert left == [f"layers.{layer}.{name}" for layer in range(2) for name in splits]
        for path, module in wanted.named_modules():
            if isinstance(module, Linear):
                mine: Any = ours.get_submodule(path)
                got = mine.weight if path in left else torch.cat([m.dequantize() for m in mine.matrices])
                torch.testing.assert_close(got.data, module.weight.data, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes; out=native reads awq, gptq and"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ's version is gemv; out=native reads gemm"),
        ({"quant_method": "gptq", "bits": 3}, "GPTQ's bits is 3; out=native reads 4 or 8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format is marlin"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down": {"bits": 8}}}, r"bits of \+:\.\*down is 8"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "format is float-quantized"),
        (compressed_config({"num_bits": 4, "strategy": "tensor"}), "strategy of group_0 is tensor"),
    ],
)
def test_other_quantisations_are_refused(folder: Path, stated: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineStartFailed, match=message):
        open_packed(open_folder(folder), {"quantization_config": stated})


def test_no_quantisation(folder: Path) -> None:
    source = open_folder(folder)
    assert open_packed(source, {"quantization_config": None}) is source


def test_a_packed_checkpoint_of_another_shape(folder: Path) -> None:
    packed, _ = packing.write_pair(folder, GPTQ4, packing.gptq, plain(4, 32, False))
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(ModelFileError, match=r"(gate|up|down)_proj\.weight in .*safetensors has shape \["):
        load_packed(packed)


# --- the C++ decoder --------------------------------------------------------------------------------------------------


@pytest.fixture
def kernels() -> Any:
    library = cpu.library()
    if library is None:
        pytest.skip("no C++ compiler")
    return library


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_decoder(tmp_path: Path, kernels: Any, kind: Any, is_tied: bool, dtype: Any) -> None:
    """Prefill (panels are made dense) and decode (they are not) equal the reference ops, for biases and gates too."""
    toy(
        transformers.Qwen2Config, transformers.Qwen2ForCausalLM, tie_word_embeddings=is_tied, intermediate_size=160
    ).save_pretrained(tmp_path)  # fmt: skip
    plain, packed = (load_folder(tmp_path, replace=Quantizer(kind), dtype=dtype) for _ in range(2))
    assert is_eligible(packed)
    wanted, got = Runner(plain), Runner(CpuDecoder(packed, kernels))  # type: ignore[arg-type]
    streams = [runner.stream(PROMPT) for runner in (wanted, got)]
    for count in (8, 2, 1, 1, 1):
        theirs, ours = wanted.step((streams[0], count))[0], got.step((streams[1], count))[0]
        limit = 1e-5 if dtype == torch.float32 else 0.03
        assert (ours - theirs).norm() / theirs.norm() < limit


@pytest.mark.parametrize("bits", [4, 8])
def test_cpu_decoder_of_a_checkpoint(folder: Path, kernels: Any, bits: int) -> None:
    stated = GPTQ4 | {"bits": bits}
    packed, dense = packing.write_pair(folder, stated, packing.gptq, plain(bits, 32, False))
    wanted = logits(load_folder(dense))
    ours = CpuDecoder(load_packed(packed)[0], kernels)
    assert (logits(ours) - wanted).abs().max() < 1e-4 * wanted.abs().max()  # type: ignore[arg-type]
