"""A toy language model: logits drawn by a hash of the last ids, and the sampling that the C++ runtime documents."""

from __future__ import annotations

from typing import Any

import numpy as np


def next_token(ids: list[int], num_prompt: int, vocab: int, params: Any) -> tuple[int, dict[int, float]]:
    """The next token, and log-probabilities of the likeliest and of it."""
    raw = np.random.default_rng((ids[-1], ids[-2] if len(ids) > 1 else 0, len(ids))).standard_normal(vocab) * 3
    logits = _steer(raw, ids, num_prompt, params)
    token = _choose(logits, len(ids), params)
    logprobs = raw - np.logaddexp.reduce(raw)
    best = np.argsort(-logprobs)[: params.logprobs or 0]
    return token, {int(one): float(logprobs[one]) for one in [*best, token]}


def _steer(raw: Any, ids: list[int], num_prompt: int, params: Any) -> Any:
    logits = raw.copy()
    made = ids[num_prompt:]
    if params.embedding_bias is not None:
        logits += np.asarray(params.embedding_bias)
    for token in set(made):
        count = made.count(token)
        logits[token] -= (params.presence_penalty or 0) + count * (params.frequency_penalty or 0)
        scale = params.repetition_penalty or 1.0
        logits[token] = logits[token] / scale if logits[token] > 0 else logits[token] * scale
    for token in params.bad_token_ids or ():
        logits[token] = -np.inf
    if params.end_id is not None and params.end_id >= 0 and len(made) < (params.min_tokens or 0):
        logits[params.end_id] = -np.inf
    return logits


def _choose(logits: Any, step: int, params: Any) -> int:
    """Without top_k and top_p it is greedy: the runtime's defaults are 0 and 0."""
    if params.top_k == 1 or (not params.top_k and not params.top_p):
        return int(np.argmax(logits))
    scaled = logits / (params.temperature or 1.0)
    order = np.argsort(-scaled)[: params.top_k or len(scaled)]
    odds = np.exp(scaled[order] - scaled[order[0]])
    odds /= odds.sum()
    keep = (np.cumsum(odds) - odds < (params.top_p or 1.0)) & (odds >= (params.min_p or 0.0) * odds[0])
    odds = np.where(keep, odds, 0.0)
    rng = np.random.default_rng((params.seed or 0, step))
    return int(rng.choice(order, p=odds / odds.sum()))
