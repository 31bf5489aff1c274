"""ChatTemplate: messages in, prompt text out, as transformers' `apply_chat_template` writes it.

Owns rendering, the choice among named templates, the fit of messages to a template (message_fit.py) and the fallback
for models without a template. Bounds on hostile templates are in template_sandbox.py. Knows nothing of tokens.

Library: Jinja2's sandbox, chosen by measuring: of 1,394 reference renders (82 templates, errors included) it gives
1,394 and minijinja 3.0 gives 1,258; the median render takes 40 us against 7 us, on 2 cores of a shared machine.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.exceptions import TemplateSyntaxError

from model_cards.card import ModelCard
from model_cards.errors import TemplateError
from model_cards.message_fit import Dialect, find_dialect, fit_messages, parse_arguments
from model_cards.template_meter import MAX_CHARS, TemplateLimit
from model_cards.template_sandbox import MAX_SOURCE_CHARS, SandboxEnvironment

CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
FALLBACK_TEMPLATE = PLAIN_TEMPLATE
"""For a model that ships no template: ChatML if its vocabulary has `<|im_start|>`, else this (`fallback_template`)."""
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_MAX_FORMAT_CHARS = 256
_COMPILED_TEMPLATES = 64


class _Refused(JinjaError):
    """The template called raise_exception."""


class _Compiled:
    """One compiled template with its environment; the lock guards the environment's meter."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(
                f"the chat template has {len(source):,} characters; at most {MAX_SOURCE_CHARS:,} are allowed"
            )
        self.source = source
        self.lock = threading.Lock()
        self.environment = SandboxEnvironment()
        self.environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self.template = self.environment.from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
        except Exception as error:  # compiling runs a stranger's text: deep nesting, constants that overflow ...
            raise TemplateError(f"the chat template cannot be compiled: {_describe(error)}") from None

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The variables that the source names anywhere, read or not on one way through it."""
        return frozenset(node.name for node in self.environment.parse(self.source).find_all(nodes.Name))

    def render(self, variables: dict[str, Any]) -> str:
        """Render; raises TemplateError and nothing else."""
        with self.lock:
            self.environment.meter.start()
            try:
                return self._collect(variables)
            except _Refused as error:
                raise TemplateError(f"the chat template refused these messages: {error.message}") from None
            except TemplateLimit as error:
                raise TemplateError(f"the chat template was stopped: it {error.message}") from None
            except Exception as error:  # a template may run into any error that Python has
                raise TemplateError(f"the chat template failed: {_describe(error)}") from None

    def _collect(self, variables: dict[str, Any]) -> str:
        context = self.template.new_context(variables)
        chunks, num_chars = [], 0
        for chunk in self.template.root_render_func(context):
            num_chars += len(chunk)
            if num_chars > MAX_CHARS:
                raise TemplateLimit(f"writes more than {MAX_CHARS:,} characters")
            chunks.append(chunk)
        return "".join(chunks)


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests or recurses too deeply"
    return f"{type(error).__name__}: {str(error)[:500]}"


def _raise_exception(message: Any = "no reason given") -> None:
    raise _Refused(str(message)[:2000])


def _strftime_now(format: str) -> str:
    if len(format) > _MAX_FORMAT_CHARS:
        raise TemplateLimit(f"asks for a date format of {len(format):,} characters")
    return datetime.now().strftime(format)


@functools.lru_cache(maxsize=_COMPILED_TEMPLATES)
def _compile(source: str) -> _Compiled:
    return _Compiled(source)


class ChatTemplate:
    """One model's template, compiled once. Rendering is thread-safe."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        named: Mapping[str, str] | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """`named`: further templates; `tool_use` serves requests with tools, `rag` those with documents.

        `now` is for tests. Raises TemplateError if the template is not valid.
        """
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._named = dict(named or {})
        self._now = now
        self._dialects: dict[str, Dialect] = {}
        _compile(source)

    def reads(self, name: str) -> bool:
        """Whether `tools` or `documents` would reach the prompt: the template that serves them names the variable."""
        return name in _compile(self._choose(name == "tools", name == "documents")).names

    def render_fitted(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_args: Any,
    ) -> str:
        """The prompt for OpenAI messages as clients send them; `messages` is not changed.

        As `render`, but where transformers would fail or write Python's text of a list, the messages are fitted to
        what this template reads (message_fit.py): text parts become a string, tool-call arguments stay a string, null
        content is empty.
        Raises TemplateError: the template refused, failed, or used too much time or memory.
        """
        source = self._choose(tools, documents)
        fitted = fit_messages(messages, lambda: self._dialect(source))
        return self._render(
            source, fitted, tools, documents, add_generation_prompt, continue_final_message, template_args
        )

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_args: Any,
    ) -> str:
        """Exactly what transformers renders (tool-call arguments parsed), its errors included.

        Raises TemplateError: the template refused, failed, or used too much time or memory.
        """
        source = self._choose(tools, documents)
        parsed = [parse_arguments(message) for message in messages]
        return self._render(
            source, parsed, tools, documents, add_generation_prompt, continue_final_message, template_args
        )

    def _choose(self, tools: Any, documents: Any) -> str:
        if tools and "tool_use" in self._named:
            return self._named["tool_use"]
        if documents and "rag" in self._named:
            return self._named["rag"]
        return self.source

    def _dialect(self, source: str) -> Dialect:
        if source not in self._dialects:
            self._dialects[source] = find_dialect(
                lambda messages, tools: _compile(source).render(self._variables(messages, tools, None, True, {})),
                source,
            )
        return self._dialects[source]

    def _variables(
        self, messages: Any, tools: Any, documents: Any, add_generation_prompt: bool, template_args: Mapping[str, Any]
    ) -> dict[str, Any]:
        variables: dict[str, Any] = {**self.special_tokens, **template_args}
        variables.update(
            messages=messages, tools=tools, documents=documents, add_generation_prompt=add_generation_prompt
        )
        if self._now is not None:
            now = self._now
            variables["strftime_now"] = lambda format: now().strftime(format)
        return variables

    def _render(
        self,
        source: str,
        messages: list[dict[str, Any]],
        tools: Any,
        documents: Any,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_args: Mapping[str, Any],
    ) -> str:
        final = ""
        if continue_final_message:
            messages, final = _mark_final(messages)
            add_generation_prompt = False
        text = _compile(source).render(
            self._variables(messages, tools, documents, add_generation_prompt, template_args)
        )
        return _cut_final(text, final) if continue_final_message else text


def _mark_final(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Messages whose last text ends with a tag, and that text (transformers' method)."""
    last = copy.deepcopy(messages[-1]) if messages else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_TAG
        return [*messages[:-1], last], content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + _CONTINUE_TAG
            return [*messages[:-1], last], text
    raise TemplateError("continue_final_message is set, but the last message has no text to continue")


