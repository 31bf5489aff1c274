"""GGUF files: toys written as llama.cpp's converter writes them give the logits of the model they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from model_cards.card import ModelCard  # noqa: E402
from model_cards.errors import ModelFileError  # noqa: E402
from runner.engines.native.gguf_weights import GgufSource  # noqa: E402
from runner.engines.native.models import find_family  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from runner.errors import EngineStartFailed  # noqa: E402
from runner.types import SamplingParams  # noqa: E402
from tests.runner.engines.llamacpp_driver import Driver  # noqa: E402
from tests.runner.engines.native import test_models_llama, test_models_older  # noqa: E402
from tests.runner.engines.native.families import Runner, build, check_logits, tokens, toy, transformers_logits  # noqa: E402
from tests.runner.engines.native.gguf_toys import write_gguf  # noqa: E402


def load_gguf(path: Path, **options: Any) -> Any:
    """Our model of a GGUF file, float32."""
    source = GgufSource(path)
    family = find_family(source.config)
    assert family is not None
    spec, names = source.adapt(family.spec(source.config))
    return build(spec, names, source, dtype=torch.float32, **options)


def check_golden(model: Any, golden: Path, kind: str) -> None:
    """Greedy ids of every prompt whose margins are wide enough."""
    runner = Runner(model, num_blocks=256)
    for prompt in json.loads(golden.read_text())["prompts"]:
        wanted = prompt.get(f"greedy_ids_{kind}") or prompt["greedy_ids"]
        got = runner.greedy(prompt["prompt_ids"], len(wanted))
        assert got == wanted or prompt["min_margin"] < 0.001, (prompt["prompt_ids"], got, wanted)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("stories260k.f32", "f32"),
        ("stories260k.f16", "f16"),
        ("stories260k.q8_0", "q8_0"),
        ("stories3m.f16", "f16"),
        ("stories3m-split.f16-00001-of-00003", "f16"),
        ("stories3m.q8_0", "q8_0"),
        ("tinychat-3m.f16", "f16"),
        ("tinychat-3m.q8_0", "q8_0"),
        ("tinychat-3m.q4_0", "q4_0"),
    ],
)
def test_golden_ids(shared_data: Path, file: str, kind: str) -> None:
    models = shared_data / "models"
    name = file.split(".")[0].removesuffix("-split")
    check_golden(load_gguf(models / f"{file}.gguf"), models / f"{name}.golden.json", kind)


# architecture: name in test_models_llama or test_models_older, changes of the toy, further metadata
TOYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "llama-experts": ("Mixtral", {}, {}),
    "internlm2": ("Llama", {}, {}),
    "baichuan": ("Llama", {"num_key_value_heads": 4}, {}),
    "xverse": ("Llama", {"num_key_value_heads": 4}, {}),
    "qwen": ("Qwen2", {"num_key_value_heads": 4}, {"feed_forward_length": 192}),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", {}, {}),
    "qwen2moe": ("Qwen2Moe", {}, {}),
    "qwen3moe": ("Qwen3Moe", {"mlp_only_layers": []}, {}),
    "gemma": ("Gemma", {}, {}),
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 24}, {}),
    "phi3": ("Phi3", {}, {}),
    "olmo2": ("Olmo2", {}, {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}, {}),
    "granite": ("Granite", {}, {"attention.scale": 0.3, "embedding_scale": 3.0, "residual_scale": 0.5,
                                "logit_scale": 0.7}),
    "glm4": ("Glm4", {}, {}),
    "chatglm": ("Glm", {"head_dim": 16}, {}),
    "command-r": ("Cohere", {}, {}),
    "gpt2": ("gpt2", {}, {}),
    "gptneox": ("gpt_neox", {}, {"use_parallel_residual": True}),
    "gptneox-sequential": ("gpt_neox-sequential", {"attention_bias": True}, {"use_parallel_residual": False}),
    "bloom": ("bloom", {}, {}),
    "falcon": ("falcon-7b", {}, {"attention.head_count_kv": 1}),
    "falcon-40b": ("falcon-40b", {}, {}),
    "mpt": ("mpt-clipped", {"attn_config": {"clip_qkv": 0.7}}, {"attention.clamp_kqv": 0.7,
                                                                "attention.max_alibi_bias": 8.0}),
    "starcoder": ("gpt_bigcode", {}, {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}, {}),
    "stablelm": ("stablelm", {}, {}),
    "stablelm-parallel": ("stablelm-parallel", {}, {}),
    "phi2": ("phi", {"num_key_value_heads": 4}, {}),
}  # fmt: skip
ARCHITECTURES = {"llama-experts": "llama", "gptneox-sequential": "gptneox", "falcon-40b": "falcon",
                 "stablelm-parallel": "stablelm"}  # fmt: skip


def make_toy(name: str, path: Path, **options: Any) -> Any:
    """The model and its GGUF file."""
    family, changes, keys = TOYS[name]
    if family in test_models_llama.FAMILIES:
        model = test_models_llama.toy_of(family, **test_models_llama.FAMILIES[family] | changes)
    else:
        model = test_models_older.toy_of(family, **changes)
    write_gguf(model, path, ARCHITECTURES.get(name, name), keys, **options)
    return model


@pytest.mark.parametrize("name", TOYS)
def test_architecture(tmp_path: Path, name: str) -> None:
    model = make_toy(name, tmp_path / "toy.gguf")
    check_logits(load_gguf(tmp_path / "toy.gguf"), transformers_logits(model))


@pytest.mark.llamacpp
@pytest.mark.usefixtures("llamacpp_library")
@pytest.mark.parametrize("name", ["chatglm", "llama", "internlm2", "xverse", "gemma2", "falcon-40b", "qwen3moe", "mpt"])
def test_llamacpp_reads_the_same(tmp_path: Path, name: str) -> None:
    """The toys are files as llama.cpp wants them. It rounds masks and exponentials: 1e-3 is what it keeps."""
    path, prompt = tmp_path / "toy.gguf", tokens(128, 21, 1)
    make_toy(name, path)
    runner = Runner(load_gguf(path))
    ours = runner.step((runner.stream(prompt), 21))[0][-1].log_softmax(-1)
    card = ModelCard(name="toy", source=str(path), kind="gguf", path=str(path), vocab_size=128, context_length=64)
    with Driver(path, card, threads=1, context_length=64) as driver:
        answer = driver.ask(prompt, SamplingParams(temperature=0.0, logprobs=5), max_tokens=8)
    assert answer.token_ids == runner.greedy(prompt, 8)
    assert dict(answer.logprobs[0].top) == pytest.approx(
        {i: ours[i].item() for i, _ in answer.logprobs[0].top}, abs=5e-3
    )


def test_gemma3(tmp_path: Path) -> None:
    """Two kinds of rotary positions, one of them stretched; windows on all layers but each sixth."""
    parameters = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                  "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    model = toy(transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM, num_hidden_layers=6, head_dim=24,
                sliding_window=6, rope_parameters=parameters, query_pre_attn_scalar=24)  # fmt: skip
    write_gguf(model, tmp_path / "toy.gguf", "gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0})
    check_logits(load_gguf(tmp_path / "toy.gguf"), transformers_logits(model))


def test_rope_factors_of_llama3(tmp_path: Path) -> None:
    scaling = test_models_llama.SCALINGS["llama3"]
    model = test_models_llama.toy_of("Llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5000.0, **scaling})
    plain = 5000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).tolist()
    assert factors[0] == 1.0 and factors[-1] == 8.0
    write_gguf(model, tmp_path / "toy.gguf", "llama", extra={"rope_freqs.weight": factors})
    check_logits(load_gguf(tmp_path / "toy.gguf"), transformers_logits(model))


@pytest.mark.parametrize(("length", "original"), [(64, 16), (32, 32)])
def test_long_and_short_rope_factors_of_phi3(tmp_path: Path, length: int, original: int) -> None:
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)]}
    model = test_models_llama.toy_of("Phi3", original_max_position_embeddings=original, max_position_embeddings=64,
                       rope_parameters={"rope_type": "longrope", "rope_theta": 5000.0, **factors})  # fmt: skip
    keys = {"rope.scaling.original_context_length": original, "rope.scaling.type": "longrope",
            "rope.scaling.attn_factor": model.model.rotary_emb.attention_scaling}  # fmt: skip
    extra = {f"rope_factors_{kind}.weight": factors[f"{kind}_factor"] for kind in ("short", "long")}
    write_gguf(model, tmp_path / "toy.gguf", "phi3", keys, extra=extra)
    check_logits(load_gguf(tmp_path / "toy.gguf", context_length=length), transformers_logits(model))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling(tmp_path: Path, kind: str) -> None:
    scaling = test_models_llama.SCALINGS[kind]
    model = test_models_llama.toy_of("Qwen2", rope_parameters={"rope_type": kind, "rope_theta": 5000.0, **scaling})
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    write_gguf(model, tmp_path / "toy.gguf", "qwen2", keys)
    check_logits(load_gguf(tmp_path / "toy.gguf"), transformers_logits(model))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_quantised(tmp_path: Path, name: str, kind: str) -> None:
    """As exact as the kind of numbers: the whole is a model whose weights were rounded so."""
    make_toy(name, tmp_path / "toy.gguf", quantize=kind)
    make_toy(name, tmp_path / "exact.gguf")
    rounded, exact = load_gguf(tmp_path / "toy.gguf"), load_gguf(tmp_path / "exact.gguf")
    step = {"Q8_0": 1e-2, "Q4_0": 0.2, "Q5_1": 0.1, "F16": 1e-3, "BF16": 1e-2}[kind]
    for (path, ours), wanted in zip(rounded.named_parameters(), exact.parameters(), strict=True):
        assert (ours - wanted).abs().max() <= step * wanted.abs().max(), path


def test_a_rank_reads_its_share(tmp_path: Path) -> None:
    make_toy("llama", tmp_path / "toy.gguf", quantize="Q8_0")
    whole = load_gguf(tmp_path / "toy.gguf")
    halves = [load_gguf(tmp_path / "toy.gguf", parallel=Parallel(rank, 2)) for rank in range(2)]
    q, kv = whole.get_submodule("layers.0.attn.qkv").weight.split((64, 64))
    rank1 = torch.cat([q[32:], kv[16:32], kv[48:]])
    assert torch.equal(halves[1].get_submodule("layers.0.attn.qkv").weight, rank1)
    downs = [half.get_submodule("layers.0.mlp.down").weight for half in halves]
    assert torch.equal(torch.cat(downs, 1), whole.get_submodule("layers.0.mlp.down").weight)


def test_experts_apart(tmp_path: Path) -> None:
    """Mixtral files of before March 2024."""
    make_toy("llama-experts", tmp_path / "toy.gguf")
    make_toy("llama-experts", tmp_path / "apart.gguf", apart=True)
    stacked, apart = load_gguf(tmp_path / "toy.gguf"), load_gguf(tmp_path / "apart.gguf")
    assert all(torch.equal(a, b) for a, b in zip(stacked.parameters(), apart.parameters(), strict=True))


def test_numbers_that_nobody_dequantises(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "toy.gguf", "llama")
    for key in ("embedding_length", "block_count", "attention.head_count", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_tensor("token_embd.weight", np.zeros((2, 292), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "toy.gguf")
    assert source.shape("token_embd.weight") == (2, 256)
    with pytest.raises(ModelFileError, match=r"token_embd\.weight .* is Q8_K, which out=native cannot dequantise"):
        source.read("token_embd.weight")


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "toy.gguf", "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(EngineStartFailed, match=r"'rwkv7'; it can: .*llama"):
        GgufSource(tmp_path / "toy.gguf")


def test_missing_number(tmp_path: Path) -> None:
    make_toy("llama", tmp_path / "toy.gguf")
    data = (tmp_path / "toy.gguf").read_bytes().replace(b"llama.block_count", b"llama.xlock_count")
    (tmp_path / "toy.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"lacks metadata llama\.block_count"):
        GgufSource(tmp_path / "toy.gguf")
