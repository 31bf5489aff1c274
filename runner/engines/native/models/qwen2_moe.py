"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts, one of which every token uses behind a gate of its own."""

from dataclasses import replace

from runner.engines.native.models import llama
from runner.engines.native.spec import Config, DecoderSpec, MoeSpec

_MLP = "layers.{i}.mlp"
NAMES = llama.NAMES | {
    "moe.router": f"{_MLP}.gate", "moe.experts.gate": f"{_MLP}.experts.{{e}}.gate_proj",
    "moe.experts.up": f"{_MLP}.experts.{{e}}.up_proj", "moe.experts.down": f"{_MLP}.experts.{{e}}.down_proj",
    "moe.shared.gate": f"{_MLP}.shared_expert.gate_proj", "moe.shared.up": f"{_MLP}.shared_expert.up_proj",
    "moe.shared.down": f"{_MLP}.shared_expert.down_proj", "moe.shared_gate": f"{_MLP}.shared_expert_gate",
}  # fmt: skip


def spec(config: Config) -> DecoderSpec:
    shared = config.get("shared_expert_intermediate_size", 5632)
    experts = replace(moe(config), shared_intermediate_size=shared, shared_gate=True)
    bias = config.get("qkv_bias", True)
    return llama.spec(config, qkv_bias=bias, out_bias=False, moe=experts, windows=windows(config))


def windows(config: Config) -> tuple[int | None, ...]:
    """Off by default."""
    return llama.windows(config, default=4096) if config.get("use_sliding_window") else ()


def moe(config: Config) -> MoeSpec:
    """Experts as Qwen's configurations name them."""
    step, dense = config.get("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or ())
    dense |= {layer for layer in range(config["num_hidden_layers"]) if (layer + 1) % step}
    return MoeSpec(
        num_experts=config["num_experts"],
        top_k=config["num_experts_per_tok"],
        intermediate_size=config["moe_intermediate_size"],
        normalize=config.get("norm_topk_prob", False),
        dense_layers=frozenset(dense),
    )
