"""The LLaMA kind of families at toy size, equal to transformers where it has them.

Those it has no longer are the same function as one that it has, with weights stored otherwise; the tests store them so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402

from runner.engines.native.models import find_family  # noqa: E402
from tests.runner.engines.native.families import (  # noqa: E402
    Runner,
    check_family,
    check_logits,
    load_folder,
    toy,
    transformers_logits,
)

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 6, "head_dim": 24},
    "Qwen2": {},
    "Qwen3": {"head_dim": 24, "tie_word_embeddings": True},
    "Phi3": {"original_max_position_embeddings": 64},
    "Gemma": {"head_dim": 24, "num_key_value_heads": 1},
    "Gemma2": {"head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 30, "attn_logit_softcapping": 3.0,
               "final_logit_softcapping": 2.0},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {**MOE, "shared_expert_intermediate_size": 48},
    "Qwen3Moe": {**MOE, "num_hidden_layers": 3, "mlp_only_layers": [1], "norm_topk_prob": True, "head_dim": 24},
    "Glm": {"head_dim": 32},
    "Glm4": {"head_dim": 32},
    "Olmo2": {},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Granite": {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                "logits_scaling": 0.7},
    "Cohere": {"logit_scale": 0.5},
}  # fmt: skip


def toy_of(family: str, **changes: Any) -> Any:
    """A toy of one of transformers' families."""
    config, model = (getattr(transformers, f"{family}{kind}") for kind in ("Config", "ForCausalLM"))
    return toy(config, model, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path: Path, family: str) -> None:
    check_family(toy_of(family, **FAMILIES[family]), tmp_path)


@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_scaling(tmp_path: Path, kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 5000.0, **SCALINGS[kind]}
    check_family(toy_of("Llama", rope_parameters=parameters), tmp_path)


def test_old_spelling_of_rope_scaling(tmp_path: Path) -> None:
    def spell(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 4.0})

    parameters = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    check_family(toy_of("Llama", rope_parameters=parameters), tmp_path, edit=spell)


@pytest.mark.parametrize("original", [16, 32])
def test_longrope(tmp_path: Path, original: int) -> None:
    """Long factors where the context is longer than `original`, as transformers has them in a sequence that is."""
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)]}
    model = toy_of("Phi3", original_max_position_embeddings=original, max_position_embeddings=4 * original,
                   rope_parameters={"rope_type": "longrope", "rope_theta": 5000.0, **factors})  # fmt: skip
    model.save_pretrained(tmp_path)
    ours = load_folder(tmp_path, context_length=64 if original == 16 else 32)
    check_logits(ours, transformers_logits(model), length=21)


def test_dynamic_rope_beyond_the_trained_context(tmp_path: Path) -> None:
    """Frequencies of a context of 80 are transformers' for a sequence of 80."""
    model = toy_of("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 2.0})
    model.save_pretrained(tmp_path)
    runner = Runner(load_folder(tmp_path, context_length=80))
    token_ids = [(7 * i) % 128 for i in range(80)]
    difference = runner.step((runner.stream(token_ids), 80))[0] - transformers_logits(model)(token_ids)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("is_old", [False, True])
def test_gemma3(tmp_path: Path, is_old: bool) -> None:
    """Windows and two kinds of rotary positions; configurations of before and after rope_parameters."""

    def spell(config: dict[str, Any]) -> None:
        if is_old:
            for key in ("rope_parameters", "layer_types"):
                del config[key]
            config.update(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "linear", "factor": 8.0},
                          sliding_window_pattern=3)  # fmt: skip

    parameters = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                  "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    model = toy(transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM, num_hidden_layers=3, head_dim=24,
                sliding_window=6, layer_types=kinds, rope_parameters=parameters, query_pre_attn_scalar=30)  # fmt: skip
    check_family(model, tmp_path, edit=spell)


@pytest.mark.parametrize("model_type", ["xverse", "aquila", "Yi"])
def test_llama_under_another_name(tmp_path: Path, model_type: str) -> None:
    check_family(toy_of("Llama"), tmp_path, edit=lambda config: config.update(model_type=model_type))


def test_internlm(tmp_path: Path) -> None:
    def spell(config: dict[str, Any]) -> None:
        config.update(model_type="internlm", bias=config.pop("attention_bias"))

    check_family(toy_of("Llama", attention_bias=True, num_key_value_heads=4), tmp_path, edit=spell)


def store(folder: Path, model: Any, rename: list[tuple[str, str]], fuse: Callable[[Any], Any], **changes: Any) -> Any:
    """Save a toy as another family stores it; our model of that folder."""
    weights = dict(model.state_dict())
    fuse(weights)
    named = {}
    for name, value in weights.items():
        for pattern, replacement in rename:
            name = re.sub(pattern, replacement, name)
        named[name] = value.contiguous().clone()
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), **changes}))
    return load_folder(folder)


