"""The demo model's network: the Llama architecture in plain torch, small enough for minutes on two cores.

Parameter names are those of Hugging Face's LlamaForCausalLM, so a state dict is a checkpoint. Owns the network and its
greedy decoding; knows nothing of text or of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. Every row length is a multiple of 32, as q8_0 blocks need."""

    vocab_size: int = 1024
    hidden_size: int = 256
    ffn_size: int = 640
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    context_length: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Hugging Face's half-split layout; x [batch, heads, tokens, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention. Padding stands on the right, so no mask but the causal one is needed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_size = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, tokens, hidden] -> the same shape."""
        batch, tokens, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, -1, self.shape.head_dim).transpose(1, 2)

        q = rotate(split(self.q_proj(x)), cos, sin)
        groups = self.shape.num_heads // self.shape.num_kv_heads
        k = rotate(split(self.k_proj(x)), cos, sin).repeat_interleave(groups, dim=1)
        v = split(self.v_proj(x)).repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.down_proj = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer block, norms before."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Same shape as `x`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers, last norm (the `model.` part of a checkpoint)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = Norm(shape.hidden_size, shape.norm_eps)


class DemoNetwork(nn.Module):
    """Token ids in, logits out; the output layer is the embedding (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = (2 * shape.num_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def hidden(self, ids: Tensor) -> Tensor:
        """ids [batch, tokens] -> last hidden states [batch, tokens, hidden], normed."""
        cos, sin = self._angles(ids.shape[1])
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.model.norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab]."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def _angles(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        dim = self.shape.head_dim
        inverse = self.shape.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] * inverse[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().float(), angles.sin().float()


@dataclass(frozen=True)
class Answer:
    """Greedy ids without the one that ended them, and the smallest top1-top2 logit margin on the way."""

    ids: list[int]
    is_ended: bool
    min_margin: float


@torch.no_grad()
def greedy(network: DemoNetwork, prompt_ids: list[int], stop_ids: set[int], max_tokens: int = 448) -> Answer:
    """Naive greedy decoding: the whole text again for every token. Slow, and obviously right."""
    ids = list(prompt_ids)
    min_margin = float("inf")
    for _ in range(max_tokens):
        logits = network.logits(network.hidden(torch.tensor([ids]))[0, -1]).float()
        best = logits.topk(2)
        min_margin = min(min_margin, float(best.values[0] - best.values[1]))
        token = int(best.indices[0])
        if token in stop_ids:
            return Answer(ids[len(prompt_ids) :], True, min_margin)
        ids.append(token)
    return Answer(ids[len(prompt_ids) :], False, min_margin)


@torch.no_grad()
def forced_margins(network: DemoNetwork, prompt_ids: list[int], answer_ids: list[int]) -> tuple[bool, float]:
    """Whether greedy decoding would give exactly `answer_ids`, and their smallest margin over all other ids.

    One pass over prompt and answer. A margin below zero means that another id would have been chosen.
    """
    ids = torch.tensor([prompt_ids + answer_ids])
    logits = network.logits(network.hidden(ids)[0, len(prompt_ids) - 1 : -1]).float()
    target = torch.tensor(answer_ids)
    right = logits.gather(1, target[:, None])[:, 0]
    others = logits.scatter(1, target[:, None], float("-inf")).max(dim=1).values
    margin = float((right - others).min())
    return margin > 0, margin
