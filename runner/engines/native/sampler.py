"""Sampler: rows of logits to samples, for all streams of a step at once. Torch; knows no scheduling and no model.

Order, as in llamacpp/sampler.py: grammar mask, min_tokens, logit_bias, bad words, penalties (repetition over prompt and
output, presence and frequency over the output), temperature, min_p, top_k, top_p, typical_p, one draw. Logprobs are of
the raw logits. Beams: the same edits, of log-probabilities, as transformers' processors see them.

    plain greedy rows  -> argmax --------------------------------------------.
    the others         -> a copy, edited -> best | draw_head | draw_whole ---+-> one transfer -> Samples
    (a greedy row whose best token its grammar forbids, or a top_p that needs more tokens, goes round again)

Logits in main memory are chosen from row by row with numpy instead (host_choice.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.engines.llamacpp.sampler import token_logprob
from runner.engines.native.distribution import (
    Knobs,
    best_tokens,
    draw_best,
    draw_head,
    draw_whole,
    log_probabilities,
)
from runner.engines.native.host_choice import BYTE_MASKS, Floats, best_of, choose
from runner.engines.native.layers.batch import upload
from runner.engines.native.penalties import Penalties
from runner.engines.native.sampling_state import SamplingState, Stream, uniforms
from runner.engines.native.sequence import Sample
from runner.errors import EngineFailed, RequestError
from runner.types import TokenLogprob

_HEADS = (64, 256, 2048, 16384)
"""How many best tokens are looked at; then all."""
_WHOLE = 0
_GREEDY = -1


class _Row(NamedTuple):
    """One stream of the call."""

    at: int
    """In the call's logits and in its answer."""
    stream: Stream
    state: SamplingState
    num_output: int


