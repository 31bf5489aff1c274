"""Prompts: messages or raw text -> token ids that fit the context.

Owns the rendering, the encoding rules (special tokens, exactly one BOS) and the limit check. Knows no engine.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from model_cards.card import ModelCard
from model_cards.errors import CardError
from runner.errors import ContextOverflow, RequestError, TemplateFailed
from runner.types import ChatRequest

if TYPE_CHECKING:
    from model_cards.template import ChatTemplate
    from model_cards.tokenizer import Tokenizer

INLINE_CHARS = 20_000
"""Longer texts are encoded in a thread, so that other streams go on."""
SLICE_CHARS = 32_768
"""Texts that hardly fit are counted in slices of this size first, and refused as soon as they cannot fit."""
UNKNOWN_CONTEXT = 2**31 - 1
"""Neither card nor engine says how long the context is; the engine decides."""
_RESERVED_ARGS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_MAX_OVERRIDES = 8


class PromptBuilder:
    """Makes prompts for one model. `load_override(text)` compiles a template that a request brings along."""

    def __init__(
        self,
        card: ModelCard,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        context_length: int,
        load_override: Callable[[str], ChatTemplate],
    ) -> None:
        self._card = card
        self._tokenizer = tokenizer
        self._template = template
        self._override = functools.lru_cache(maxsize=_MAX_OVERRIDES)(load_override)
        self.context_length = context_length or UNKNOWN_CONTEXT
        ids = tuple(dict.fromkeys((*card.eos_token_ids, *tokenizer.eos_token_ids)))
        self.eos_token_ids: tuple[int, ...] = ids

    async def token_ids(self, request: ChatRequest) -> list[int]:
        """The prompt of a request, checked against the context. Raises RequestError or ContextOverflow."""
        if (request.messages is None) == (request.prompt is None):
            raise RequestError("a request has either messages or a prompt", field="messages")
        if request.messages is not None:
            if request.chat_template is None:
                text = self.render(request)
            else:  # a template that a stranger wrote may use up its second of CPU time
                text = await asyncio.to_thread(self.render, request)
            ids = self._with_one_bos(await self._encode(text, add_special=False, field="messages"))
            return self._not_empty(ids, "messages")
        return await self.completion_ids(request.prompt or "", "prompt")

    async def completion_ids(self, prompt: str | list[int], field: str) -> list[int]:
        """Ids of a raw text, as the model was trained on texts, or the given ids, checked."""
        if isinstance(prompt, str):
            return self._not_empty(await self._encode(prompt, add_special=True, field=field), field)
        self.check_ids(prompt, field)
        return self._not_empty(list(prompt), field)

    def render(self, request: ChatRequest) -> str:
        """The text that the chat template makes of the messages."""
        if not request.messages:
            raise RequestError("messages is empty; at least one message is needed", field="messages")
        for name in _RESERVED_ARGS:
            if name in request.template_args:
                raise RequestError(f"{name} is set by the request itself, not by template arguments",
                                   field="chat_template_kwargs")  # fmt: skip
        try:
            return self._template_of(request).render_fitted(
                request.messages,
                tools=request.tools,
                documents=request.documents,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                **request.template_args,
            )
        except CardError as error:
            raise TemplateFailed(str(error), field="messages") from error

    async def unread(self, request: ChatRequest) -> list[str]:
        """Fields of the request that its chat template never looks at, so that the model would not see them."""
        asked = [name for name in ("tools", "documents") if request.messages is not None and getattr(request, name)]
        if not asked:
            return asked
        try:
            if request.chat_template is not None:  # a stranger's: compiling it takes its time
                await asyncio.to_thread(self._template_of, request)
            return [name for name in asked if not self._template_of(request).reads(name)]
        except CardError as error:
            raise TemplateFailed(str(error), field="messages") from error

    def _template_of(self, request: ChatRequest) -> ChatTemplate:
        return self._override(request.chat_template) if request.chat_template is not None else self._template

    def check_ids(self, ids: list[int], field: str) -> None:
        """Raises RequestError unless all are ids of the vocabulary."""
        vocab_size = self._tokenizer.vocab_size
        try:
            if not ids or (min(ids) >= 0 and max(ids) < vocab_size and not any(type(i) is not int for i in ids)):
                return
        except TypeError:
            pass
        for place, token_id in enumerate(ids):
            if type(token_id) is not int or not 0 <= token_id < vocab_size:
                message = (
                    f"{field} holds {_shown_id(token_id)} at place {place}; "
                    f"token ids of this model are integers from 0 to {vocab_size - 1}"
                )
                raise RequestError(message, field=field)

    def answer_tokens(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """How many tokens the answer may have: `max_tokens`, or all that the context leaves. Raises ContextOverflow."""
        left = self.context_length - prompt_tokens
        if left < (1 if max_tokens is None else max_tokens):
            raise self._overflow(prompt_tokens, max_tokens)
        return left if max_tokens is None else max_tokens

    async def _encode(self, text: str, *, add_special: bool, field: str) -> list[int]:
        if not text.isascii():
            _check_unicode(text, field)
        if len(text) <= INLINE_CHARS:
            return self._tokenizer.encode(text, add_special=add_special, parse_special=True)
        await self._refuse_hopeless(text)
        return await asyncio.to_thread(self._tokenizer.encode, text, add_special=add_special, parse_special=True)

    async def _refuse_hopeless(self, text: str) -> None:
        """Raise before a text is encoded as a whole that is far over the context (10 MB need seconds)."""
        if len(text) < 4 * self.context_length:
            return
        counted = 0
        for start in range(0, len(text), SLICE_CHARS):
            piece = text[start : start + SLICE_CHARS]
            counted += len(await asyncio.to_thread(self._tokenizer.encode, piece))
            counted -= 2  # a cut through a token makes a token or two more of it
            if counted > self.context_length:
                raise self._overflow(counted, None, at_least=True)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Templates write BOS or leave it to the tokenizer; the model was trained on exactly one (llama.cpp's rule)."""
        bos = self._tokenizer.bos_token_id
        if bos is None or not self._tokenizer.add_bos:
            return ids
        if not ids or ids[0] != bos:
            return [bos, *ids]
        num_bos = 1
        while num_bos < len(ids) and ids[num_bos] == bos:
            num_bos += 1
        return ids[num_bos - 1 :]

    def _not_empty(self, ids: list[int], field: str) -> list[int]:
        if ids:
            return ids
        if self._tokenizer.bos_token_id is None:
            raise RequestError(f"{field} is empty, and this model has no token to begin with", field=field)
        return [self._tokenizer.bos_token_id]

    def _overflow(self, prompt_tokens: int, max_tokens: int | None, *, at_least: bool = False) -> ContextOverflow:
        context = self.context_length
        needed = prompt_tokens + (max_tokens or 1)
        message = f"prompt has {'at least ' if at_least else ''}{prompt_tokens:,} tokens"
        if prompt_tokens < context:
            message += f" and max_tokens is {max_tokens or 1:,}, together {needed:,}; the context is {context:,}"
            message += f"; ask for at most {context - prompt_tokens:,}, or shorten the prompt"
        else:
            message += f", the context is {context:,}; shorten it"
        longest = self._card.context_length or UNKNOWN_CONTEXT
        if needed <= longest and not at_least:
            message += f" or start with --context-length {min(_round_up(needed), longest)}"
        elif longest <= context:
            message += f" (this model was made for {longest:,})"
        return ContextOverflow(message, prompt_tokens=prompt_tokens, context_length=context, max_tokens=max_tokens)


def _round_up(tokens: int) -> int:
    """The power of two from `tokens` on."""
    return 1 << max(tokens - 1, 1).bit_length()


def _shown_id(token_id: object) -> str:
    """A bad id for a message; Python refuses to print integers of thousands of digits."""
    if isinstance(token_id, int) and abs(token_id) >= 2**64:
        return "a huge integer"
    return repr(token_id)[:40]


def _check_unicode(text: str, field: str) -> None:
    """Tokenizers would read U+FFFD where a lone surrogate stands: an answer to another prompt."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = (
            f"{field} holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
            "which is no text; send valid Unicode"
        )
        raise RequestError(message, field=field) from error
