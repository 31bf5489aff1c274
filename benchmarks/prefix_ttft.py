"""Prefix reuse: time to first token of a second request that begins with the same 2,000 tokens."""

from __future__ import annotations

from benchmarks.client import ask, median
from benchmarks.row import Row
from benchmarks.servers import llmrun
from benchmarks.settings import Settings, random_model
from runner.bench.records import BenchRequest, Sample
from runner.bench.workload import Prompts, Shape

PREFIX = 2000
"""In tokens of the random model, whose words are a token or more: the answer's usage says how many it was."""


def measure(settings: Settings) -> list[Row]:
    """A row for each of our engines that computes, with the same GGUF; every repeat has a prefix of its own."""
    return [_measure(settings, engine) for engine in ("llamacpp", "native")]


def _measure(settings: Settings, engine: str) -> Row:
    firsts, seconds, lengths, cached = [], [], [], []
    limits = ["--context-length", "4096", "--max-running", "2", "--threads", str(settings.threads)]
    with llmrun(settings, random_model(settings), *limits, out=engine) as server:
        per_word = _tokens_per_word(ask(server, [_request(0, "a", 200)])[0])
        for repeat in range(settings.repeats):
            words = int(PREFIX / per_word)
            first, second = ask(server, [_request(repeat + 1, "one", words), _request(repeat + 1, "two", words)])
            firsts.append(_ttft_s(first))
            seconds.append(_ttft_s(second))
            lengths.append(first.prompt_tokens)
            cached.append(second.cached_tokens)
    ratio = median(seconds) / median(firsts)
    return Row(
        what=f"out={engine}: time to first token, second request with the same {PREFIX:,}-token prefix",
        ours=f"{median(seconds) * 1e3:,.1f} ms",
        rival=f"{median(firsts) * 1e3:,.1f} ms (first request)",
        ratio=f"1/{1 / ratio:.1f}",
        bar="<= 1/5",
        is_met=ratio <= 0.2,
        notes=[f"prompt of {median(lengths):,.0f} tokens; {median(cached):,.0f} of the second were cached"],
    )


def _request(seed: int, ending: str, num_words: int) -> BenchRequest:
    prefix = Prompts(seed).make(Shape(input_len=num_words, output_len=4))
    return BenchRequest(prompt=f"{prefix.prompt} {ending}", max_tokens=4)


def _tokens_per_word(sample: Sample) -> float:
    if sample.error is not None:
        raise RuntimeError(sample.error)
    return sample.prompt_tokens / 200


def _ttft_s(sample: Sample) -> float:
    if sample.error is not None or sample.first_s is None:
        raise RuntimeError(sample.error or "no text came")
    return sample.first_s - sample.start_s
