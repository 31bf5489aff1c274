"""llguidance, which we use, against xgrammar: compile and mask times of JSON schemas, one thread each.

For the demo model's vocabulary, and for one of 150k tokens where shared data is present. A mask's time is the mean over
all tokens of an answer of the schema, written with the model's own tokens. Neither library keeps a compiled grammar.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.row import Row
from benchmarks.settings import Settings
from model_cards.hf_tokenizer import load
from model_cards.tokenizer import Tokenizer
from runner.engines.guidance import Guide
from runner.types import GuidedDecoding

COMPILE_BAR_MS, MASK_BAR_US = 20.0, 200.0
_SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tokenizers" / "qwen2"
_TEXT: dict[str, Any] = {"type": "string"}
SCHEMAS: dict[str, tuple[dict[str, Any], Any]] = {
    "person": (
        {
            "type": "object",
            "properties": {"name": _TEXT, "age": {"type": "integer"}, "tags": {"type": "array", "items": _TEXT}},
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        },
        {"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "poetry", "computing"]},
    ),
    "choices": (
        {
            "type": "object",
            "properties": {f"field_{at}": {"enum": [f"value {at} {to}" for to in range(30)]} for at in range(20)},
            "required": [f"field_{at}" for at in range(20)],
            "additionalProperties": False,
        },
        {f"field_{at}": f"value {at} {at}" for at in range(20)},
    ),
    "tree": (
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "label": _TEXT,
                        "weight": {"type": "number"},
                        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    },
                    "required": ["label", "weight", "children"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/node",
        },
        {
            "label": "root",
            "weight": 1.5,
            "children": [{"label": f"child {at}", "weight": at, "children": []} for at in range(4)],
        },
    ),
}
"""Schema and an answer of it."""


@dataclass(frozen=True)
class Times:
    """Of one library, one schema, one vocabulary."""

    compile_ms: float
    mask_us: float
    worst_us: float


Run = Callable[[dict[str, Any], list[int]], Times]


def measure(settings: Settings) -> list[Row]:
    """One row for each vocabulary and schema."""
    rows = []
    for name, tokenizer, vocab_size, end in _vocabularies():
        ours = _llguidance(tokenizer, vocab_size, end)
        theirs = _xgrammar(tokenizer, vocab_size, end) if importlib.util.find_spec("xgrammar") else None
        for title, (schema, answer) in SCHEMAS.items():
            tokens = tokenizer.encode(json.dumps(answer), parse_special=False)
            what = f"{name} ({vocab_size:,} tokens), schema `{title}`: compile, mask (worst)"
            rows.append(_row(what, ours, theirs, schema, tokens, settings.repeats))
    return rows


def _vocabularies() -> list[tuple[str, Tokenizer, int, int]]:
    """Name, tokenizer, width of a row of logits, end token."""
    from model_cards import presets

    demo = Path(presets.__file__).parent / "demo" / "hf"
    found = []
    for name, folder in (("demo", demo), ("qwen2", _SHARED)):
        if folder.is_dir():
            tokenizer = load(folder / "tokenizer.json")
            found.append((name, tokenizer, tokenizer.vocab_size, tokenizer.encode("<|im_end|>")[-1]))
    return found


def _row(what: str, ours: Run, theirs: Run | None, schema: dict[str, Any], tokens: list[int], repeats: int) -> Row:
    mine = _median([ours(schema, tokens) for _ in range(repeats)])
    other = _median([theirs(schema, tokens) for _ in range(repeats)]) if theirs is not None else None
    return Row(
        what=what,
        ours=_text(mine),
        rival=_text(other) if other is not None else "xgrammar is not installed here",
        ratio=f"{_total(mine, tokens) / _total(other, tokens):.2f}x" if other is not None else "",
        bar=f"<= {COMPILE_BAR_MS:g} ms, {MASK_BAR_US:g} us",
        is_met=mine.compile_ms <= COMPILE_BAR_MS and mine.mask_us <= MASK_BAR_US,
        notes=[f"ratio: compile and the masks of one answer, {len(tokens)} tokens"],
    )


def _total(times: Times, tokens: list[int]) -> float:
    return times.compile_ms * 1e3 + times.mask_us * len(tokens)


def _median(times: list[Times]) -> Times:
    compiles, masks, worsts = zip(*((one.compile_ms, one.mask_us, one.worst_us) for one in times), strict=True)
    return Times(statistics.median(compiles), statistics.median(masks), statistics.median(worsts))


def _text(times: Times) -> str:
    return f"{times.compile_ms:.1f} ms, {times.mask_us:.0f} us ({times.worst_us:.0f})"


def _timed(compile_s: float, tokens: list[int], mask: Callable[[], Any], accept: Callable[[int], Any]) -> Times:
    spent = []
    for token in tokens:
        start = time.perf_counter()
        mask()
        spent.append((time.perf_counter() - start) * 1e6)
        accept(token)
    return Times(compile_s * 1e3, statistics.mean(spent), max(spent))


def _llguidance(tokenizer: Tokenizer, vocab_size: int, end: int) -> Run:
    guide = Guide(tokenizer, vocab_size=vocab_size, eos_token_ids=[end])

    def run(schema: dict[str, Any], tokens: list[int]) -> Times:
        guide._compiled.clear()
        start = time.perf_counter()
        matcher = guide.matcher(GuidedDecoding(json_schema=schema))
        return _timed(time.perf_counter() - start, tokens, matcher.bits, matcher.accept)

    return run


def _xgrammar(tokenizer: Tokenizer, vocab_size: int, end: int) -> Run:
    xgrammar = importlib.import_module("xgrammar")
    vocabulary = tokenizer.all_token_bytes()
    info = xgrammar.TokenizerInfo(vocabulary, vocab_size=vocab_size, stop_token_ids=[end])
    bits = np.zeros((1, (vocab_size + 31) // 32), np.int32)

    def run(schema: dict[str, Any], tokens: list[int]) -> Times:
        compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        start = time.perf_counter()
        matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))

        def accept(token: int) -> None:
            if not matcher.accept_token(token):
                raise RuntimeError(f"xgrammar does not accept token {token}")

        elapsed = time.perf_counter() - start
        return _timed(elapsed, tokens, lambda: matcher.fill_next_token_bitmask(bits), accept)

    return run