class Sampler:
    """For all requests of an engine. Holds their penalty tables; all else is in Sequence.sampling."""

    def __init__(self, vocab_size: int, device: torch.device | str, *, on_host: bool | None = None) -> None:
        """`on_host`: choose row by row with numpy, which needs logits in main memory and is the default for these."""
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._on_host = self._device.type == "cpu" if on_host is None else on_host
        self._penalties = Penalties(self._device)
        self._heads = [head for head in _HEADS if 2 * head < vocab_size]
        self._byte_masks = torch.from_numpy(BYTE_MASKS).to(self._device)

    def sample(self, logits: Tensor | Floats, streams: Sequence[Stream]) -> list[Sample]:
        """The next token of each stream, given its row of `logits` [rows, vocab] float32, which are left unchanged.

        The `sampling` of each stream is a SamplingState. What is wrong with one row is the `error` of its sample.
        On a host an array is welcome: a tensor costs the time of ten.
        """
        assert logits.shape == (len(streams), self._vocab_size)
        if self._on_host and isinstance(logits, Tensor):
            logits = logits.numpy()
        rows = [
            _Row(at, stream, stream.sampling, len(stream.token_ids) - stream.prompt_len)
            for at, stream in enumerate(streams)
        ]
        easy = [row for row in rows if row.state.is_argmax(row.num_output)]
        samples = self._argmax(logits, easy) if easy else {}
        rest = [row for row in rows if row.at not in samples] if len(samples) < len(rows) else []
        if rest:
            self._choose(logits, rest, samples)
        wanted = [row for row in rows if row.state.num_top is not None and samples[row.at].error is None]
        if wanted:
            self._add_logprobs(logits, wanted, samples)
        return [samples[row.at] for row in rows]

    def _argmax(self, logits: Tensor | Floats, rows: list[_Row]) -> dict[int, Sample]:
        """Samples of the rows whose best token may be taken: no mask is needed to know the best allowed token."""
        samples = {}
        best = best_of(logits, [row.at for row in rows]) if isinstance(logits, np.ndarray) else self._best(logits, rows)
        for row, token, value in zip(rows, *best, strict=True):
            matcher = row.state.matcher
            if matcher is None or not isfinite(value) or matcher.allows(int(token)):
                samples[row.at] = _settle(row, int(token), value)
        return samples

    @torch.inference_mode()
    def _best(self, logits: Tensor, rows: list[_Row]) -> Any:
        """The best token of each row, and its logit."""
        return draw_best(self._some(logits, rows)).cpu().tolist()[:2]

    @torch.inference_mode()
    def _choose(self, logits: Tensor | Floats, rows: list[_Row], samples: dict[int, Sample]) -> None:
        """Add the samples of `rows`, which need more than an argmax."""
        masks = {}
        for row in rows:
            try:
                masks[row.at] = _grammar_bits(row)
            except (EngineFailed, RequestError) as problem:
                samples[row.at] = failed_sample(problem)
        good = [row for row in rows if row.at in masks]
        beams = [row for row in good if row.state.num_candidates]
        others = [row for row in good if not row.state.num_candidates]
        if isinstance(logits, np.ndarray):
            for row, uniform in zip(others, _uniforms(others), strict=True):
                token, best = choose(logits[row.at], row.stream, masks[row.at], float(uniform))
                samples[row.at] = _settle(row, token, best)
        elif others:
            part = self._some(logits, others)
            is_edited = any(row.state.edits(row.num_output) for row in others)
            if is_edited and part is logits:
                part = part.clone()
            if is_edited:
                self._edit(part, others, [masks[row.at] for row in others])
            self._draw(part, others, samples)
        if beams:
            part = self._some(torch.as_tensor(logits), beams).log_softmax(dim=1)
            self._edit(part, beams, [masks[row.at] for row in beams])
            self._search(part, beams, samples)

    def _edit(self, logits: Tensor, rows: list[_Row], masks: list[NDArray[np.uint8] | None]) -> None:
        """In place; `logits` are those of `rows`, in this order."""
        self._mask(logits, masks)
        self._add_bias(logits, rows)
        self._forbid(logits, rows)
        penalised = [at for at, row in enumerate(rows) if row.state.tally is not None]
        if penalised:
            self._penalties.apply(logits, penalised, [rows[at].stream for at in penalised])

    def _mask(self, logits: Tensor, masks: list[NDArray[np.uint8] | None]) -> None:
        rows = [at for at, bits in enumerate(masks) if bits is not None]
        if not rows:
            return
        packed = self._upload(np.stack([bits for bits in masks if bits is not None]))
        added = torch.nn.functional.embedding(packed.int(), self._byte_masks).flatten(1)[:, : self._vocab_size]
        if len(rows) == len(logits):
            logits += added
        else:
            logits.index_add_(0, self._upload(np.array(rows)), added)

    def _add_bias(self, logits: Tensor, rows: list[_Row]) -> None:
        biased = [(at, *row.state.bias) for at, row in enumerate(rows) if len(row.state.bias[0])]
        if not biased:
            return
        index = self._upload(np.repeat([at for at, _, _ in biased], [len(ids) for _, ids, _ in biased]))
        ids = self._upload(np.concatenate([ids for _, ids, _ in biased]))
        logits[index, ids] += self._upload(np.concatenate([values for _, _, values in biased]))

    def _forbid(self, logits: Tensor, rows: list[_Row]) -> None:
        places = [
            (at, token)
            for at, row in enumerate(rows)
            for token in row.state.forbidden(row.stream.token_ids, row.num_output)
        ]
        if places:
            index, tokens = self._upload(np.array(places, np.int64).T)
            logits[index, tokens] = -torch.inf

    def _draw(self, logits: Tensor, rows: list[_Row], samples: dict[int, Sample]) -> None:
        """Choose for each of `rows`; `logits` are theirs, in this order."""
        numbers = _numbers(rows)
        groups = defaultdict(list)
        for at, row in enumerate(rows):
            groups[self._first_head(row)].append(at)
        while groups:
            found = [self._draw_group(logits, numbers, group, head) for head, group in groups.items()]
            results = (torch.cat(found, dim=1) if len(found) > 1 else found[0]).cpu().tolist()
            drawn = [(at, head) for head, group in groups.items() for at in group]
            groups = defaultdict(list)
            for (at, head), token, best, num_kept in zip(drawn, *results, strict=True):
                if num_kept < 0 and isfinite(best):
                    groups[self._head(head + 1)].append(at)
                    continue
                rows[at].state.num_head = 2 * int(num_kept)
                samples[rows[at].at] = _settle(rows[at], int(token), best)

    def _draw_group(self, logits: Tensor, numbers: NDArray[np.float64], group: list[int], head: int) -> Tensor:
        part = self._pick(logits, group)
        if head == _GREEDY:
            return draw_best(part)
        knobs = Knobs.of(numbers[group], self._vocab_size, self._device)
        return draw_whole(part, knobs) if head == _WHOLE else draw_head(part, knobs, head)

    def _first_head(self, row: _Row) -> int:
        """How many of its best tokens to look at: as many as are needed, or as the last time, or a guess."""
        state, params = row.state, row.state.params
        if state.is_greedy:
            return _GREEDY
        if 0 < params.top_k < self._vocab_size:
            return self._head(params.top_k)
        if params.typical_p < 1.0:
            return self._vocab_size
        return self._head(state.num_head or 256) if params.top_p < 1.0 else _WHOLE

    def _head(self, count: int) -> int:
        return next((head for head in self._heads if head >= count), self._vocab_size)

    def _search(self, logits: Tensor, rows: list[_Row], samples: dict[int, Sample]) -> None:
        """Candidates of beams; `logits` [rows, vocab] are edited log-probabilities."""
        count = min(max(row.state.num_candidates for row in rows), self._vocab_size)
        values, ids, best = best_tokens(logits, count)
        table = torch.cat((best.double(), values.double(), ids.double()), dim=1).cpu().tolist()
        for row, (largest, *line) in zip(rows, table, strict=True):
            pairs = zip(line[count:], line[: row.state.num_candidates], strict=False)
            candidates = [(int(token), value) for token, value in pairs if value > -np.inf]
            fault = _fault(largest) if largest != -np.inf else None  # other beams may go on
            samples[row.at] = Sample(candidates[0][0] if candidates else -1, None, candidates, fault)

    @torch.inference_mode()
    def _add_logprobs(self, logits: Tensor | Floats, wanted: list[_Row], samples: dict[int, Sample]) -> None:
        if isinstance(logits, np.ndarray):
            for row in wanted:
                sample = samples[row.at]
                sample.logprob = token_logprob(logits[row.at], sample.token_id, row.state.num_top or 0)
            return
        counts = [row.state.num_top or 0 for row in wanted]
        tokens = self._upload(np.array([[samples[row.at].token_id] for row in wanted], np.int64))
        own, top, ids = log_probabilities(self._some(logits, wanted), tokens, min(max(counts), self._vocab_size))
        table = torch.cat((own.double(), top.double(), ids.double()), dim=1).cpu().tolist()
        width = top.shape[1]
        for row, count, line in zip(wanted, counts, table, strict=True):
            best = [(int(token), value) for token, value in zip(line[1 + width :], line[1 : 1 + count], strict=False)]
            sample = samples[row.at]
            sample.logprob = TokenLogprob(sample.token_id, line[0], best)

    def _some(self, logits: Tensor, rows: list[_Row]) -> Tensor:
        """`rows` of the call's logits; themselves where these are all."""
        return self._pick(logits, [row.at for row in rows])

    def _pick(self, logits: Tensor, places: list[int]) -> Tensor:
        return logits if len(places) == len(logits) else logits.index_select(0, self._upload(np.array(places)))

    def _upload(self, array: NDArray[Any]) -> Tensor:
        return upload(array, self._device)


