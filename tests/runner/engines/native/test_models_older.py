"""Families before and beside LLaMA at toy size, equal to transformers.

ChatGLM, which transformers does not have, is the same function as its GLM with weights stored otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import save_file  # noqa: E402

from runner.engines.native.models import find_family  # noqa: E402
from runner.engines.native.models._alibi import alibi_slopes  # noqa: E402
from tests.runner.engines.native.families import (  # noqa: E402
    Runner,
    check_family,
    check_logits,
    load_folder,
    randomize,
    toy,
    transformers_logits,
)

COMMON = {"vocab_size": 128, "attn_implementation": "eager", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
HF = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
NEOX = {**HF, "intermediate_size": 96}
MPT = {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHead", {**GPT, "n_inner": 96}),
    "gpt2-unscaled": ("GPT2LMHead", {**GPT, "scale_attn_weights": False, "activation_function": "relu"}),
    "gpt2-untied": ("GPT2LMHead", {**GPT, "tie_word_embeddings": False}),
    "gpt_bigcode": ("GPTBigCode", GPT),
    "gpt_bigcode-heads": ("GPTBigCode", {**GPT, "multi_query": False}),
    "gptj": ("GPTJ", {**GPT, "rotary_dim": 8}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox-sequential": ("GPTNeoX", {**NEOX, "use_parallel_residual": False, "attention_bias": False,
                            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0,
                                                "partial_rotary_factor": 0.5}}),
    "bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "bloom-6-heads": ("Bloom", {"hidden_size": 96, "n_layer": 2, "n_head": 6,
                                "apply_residual_connection_post_layernorm": True}),
    "falcon-7b": ("Falcon", HF),
    "falcon-40b": ("Falcon", {**HF, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon2-11b": ("Falcon", {**HF, "num_kv_heads": 2, "new_decoder_architecture": True,
                               "num_ln_in_parallel_attn": 1}),
    # with "eager" transformers 5.24 adds ALiBi twice: to the scores and again with the mask
    "falcon-rw-1b": ("Falcon", {**HF, "attn_implementation": "sdpa", "alibi": True, "bias": True,
                                "parallel_attn": False, "multi_query": False, "ffn_hidden_size": 96}),
    "mpt": ("Mpt", MPT),
    "mpt-clipped": ("Mpt", {**MPT, "n_heads": 6, "d_model": 96,
                            "attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.4}}),
    "phi": ("Phi", {**NEOX, "num_key_value_heads": 2}),
    "opt": ("OPT", {**HF, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "opt-without-bias": ("OPT", {**HF, "ffn_dim": 96, "word_embed_proj_dim": 64, "enable_bias": False}),
    "stablelm": ("StableLm", {**NEOX, "num_key_value_heads": 2, "use_qkv_bias": True}),
    "stablelm-parallel": ("StableLm", {**NEOX, "num_key_value_heads": 4, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {**NEOX, "num_key_value_heads": 2, "sliding_window": 6}),
}  # fmt: skip


def toy_of(family: str, **changes: Any) -> Any:
    """A toy of one of transformers' families."""
    name, values = FAMILIES[family]
    config_class = getattr(transformers, f"{name.removesuffix('LMHead')}Config")
    model_class = next(
        getattr(transformers, name + kind)
        for kind in ("ForCausalLM", "Model", "LMHeadModel")
        if hasattr(transformers, name + kind)
    )
    return randomize(model_class(config_class(**{**COMMON, **values, **changes})))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path: Path, family: str) -> None:
    check_family(toy_of(family), tmp_path)


def test_old_spellings(tmp_path: Path) -> None:
    """As the first Pythia, BLOOM and Falcon files have them."""

    def neox(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rotary_pct=0.25, rotary_emb_base=5000)

    def bloom(config: dict[str, Any]) -> None:
        config.update(n_embed=config.pop("hidden_size"), num_attention_heads=config.pop("n_head"),
                      num_hidden_layers=config.pop("n_layer"))  # fmt: skip

    parameters = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}
    check_family(toy_of("gpt_neox", rope_parameters=parameters), tmp_path / "neox", edit=neox)
    check_family(toy_of("bloom"), tmp_path / "bloom", edit=bloom)


def test_slopes_of_another_range() -> None:
    """transformers takes MPT's alibi_bias_max for 8 always; MosaicML's code does not."""
    assert alibi_slopes(4, 4.0) == (2**-1, 2**-2, 2**-3, 2**-4)
    assert alibi_slopes(6, 4.0)[4:] == pytest.approx((2**-0.5, 2**-1.5))


CHATGLM = {
    "self_attn.o_proj": "self_attention.dense", "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h", "model.layers": "transformer.encoder.layers",
    "model.embed_tokens": "transformer.embedding.word_embeddings", "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
}  # fmt: skip


def store_as_chatglm(model: Any, folder: Path) -> None:
    """A GLM as ChatGLM's own code stores it."""
    weights = dict(model.state_dict())
    for layer in range(model.config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{prefix}self_attn.{part}_proj.{kind}") for part in "qkv"]
            weights[f"{prefix}self_attention.query_key_value.{kind}"] = torch.cat(parts)
    for old, new in CHATGLM.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config = model.config
    (folder / "config.json").write_text(json.dumps({
        "model_type": "chatglm", "padded_vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "kv_channels": config.head_dim, "ffn_hidden_size": config.intermediate_size, "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads, "add_qkv_bias": True, "add_bias_linear": False,
        "layernorm_epsilon": config.rms_norm_eps, "rmsnorm": True, "post_layer_norm": True, "seq_length": 64,
        "apply_residual_connection_post_layernorm": False, "rope_ratio": 2.5,
    }))  # fmt: skip


def test_chatglm(tmp_path: Path) -> None:
    model = toy(transformers.GlmConfig, transformers.GlmForCausalLM, head_dim=32, attention_bias=True,
                rope_parameters={"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
                num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    store_as_chatglm(model, tmp_path)
    check_logits(load_folder(tmp_path), transformers_logits(model))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "chatglm", "num_layers": 28},
        {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512},
        {"model_type": "phi", "qk_layernorm": True},
        {"model_type": "mpt", "attn_config": {"alibi": False}},
        {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_what_is_not_supported_is_left_to_transformers(config: dict[str, Any]) -> None:
    assert find_family(config) is None


def test_golden_ids(shared_data: Path) -> None:
    prompts = json.loads((shared_data / "models" / "tinychat-3m.golden.json").read_text())["prompts"]
    runner = Runner(load_folder(shared_data / "models" / "tinychat-3m-gpt2-hf"), num_blocks=256)
    for prompt in prompts:
        wanted = prompt["greedy_ids"]
        assert runner.greedy(prompt["prompt_ids"], len(wanted)) == wanted
