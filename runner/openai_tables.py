"""The tables of fields of OpenAI request bodies: name -> Kind, aliases, what is ignored, what is refused and why.

Read by openai_requests.py and by /openapi.json. Spellings of OpenAI, vLLM and llama.cpp are known. Knows nothing of
what the fields do.
"""

from __future__ import annotations

from typing import Any

from runner.openai_fields import (
    BOOL,
    MAX_INT64,
    OBJECT,
    Kind,
    bad,
    exactly,
    integer,
    list_of,
    number,
    one_of,
    one_or_list,
    string,
)
from runner.openai_messages import GUIDED, MESSAGES, TOOL_CHOICE, TOOLS

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_PROMPTS = 2048
"""Prompts of one body; also choices of one body over all its prompts."""
COMPLETION_MAX_TOKENS = 16
"""/v1/completions without max_tokens, as OpenAI and vLLM."""

_TOKEN_ID = integer(0)
_TOKEN_IDS = list_of(_TOKEN_ID, 10_000_000, min_len=1)


def _read_logit_bias(field: str, value: Any) -> dict[int, float]:
    """{"token id": bias}, as JSON has only strings for keys."""
    if not isinstance(value, dict) or len(value) > 10_000:
        bad(field, value, "an object of at most 10000 token ids and numbers")
    bias = number(-100, 100)
    out: dict[int, float] = {}
    for key, entry in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 11):
            bad(field, key, "a token id as key, such as {'1234': -100}")
        out[_TOKEN_ID.read(field, int(key))] = bias.read(f"{field}[{key}]", entry)
    return out


def _read_prompts(field: str, value: Any) -> tuple[str | list[int], ...]:
    """One prompt or several, each a string or token ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        bad(field, value, "a string, a list of token ids, or a list of these, not empty")
    if all(isinstance(item, int) for item in value):
        return (list(_TOKEN_IDS.read(field, value)),)
    if len(value) > MAX_PROMPTS:
        bad(field, value, f"at most {MAX_PROMPTS} prompts")
    return tuple(_one_prompt(f"{field}[{index}]", item) for index, item in enumerate(value))


def _one_prompt(field: str, value: Any) -> str | list[int]:
    if isinstance(value, str):
        return value
    return list(_TOKEN_IDS.read(field, value))


def _read_logprobs_count(field: str, value: Any) -> int | None:
    if value is False:
        return None
    return int(integer(0, MAX_LOGPROBS).read(field, value))


PROMPTS = Kind(
    _read_prompts,
    {
        "oneOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}},
            {"type": "array", "items": {"type": "integer"}},
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        ]
    },
)
SAMPLING_FIELDS: dict[str, Kind] = {
    "temperature": number(0, 100),
    "top_p": number(0, 1),
    "top_k": integer(-1),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "repetition_penalty": number(0, 10, above_low=True),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": integer(-MAX_INT64, MAX_INT64),
    "logit_bias": Kind(_read_logit_bias, {"type": "object", "additionalProperties": {"type": "number"}}),
    "bad_words": list_of(string(1024, empty=False), 1024),
    "n": integer(1, MAX_N),
}
_COMMON: dict[str, Kind] = {
    "model": string(1024),
    **SAMPLING_FIELDS,
    **GUIDED,
    "max_tokens": integer(1),
    "min_tokens": integer(0),
    "stop": one_or_list(string(4096, empty=False), MAX_STOP_STRINGS),
    "stop_token_ids": list_of(_TOKEN_ID, 1024),
    "ignore_eos": BOOL,
    "include_stop_str_in_output": BOOL,
    "skip_special_tokens": BOOL,
    "stream": BOOL,
    "stream_options": OBJECT,
}
TEMPLATE_FIELDS: dict[str, Kind] = {
    "model": string(1024),
    "messages": MESSAGES,
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICE,
    "documents": list_of(OBJECT, 10_000),
    "chat_template": string(1_000_000, empty=False),
    "chat_template_kwargs": OBJECT,
    "add_generation_prompt": BOOL,
    "continue_final_message": BOOL,
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh"),
}
CHAT_FIELDS: dict[str, Kind] = {
    **_COMMON,
    **TEMPLATE_FIELDS,
    "logprobs": BOOL,
    "top_logprobs": integer(0, MAX_LOGPROBS),
}
COMPLETION_FIELDS: dict[str, Kind] = {
    **_COMMON,
    "max_tokens": integer(0),
    "prompt": PROMPTS,
    "echo": BOOL,
    "logprobs": Kind(_read_logprobs_count, {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}),
}
EMBEDDING_FIELDS: dict[str, Kind] = {
    "model": string(1024),
    "input": PROMPTS,
    "encoding_format": one_of("float", "base64"),
    "dimensions": integer(1),
}
ALIASES: dict[str, str] = {
    "max_completion_tokens": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}
IGNORED: dict[str, Kind] = {
    "user": string(),
    "metadata": OBJECT,
    "store": BOOL,
    "service_tier": string(),
    "parallel_tool_calls": BOOL,
    "safety_identifier": string(),
    "prompt_cache_key": string(),
    "prompt_cache_retention": string(),
    "cache_prompt": BOOL,
}
"""Accepted and without effect here: they concern OpenAI's accounts and caches, not the answer."""
NOT_BUILT: dict[str, Kind] = {
    "suffix": exactly("", why="filling in before a suffix is not supported; leave it out"),
    "best_of": integer(1, MAX_N),
    "functions": exactly([], why="it is deprecated; use tools"),
    "function_call": exactly("none", "auto", why="it is deprecated; use tools"),
    "audio": exactly(why="audio is not supported"),
    "modalities": exactly(["text"], why="only ['text'] is supported"),
    "prediction": exactly(why="predicted outputs are not supported"),
    "web_search_options": exactly({}, why="web search is not supported"),
    "use_beam_search": exactly(False, why="beam search is not supported over this API"),
}
"""Known fields that ask for what is not here; only values that ask for nothing pass."""
HINTS: dict[str, str] = {
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "temp": "temperature",
    "num_ctx": "the start option --context-length",
    "n_probs": "logprobs",
    "stop_sequences": "stop",
    "beam_width": "n",
}
"""Names that other servers use, and ours for the same thing."""
