"""Errors on their way from a child to the launcher: exception -> ErrorReply -> the same exception."""

from __future__ import annotations

from typing import Any

from runner import errors
from runner.engines.base import StepOutput
from runner.engines.frames import ErrorReply

_FIELDS: dict[type[errors.LlmrunError], tuple[str, ...]] = {
    errors.ContextOverflow: ("prompt_tokens", "context_length", "max_tokens"),
    errors.UnsupportedField: ("field",),
    errors.RequestError: ("field",),
    errors.EngineBusy: ("retry_after_s",),
    errors.EngineFailed: (),
}
_BY_NAME = {kind.__name__: kind for kind in _FIELDS}


def to_reply(key: int, error: BaseException) -> ErrorReply:
    """What ends stream `key`. Exceptions that are not ours become EngineFailed, named by their type."""
    for kind, names in _FIELDS.items():
        if isinstance(error, kind):
            return ErrorReply(key, kind.__name__, str(error), {name: getattr(error, name) for name in names})
    if isinstance(error, errors.LlmrunError):
        return ErrorReply(key, "EngineFailed", str(error))
    return ErrorReply(key, "EngineFailed", f"the engine failed at this request: {describe(error)}")


def output_to_reply(output: StepOutput, key: int) -> ErrorReply:
    """The reply for a StepOutput that carries an error."""
    kind = "RequestError" if output.error_kind == "request" else "EngineFailed"
    return ErrorReply(key, kind, output.error or "the engine failed without saying why")


def to_exception(reply: ErrorReply) -> errors.LlmrunError:
    """The exception that a reply stands for."""
    kind: Any = _BY_NAME.get(reply.kind, errors.EngineFailed)
    error: errors.LlmrunError = kind(reply.message, **reply.fields)
    return error


def describe(error: BaseException) -> str:
    """`ValueError: no such thing`, in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
