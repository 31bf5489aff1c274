"""The records that travel between frontends, pipeline and engines: frozen, plain data, cheap to encode.

Token level (engines): TokenRequest -> TokenDelta. Text level (frontends): ChatRequest -> TextDelta.
Knows nothing of who sends them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
"""Why a stream ended. Errors are raised, never a reason."""


class GuidedDecoding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Constrain the answer; exactly one field is set."""

    json_schema: dict[str, Any] | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    grammar: str | None = None
    """GBNF text, root rule `root`."""
    choice: tuple[str, ...] | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen. Every default is neutral: it changes nothing."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    """None: no log-probabilities; k: of the chosen token and of the k most likely ones."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not be completed."""
    beam_width: int = 1
    length_penalty: float = 1.0
    guided: GuidedDecoding | None = None


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request asks for; None means: not asked, take the card's default, else the neutral value."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    bad_words: tuple[str, ...] = ()
    n: int | None = None
    beam_width: int | None = None
    length_penalty: float | None = None
    guided: GuidedDecoding | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Messages (chat) or a raw prompt (completion) in; exactly one of the two is set."""

    id: str
    model: str = ""
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    """Raw text or token ids; never goes through the chat template."""
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int | None = None
    """None: all that the context leaves."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    """Completions: the answer starts with the prompt."""
    adapter: str | None = None
    template_args: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    """Overrides the card's template for this request."""


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token ids in: what an engine gets. `max_tokens` is always a number that fits the context."""

    id: str
    token_ids: list[int]
    sampling: SamplingParams = SamplingParams()
    max_tokens: int = 16
    min_tokens: int = 0
    """Stop ids are masked until this many tokens were made."""
    stop_token_ids: tuple[int, ...] = ()
    """EOS ids are merged in already, unless the request ignores them."""
    adapter: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability (natural log) of one token and of the most likely ones at its place, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """New token ids of one stream (never the stop token). The last delta, and only it, has `finish`."""

    token_ids: list[int] = []
    finish: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    stop_token_id: int | None = None
    """The stop id that ended the stream, on the last delta."""
    cached_tokens: int | None = None
    """Prompt tokens taken from the prefix cache; on one delta of the stream at least."""


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of token ids to embed."""

    id: str
    inputs: list[list[int]]


class EmbedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One vector [dimensions] for each input, L2-normalised; float32 little-endian bytes."""

    vectors: list[bytes]
    prompt_tokens: int


ADAPTER = "adapter:"
"""`adapter:NAME` in EngineInfo.capabilities: an adapter that requests may name."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine says of itself once it is ready."""

    name: str
    version: str = ""
    context_length: int = 0
    """Tokens of prompt and answer that one request may use."""
    max_running: int = 1
    """Requests that run at once; more are queued."""
    capabilities: tuple[str, ...] = ()
    """Honoured SamplingParams fields by name, and: `guided.json_schema` `guided.json_object` `guided.regex`
    `guided.grammar` `guided.choice` `min_tokens` `embed` `adapter` `adapter:NAME` `load_adapter`."""
    details: dict[str, Any] = {}
    """For people: device, threads, library, KV cache size ..."""

    @property
    def makes_text(self) -> bool:
        """False for models that make embeddings and nothing else."""
        return "embed" not in self.capabilities or "temperature" in self.capabilities

    def with_adapters(self, names: Iterable[str]) -> EngineInfo:
        """The same, with these adapters in place of those it named."""
        others = [word for word in self.capabilities if not word.startswith(ADAPTER)]
        return msgspec.structs.replace(self, capabilities=(*others, *(f"{ADAPTER}{name}" for name in names)))


class TextLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token's text, its bytes and log-probability; `top` without further nesting."""

    token_id: int
    token: str
    bytes: list[int]
    logprob: float
    top: list[TextLogprob] = []


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one request (all choices together)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New text of one choice. A choice's last delta has `finish`; the last delta of all has `usage`."""

    index: int = 0
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    token_ids: list[int] = []
    """The new ids behind `text` (text may lag behind: half characters, held-back stop strings)."""
    logprobs: list[TextLogprob] | None = None
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or the stop token id that ended the choice."""
    usage: Usage | None = None
    warnings: tuple[str, ...] = ()
    """On the first delta, with --lenient: fields that were not honoured."""
