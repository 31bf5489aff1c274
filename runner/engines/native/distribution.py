"""Rows of logits [rows, vocab] float32 to drawn tokens, on any device: truncation and inverse CDF. Functions only.

Knows no requests and no edits. Order and meaning are those of llamacpp/sampler.py: top_k, temperature, min_p, top_p,
typical_p, each of what the one before left. Equal logits are ordered by id, so that a row alone and in a batch, on any
device, is truncated to the same tokens. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.engines.native.layers.batch import upload

_BLOCK = 64
_SUM_BLOCK = 128
_ID_BITS = 0x7FFFFFFF
_BELOW_ONE = 1.0 - 2.0**-52


@dataclass(frozen=True)
class Knobs:
    """Settings of some rows, each [rows, 1] on the device; and whether any row needs what costs extra."""

    temperature: Tensor
    top_k: Tensor
    """The vocabulary's size where it is off."""
    log_min_p: Tensor
    """-inf where it is off."""
    top_p: Tensor
    """inf where it is off; so is typical_p."""
    typical_p: Tensor
    uniform: Tensor
    """float64"""
    any_min_p: bool
    any_typical: bool
    any_whole: bool
    """Some row has no top_k: its top_p is a share of the whole vocabulary."""

    @staticmethod
    def of(table: NDArray[np.float64], vocab_size: int, device: torch.device) -> Knobs:
        """`table` [rows, 6]: temperature, top_k, min_p, top_p, typical_p as in SamplingParams, and the uniform."""
        table = table.copy()
        temperature, top_k, min_p, top_p, typical_p = table[:, :5].T  # views
        np.maximum(temperature, 1e-30, out=temperature)
        top_k[(top_k <= 0) | (top_k >= vocab_size)] = vocab_size
        top_p[top_p >= 1.0] = np.inf
        typical_p[typical_p >= 1.0] = np.inf
        any_min_p, any_typical = bool((min_p > 0).any()), bool((typical_p < np.inf).any())
        with np.errstate(divide="ignore", invalid="ignore"):
            table[:, 2] = np.where(min_p > 0, np.log(min_p), -np.inf)
        columns = upload(table, device)
        small = torch.split(columns[:, :5].float(), 1, dim=1)
        return Knobs(
            temperature=small[0],
            top_k=small[1],
            log_min_p=small[2],
            top_p=small[3],
            typical_p=small[4],
            uniform=columns[:, 5:],
            any_min_p=any_min_p,
            any_typical=any_typical,
            any_whole=bool((top_k >= vocab_size).any()),
        )


