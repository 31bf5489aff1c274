"""Mixtral: Mistral with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import llama
from runner.engines.native.spec import DecoderSpec, MoeSpec
from runner.engines.native.weights import Names

_EXPERTS = {
    "moe.router": "layers.{i}.block_sparse_moe.gate",
    "moe.experts.gate": "layers.{i}.block_sparse_moe.experts.{e}.w1",
    "moe.experts.up": "layers.{i}.block_sparse_moe.experts.{e}.w3",
    "moe.experts.down": "layers.{i}.block_sparse_moe.experts.{e}.w2",
}


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = llama.spec(config)
    moe = MoeSpec(config.get("num_local_experts", 8), config.get("num_experts_per_tok", 2), base.intermediate_size)
    rope = llama.rope(config, base.head_dim, theta=1e6)
    return replace(base, moe=moe, rope=rope, windows=llama.windows(config))


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    return Names(llama.ENDS | llama.NORMS | llama.ATTENTION | _EXPERTS)