def _numbers(rows: list[_Row]) -> NDArray[np.float64]:
    """[rows, 6] for Knobs."""
    table = [
        (params.temperature, params.top_k, params.min_p, params.top_p, params.typical_p)
        for params in (row.state.params for row in rows)
    ]
    return np.column_stack((np.array(table, np.float64), _uniforms(rows)))


def _uniforms(rows: list[_Row]) -> NDArray[np.float64]:
    seeds = np.array([row.state.seed for row in rows], np.uint64)
    return uniforms(seeds, np.array([row.num_output for row in rows], np.uint64))


def _grammar_bits(row: _Row) -> NDArray[np.uint8] | None:
    state = row.state
    return state.grammar_bits(row.stream.token_ids, row.stream.prompt_len) if state.matcher is not None else None


def _settle(row: _Row, token: int, best: float) -> Sample:
    """The sample of `token`, which joins the grammar too; an error where the best logit leaves no choice."""
    state, sample = row.state, plain_sample(token, best)
    if sample.error is not None or state.matcher is None or token in row.stream.request.stop_token_ids:
        return sample
    try:
        return Sample(token, is_end=state.accept(token))
    except (EngineFailed, RequestError) as problem:
        return failed_sample(problem)


def plain_sample(token: int, best: float) -> Sample:
    """The sample of `token`, with the logit `best`; an error where that leaves no choice."""
    fault = _fault(best)
    return Sample(token) if fault is None else Sample(-1, error=fault)


def _fault(best: float) -> str | None:
    if isfinite(best):
        return None
    if best == -np.inf:
        return "no token is left to choose: logit_bias, bad words, min_tokens or the grammar forbid all of them"
    return f"the model computed no usable logits (the largest is {best}); its weights may be broken"


def failed_sample(problem: EngineFailed | RequestError) -> Sample:
    """The end of one row."""
    return Sample(-1, error=str(problem), is_clients_fault=isinstance(problem, RequestError))