def fuse_qkv(name: str, suffixes: tuple[str, ...] = ("weight",), groups: int | None = None) -> Callable[[Any], None]:
    """q, k and v joined by rows; in `groups` of [q heads, k, v] of head_dim 16."""

    def fuse(weights: Any) -> None:
        for layer in range(2):
            prefix = f"model.layers.{layer}.self_attn."
            for suffix in suffixes:
                parts = [weights.pop(f"{prefix}{part}_proj.{suffix}") for part in "qkv"]
                if groups:
                    parts = [torch.cat([p.view(groups, -1, 16, p.shape[-1]) for p in parts], 1).flatten(0, 2)]
                weights[f"{prefix}{name}.{suffix}"] = torch.cat(parts)

    return fuse


def test_internlm2(tmp_path: Path) -> None:
    model = toy_of("Llama")
    rename = [("self_attn.wqkv", "attention.wqkv"), ("self_attn.o_proj", "attention.wo"),
              ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"),
              ("mlp.down_proj", "feed_forward.w2"), ("embed_tokens", "tok_embeddings"),
              ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"),
              ("lm_head", "output")]  # fmt: skip
    ours = store(tmp_path, model, rename, fuse_qkv("wqkv", groups=2), model_type="internlm2", bias=False)
    check_logits(ours, transformers_logits(model))


def test_qwen(tmp_path: Path) -> None:
    model = toy_of("Qwen2", num_key_value_heads=4)
    rename = [("self_attn.c_attn", "attn.c_attn"), ("self_attn.o_proj", "attn.c_proj"), ("mlp.gate_proj", "mlp.w2"),
              ("mlp.up_proj", "mlp.w1"), ("mlp.down_proj", "mlp.c_proj"), ("embed_tokens", "wte"), ("layers", "h"),
              ("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2"), ("model.norm", "model.ln_f"),
              ("^model", "transformer")]  # fmt: skip
    ours = store(
        tmp_path, model, rename, fuse_qkv("c_attn", ("weight", "bias")), model_type="qwen", intermediate_size=192,
        kv_channels=16, rotary_emb_base=10000, rotary_pct=1.0, seq_length=64, layer_norm_epsilon=1e-6, no_bias=True,
    )  # fmt: skip
    check_logits(ours, transformers_logits(model))


@pytest.mark.parametrize("model_type", ["baichuan", "baichuan2"])
def test_baichuan_7b(tmp_path: Path, model_type: str) -> None:
    model = toy_of("Llama", num_key_value_heads=4)
    ours = store(tmp_path, model, [], fuse_qkv("W_pack"), model_type=model_type)
    if model_type == "baichuan2":
        model.lm_head.weight.data = torch.nn.functional.normalize(model.lm_head.weight.data)
    check_logits(ours, transformers_logits(model))


@pytest.mark.parametrize("heads", [4, 6])
def test_baichuan_13b(tmp_path: Path, heads: int) -> None:
    """LLaMA whose rotary frequencies are zero, under a mask that holds the ALiBi bias."""
    model = toy_of("Llama", hidden_size=16 * heads, num_attention_heads=heads, num_key_value_heads=heads)
    ours = store(tmp_path, model, [], fuse_qkv("W_pack"), model_type="baichuan", max_position_embeddings=None,
                 model_max_length=64)  # fmt: skip
    model.model.rotary_emb.inv_freq.zero_()
    slopes = {4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]}[heads]

    def reference(token_ids: list[int]) -> Any:
        places = torch.arange(len(token_ids))
        behind = (places[:, None] - places[None]).float()
        mask = (-torch.tensor(slopes)[:, None, None] * behind).masked_fill(behind < 0, float("-inf"))[None]
        with torch.inference_mode():
            return model(torch.tensor([token_ids]), attention_mask=mask, use_cache=False).logits[0]

    check_logits(ours, reference)


def test_families_are_found_by_name() -> None:
    assert find_family({"model_type": "no-such-model"}) is None
    assert find_family({"model_type": "../llama"}) is None
    assert find_family({"model_type": "cohere", "use_qk_norm": True}) is None
    assert all(find_family({"model_type": name}) for name in ("llama", "qwen3_moe", "yi", "gemma3"))


@pytest.mark.parametrize(
    ("folder", "golden"),
    [("stories260k-hf", "stories260k"), ("stories260k-hd32-hf", "stories260k"), ("stories3m-hf", "stories3m")],
)
def test_golden_ids(shared_data: Path, folder: str, golden: str) -> None:
    prompts = json.loads((shared_data / "models" / f"{golden}.golden.json").read_text())["prompts"]
    runner = Runner(load_folder(shared_data / "models" / folder), num_blocks=256)
    for prompt in prompts:
        wanted = prompt["greedy_ids"]
        assert runner.greedy(prompt["prompt_ids"], len(wanted)) == wanted


def test_sharded_bf16_checkpoint_loads_as_float32(shared_data: Path) -> None:
    sharded = load_folder(shared_data / "models" / "stories3m-bf16-sharded-hf")
    whole = load_folder(shared_data / "models" / "stories3m-hf")
    for (name, ours), wanted in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, wanted.to(torch.bfloat16).float()), name