def _cut_final(text: str, final: str) -> str:
    """The prompt up to the end of the last message's text, without what the template closes it with."""
    tag = _CONTINUE_TAG.strip()
    if final.strip() not in text or tag not in text:
        raise TemplateError(
            "continue_final_message is set, but the chat template does not write the last message as it is; "
            "send it as a finished message, or use another template (--chat-template)"
        )
    at = text.rindex(tag)
    if text[at : at + len(_CONTINUE_TAG)] == _CONTINUE_TAG:
        return text[:at]
    return text[:at].rstrip()


def load_template(card: ModelCard, override: str | None = None) -> ChatTemplate | None:
    """The card's template, or `override` (template text, never a path) in its place; None if there is neither."""
    if override is not None:
        return ChatTemplate(override, card.special_tokens)
    if card.chat_template is None:
        return None
    return ChatTemplate(card.chat_template, card.special_tokens, named=card.named_templates)


def read_template(text_or_path: str) -> str:
    """What `--chat-template` names: a file, or the template itself. Raises TemplateError."""
    if "{{" in text_or_path or "{%" in text_or_path:
        return text_or_path
    path = Path(text_or_path).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise TemplateError(
            f"cannot read the chat template {text_or_path}: {reason}; give a .jinja file or the template text itself"
        ) from None


def fallback_template(card: ModelCard, has_token: Callable[[str], bool] | None = None) -> ChatTemplate:
    """A template for a model without one: ChatML if its vocabulary has `<|im_start|>`, else `User: …\\nAssistant:`.

    `has_token` asks the tokenizer; without it the card's special tokens tell. Who uses it says so once on stderr.
    """
    texts = card.special_tokens.values()
    is_chatml = has_token("<|im_start|>") if has_token else "<|im_end|>" in texts or "<|im_start|>" in texts
    return ChatTemplate(CHATML_TEMPLATE if is_chatml else PLAIN_TEMPLATE, card.special_tokens)
