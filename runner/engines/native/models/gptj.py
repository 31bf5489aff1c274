"""GPT-J: attention and MLP in parallel behind one LayerNorm, part of each head turned in interleaved pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.engines.native.models import gpt2
from runner.engines.native.spec import DecoderSpec, RopeSpec
from runner.engines.native.weights import Names


def spec(config: dict[str, Any]) -> DecoderSpec:
    """config.json -> DecoderSpec"""
    base = gpt2.spec({"tie_word_embeddings": False, "n_positions": 2048, **config})
    rotary = config.get("rotary_dim", 64) or base.head_dim
    return replace(
        base,
        block="parallel",
        position="rope",
        rope=RopeSpec(dim=rotary, interleaved=True, max_position=base.max_position),
        qkv_bias=False,
        out_bias=False,
        head_bias=True,
    )


def names(config: dict[str, Any]) -> Names:
    """Checkpoint names"""
    attention = {f"attn.{part}": f"h.{{i}}.attn.{part}_proj" for part in ("q", "k", "v", "out")}
    mlp = {"mlp.up": "h.{i}.mlp.fc_in", "mlp.down": "h.{i}.mlp.fc_out"}
    return Names({"embed": "wte", "norm": "ln_f", "head": "lm_head", "norm1": "h.{i}.ln_1"} | attention | mlp)