def best_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best: logits and ids [rows, count], best first, equal ones by id; and the best [rows, 1], NaN if any.

    The best `count` tokens are in the `count` blocks with the best maxima, so few of the vocabulary have to be sorted.
    """
    vocab_size = logits.shape[1]
    num_blocks = vocab_size // _BLOCK
    if 2 * count >= num_blocks:
        ids = torch.arange(vocab_size, device=logits.device)
        found = torch.topk(_keys(logits, ids), min(count, vocab_size), dim=1).values
        best = logits.amax(dim=1, keepdim=True)
    else:
        end = num_blocks * _BLOCK
        maxima = logits[:, :end].view(len(logits), num_blocks, _BLOCK).amax(dim=2)
        best = maxima.amax(dim=1, keepdim=True)
        block_keys = _keys(maxima, torch.arange(num_blocks, device=logits.device))
        blocks = _id_of(torch.topk(block_keys, count, dim=1, sorted=False).values)
        ids = (blocks.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK, device=logits.device)).flatten(1)
        if end < vocab_size:
            tail = torch.arange(end, vocab_size, device=logits.device).expand(len(logits), -1)
            ids = torch.cat((ids, tail), dim=1)
            best = torch.maximum(best, logits[:, end:].amax(dim=1, keepdim=True))
        found = torch.topk(_keys(logits.gather(1, ids), ids), count, dim=1).values
    chosen = _id_of(found)
    return logits.gather(1, chosen), chosen, best


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 that sort as (value, -id): float32 bits in an order of integers, above the id."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: -0 is 0
    ordered = bits ^ ((bits >> 31) & _ID_BITS)
    return (ordered.long() << 32) | (_ID_BITS - ids)


def _id_of(keys: Tensor) -> Tensor:
    return _ID_BITS - (keys & _ID_BITS)


def draw_whole(logits: Tensor, knobs: Knobs) -> Tensor:
    """Draw from the whole vocabulary, or what min_p leaves of it. Returns [3, rows] as draw_head does.

    The cumulative sum is taken of blocks first and then inside one: float64 over 150,000 costs five times as much.
    """
    best = logits.amax(dim=1, keepdim=True)
    weights = _weights(logits, best, knobs)
    vocab_size = logits.shape[1]
    num_blocks = vocab_size // _SUM_BLOCK
    end = num_blocks * _SUM_BLOCK
    sums = weights[:, :end].view(len(logits), num_blocks, _SUM_BLOCK).sum(dim=2)
    sums = torch.cat((sums, weights[:, end:].sum(dim=1, keepdim=True)), dim=1).double()
    block, inside = _invert(sums, knobs.uniform)
    ids = block * _SUM_BLOCK + torch.arange(_SUM_BLOCK, device=logits.device)
    part = weights.gather(1, ids.clamp(max=vocab_size - 1)) * (ids < vocab_size)
    place, _ = _invert(part.double(), inside)
    return _result(ids.gather(1, place), best, torch.full_like(place, vocab_size))


def _weights(logits: Tensor, best: Tensor, knobs: Knobs) -> Tensor:
    """exp((logit - best) / temperature), 0 where min_p forbids. A new tensor like `logits`."""
    scaled = (logits - best).div_(knobs.temperature)
    if not knobs.any_min_p:
        return scaled.exp_()
    is_kept = scaled >= knobs.log_min_p
    return scaled.exp_().mul_(is_kept)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """First index [rows, 1] whose cumulative weight exceeds `uniform` of the total, and how far into it (0 to 1)."""
    cumulative = weights.cumsum(dim=1)
    target = uniform * cumulative[:, -1:]
    index = (cumulative <= target).sum(dim=1, keepdim=True).clamp_(max=weights.shape[1] - 1)
    weight = weights.gather(1, index)
    return index, ((target - (cumulative.gather(1, index) - weight)) / weight).clamp_(0.0, _BELOW_ONE)


def draw_head(logits: Tensor, knobs: Knobs, count: int) -> Tensor:
    """Draw from the best `count` tokens, truncated. Returns [3, rows] float64: token, best logit, tokens kept.

    Tokens kept is -1 where top_p needs more than `count`: draw again with a larger one. `count` must be at least top_k.
    """
    values, ids, best = best_tokens(logits, count)
    scaled = (values - best) / knobs.temperature
    ranks = torch.arange(values.shape[1], device=logits.device)
    is_kept = (ranks < knobs.top_k) & (scaled >= knobs.log_min_p)
    weights = scaled.exp().double() * is_kept
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:]
    is_whole = knobs.top_k >= logits.shape[1]
    if knobs.any_whole and count < logits.shape[1]:
        mass = _weights(logits, best, knobs).sum(dim=1, keepdim=True).double()
        total = torch.where(is_whole, mass, total)
    target = knobs.top_p * total
    is_enough = (cumulative[:, -1:] >= target) | ~is_whole | (count >= logits.shape[1])
    is_kept &= (cumulative - weights < target) | (ranks == 0)
    if knobs.any_typical:
        is_kept &= _typical(scaled, is_kept, knobs.typical_p)
    place, _ = _invert(weights * is_kept, knobs.uniform)
    num_kept = torch.where(is_enough, is_kept.sum(dim=1, keepdim=True), -1)
    return _result(ids.gather(1, place), best, num_kept)


def _typical(scaled: Tensor, is_kept: Tensor, typical_p: Tensor) -> Tensor:
    """Locally typical sampling (Meister et al. 2022): surprise nearest to the entropy, mass `typical_p`."""
    log_probabilities = torch.where(is_kept, scaled, -math.inf).double().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities.where(probabilities > 0, 0.0)).sum(dim=1, keepdim=True)
    distance = (log_probabilities + entropy).abs()
    order = torch.sort(distance, dim=1, stable=True).indices
    sorted_probabilities = probabilities.gather(1, order)
    before = sorted_probabilities.cumsum(dim=1) - sorted_probabilities
    is_typical = before < typical_p
    is_typical[:, 0] = True
    return torch.empty_like(is_kept).scatter_(1, order, is_typical)


def _result(tokens: Tensor, best: Tensor, num_kept: Tensor) -> Tensor:
    return torch.cat((tokens.double(), best.double(), num_kept.double()), dim=1).T


def draw_best(logits: Tensor) -> Tensor:
    """The best token of each row. Returns [3, rows] as draw_head does; of equals, the first where torch has it so."""
    best, tokens = logits.max(dim=1, keepdim=True)
    return _result(tokens, best, torch.ones_like(tokens))


def log_probabilities(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities: [rows, 1] of `tokens` [rows, 1]; [rows, count] of the `count` best, and their ids."""
    norm = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, tokens) - norm
    if not count:
        return own, own[:, :0], tokens[:, :0]
    values, ids, _ = best_tokens(logits, count)
    return own, values - norm, ids
