"""What can go wrong, as a tree. Errors know no HTTP and no exit code: one table in each frontend maps them.

    LlmrunError
    ├── UsageError              the command line, environment or config file is wrong               (exit code 2)
    ├── RequestError            this request is wrong; others are fine. `field` names the culprit
    │   ├── ContextOverflow     prompt + answer do not fit; carries the numbers
    │   ├── TemplateFailed      the chat template refused the messages, or broke on them
    │   ├── UnsupportedField    the engine cannot honour a field (honoured or refused)
    │   ├── UnknownModel        no such served model
    │   └── UnknownAdapter      no such LoRA adapter, by name or by path
    └── EngineError             the engine, not the request
        ├── EngineStartFailed   carries reason, last log lines and the likely fix
        ├── EngineDied          the child is gone; open streams raise this
        ├── EngineBusy          queue is full; carries retry_after_s
        └── EngineFailed        the engine failed at this request or step and lives on

`model_cards.errors.CardError` stands beside this tree: the card layer imports nothing from here.
"""

from __future__ import annotations


class LlmrunError(Exception):
    """Base of all our errors; `str(error)` is a message for the user."""


class UsageError(LlmrunError):
    """The command cannot be understood or makes no sense."""


class RequestError(LlmrunError):
    """A request is wrong. `field` is the request field at fault, if one is."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextOverflow(RequestError):
    """The prompt (and the answer asked for) do not fit into the context."""

    def __init__(self, message: str, *, prompt_tokens: int, context_length: int, max_tokens: int | None) -> None:
        super().__init__(message, field="max_tokens" if max_tokens and prompt_tokens < context_length else "messages")
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.max_tokens = max_tokens


class TemplateFailed(RequestError):
    """The chat template makes no prompt of these messages."""


class UnsupportedField(RequestError):
    """The engine does not honour a field of the request."""


class UnknownModel(RequestError):
    """No model of that name is served here."""


class UnknownAdapter(RequestError):
    """No LoRA adapter of that name is loaded, or none lies at that path."""


class EngineError(LlmrunError):
    """The engine cannot do its work."""


class EngineStartFailed(EngineError):
    """The engine did not start. `log_tail` holds its last log lines, `hint` the likely fix."""

    def __init__(self, reason: str, *, log_tail: str = "", hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log_tail = log_tail
        self.hint = hint


class EngineDied(EngineError):
    """The engine's process is gone."""


class EngineBusy(EngineError):
    """No room in the queue now; try again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineFailed(EngineError):
    """The engine failed at this request; others may be fine."""
