"""What a request gets where it leaves a field out: the flags of this run, then `--request-template FILE`.

Owns the file's format (dynamo-run's: JSON with model, temperature, max_completion_tokens, each optional here) and the
filling in. A field that the request sets, 0 included, is never touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from runner.errors import UsageError
from runner.options import RunOptions
from runner.types import ChatRequest


class RequestTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    model: str | None = None
    temperature: float | None = None
    max_completion_tokens: int | None = None


class RequestDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults for every request of a run. `system` is for frontends that build the messages themselves."""

    model: str = ""
    max_tokens: int | None = None
    sampling: dict[str, Any] = {}
    """Fields of SamplingOptions, none of them None."""
    system: str | None = None

    def apply(self, request: ChatRequest) -> ChatRequest:
        """The request with its gaps filled."""
        changes: dict[str, Any] = {}
        if self.model and not request.model:
            changes["model"] = self.model
        if self.max_tokens is not None and request.max_tokens is None:
            changes["max_tokens"] = self.max_tokens
        absent = {name: value for name, value in self.sampling.items() if getattr(request.sampling, name) is None}
        if absent:
            changes["sampling"] = msgspec.structs.replace(request.sampling, **absent)
        return msgspec.structs.replace(request, **changes) if changes else request

    def chat(self, request_id: str, text: str) -> ChatRequest:
        """One user message, after the system message if there is one."""
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.apply(ChatRequest(id=request_id, messages=messages))


def load_request_template(path: str | Path) -> RequestTemplate:
    """Read and check the file. Raises UsageError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--request-template {path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(content, type=RequestTemplate)
    except msgspec.DecodeError as error:
        allowed = ", ".join(RequestTemplate.__struct_fields__)
        raise UsageError(f"--request-template {path}: {error}; allowed keys: {allowed}") from error


def make_defaults(options: RunOptions | None) -> RequestDefaults:
    """Defaults of a run: a flag beats the template file. Raises UsageError."""
    if options is None:
        return RequestDefaults()
    template = load_request_template(options.request_template) if options.request_template else RequestTemplate()
    asked = {
        "temperature": template.temperature if options.temperature is None else options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    return RequestDefaults(
        model=template.model or "",
        max_tokens=template.max_completion_tokens if options.max_tokens is None else options.max_tokens,
        sampling={name: value for name, value in asked.items() if value is not None},
        system=options.system,
    )
