"""Sampling: what a request asks for -> SamplingParams. Request beats the card's defaults beats neutral.

Owns the allowed ranges; every refusal names its field. Does not know what an engine honours (capabilities.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.errors import RequestError
from runner.types import GuidedDecoding, SamplingOptions, SamplingParams

MAX_CHOICES = 128
MAX_LOGPROBS = 100
MAX_BAD_WORDS = 1024
MAX_SEED = 2**63 - 1

_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    # field, lowest, highest, whether the lowest itself is allowed
    ("temperature", 0.0, 100.0, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("typical_p", 0.0, 1.0, False),
    ("repetition_penalty", 0.0, 100.0, False),
    ("presence_penalty", -2.0, 2.0, True),
    ("frequency_penalty", -2.0, 2.0, True),
    ("length_penalty", -100.0, 100.0, True),
)
_FLOATS = tuple(row[0] for row in _RANGES)
_NEUTRAL = SamplingParams()
_NOTHING_ASKED = SamplingOptions()


def resolve_sampling(
    asked: SamplingOptions, defaults: dict[str, Any], vocab_size: int, encode: Callable[[str], list[int]]
) -> SamplingParams:
    """The parameters for the engine. `encode` makes token ids of a bad word. Raises RequestError naming the field."""
    if asked == _NOTHING_ASKED:
        return SamplingParams(**defaults) if defaults else _NEUTRAL
    values = dict(defaults)
    for field, lowest, highest, closed in _RANGES:
        value = getattr(asked, field)
        if value is not None:
            values[field] = _number(field, value, lowest, highest, closed)
    if asked.top_k is not None:
        values["top_k"] = _top_k(asked.top_k, vocab_size)
    if asked.seed is not None and asked.seed != -1:
        values["seed"] = _integer("seed", asked.seed, 0, MAX_SEED)
    if asked.logit_bias:
        values["logit_bias"] = _logit_bias(asked.logit_bias, vocab_size)
    if asked.logprobs is not None:
        values["logprobs"] = _integer("logprobs", asked.logprobs, 0, MAX_LOGPROBS)
    if asked.bad_words:
        values["bad_words_ids"] = _bad_words(asked.bad_words, encode)
    if asked.beam_width is not None:
        values["beam_width"] = _integer("beam_width", asked.beam_width, 1, MAX_CHOICES)
    if asked.guided is not None:
        values["guided"] = _guided(asked.guided)
    return SamplingParams(**values)


def num_choices(asked: SamplingOptions) -> int:
    """How many answers. Raises RequestError."""
    return 1 if asked.n is None else _integer("n", asked.n, 1, MAX_CHOICES)


def clean_defaults(defaults: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A card's defaults that are usable, and a complaint for each that is not (unknown or out of range)."""
    usable: dict[str, Any] = {}
    complaints: list[str] = []
    for field, value in defaults.items():
        if value is None:
            continue
        if field not in _FLOATS and field != "top_k":
            complaints.append(f"{field} is no sampling default")
            continue
        try:
            resolved = resolve_sampling(SamplingOptions(**{field: value}), {}, 2**31, lambda _: [])
        except RequestError as error:
            complaints.append(str(error))
        else:
            usable[field] = getattr(resolved, field)
    return usable, complaints


def _number(field: str, value: Any, lowest: float, highest: float, closed: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{field} must be a number, got {type(value).__name__}", field=field)
    if not lowest <= value <= highest or (value == lowest and not closed):
        bound = f"{lowest:g} <=" if closed else f"{lowest:g} <"
        raise RequestError(f"{field} is {_shown(value)}; allowed: {bound} {field} <= {highest:g}", field=field)
    return float(value)


def _integer(field: str, value: Any, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{field} must be an integer, got {type(value).__name__}", field=field)
    if not lowest <= value <= highest:
        raise RequestError(f"{field} is {_shown(value)}; allowed: {lowest} to {highest}", field=field)
    return value


def _shown(value: float) -> str:
    """A number for a message; Python refuses to print integers of thousands of digits."""
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >= 2**64 else f"{value}"


def _top_k(value: int, vocab_size: int) -> int:
    """-1 (vLLM's spelling) and the whole vocabulary mean off."""
    top_k = max(_integer("top_k", value, -1, 2**31), 0)
    return 0 if top_k >= vocab_size else top_k


def _logit_bias(bias: dict[int, float], vocab_size: int) -> dict[int, float]:
    checked: dict[int, float] = {}
    for token_id, value in bias.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            message = f"logit_bias names token {str(token_id)[:40]}; the vocabulary has 0 to {vocab_size - 1}"
            raise RequestError(message, field="logit_bias")
        checked[token_id] = _number("logit_bias", value, -100.0, 100.0, True)
    return checked


def _bad_words(words: tuple[str, ...], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """Each word at the start of a text and after a space: most vocabularies have different tokens for the two."""
    if len(words) > MAX_BAD_WORDS:
        raise RequestError(f"{len(words)} bad_words; at most {MAX_BAD_WORDS} are allowed", field="bad_words")
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            raise RequestError("a bad word is empty", field="bad_words")
        bare = tuple(encode(word.lstrip()))
        spaced = tuple(encode(" " + word.lstrip()))
        sequences[bare] = None
        if spaced[-len(bare) :] != bare:
            sequences[spaced] = None
    return tuple(sequence for sequence in sequences if sequence)


def _guided(guided: GuidedDecoding) -> GuidedDecoding:
    kinds = [name for name in GuidedDecoding.__struct_fields__ if getattr(guided, name) is not None]
    if len(kinds) != 1:
        got = ", ".join(kinds) or "none"
        raise RequestError(f"guided decoding needs exactly one of json_schema, json_object, regex, grammar, choice; "
                           f"got {got}", field="guided")  # fmt: skip
    if guided.choice is not None and not all(guided.choice or ("",)):
        raise RequestError("guided choice needs at least one answer, and no empty one", field="guided")
    return guided
