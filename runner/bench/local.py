"""ServiceTarget: an engine in this process (its child as usual), measured through the pipeline, without HTTP.

Owns nothing but the translation of a BenchRequest to a ChatRequest.
"""

from __future__ import annotations

import contextlib
import itertools
import time

from model_cards.errors import CardError
from runner.bench.records import BenchRequest, Sample
from runner.errors import LlmrunError
from runner.services import ChatService
from runner.types import ChatRequest, SamplingOptions


class ServiceTarget:
    """A started service. Requests are greedy and of exact length."""

    def __init__(self, service: ChatService, *, endpoint: str = "chat", keep_text: bool = False) -> None:
        self._service = service
        self._endpoint = endpoint
        self._keep_text = keep_text
        self._numbers = itertools.count()

    async def run(self, request: BenchRequest) -> Sample:
        """See Target."""
        sample = Sample(start_s=time.perf_counter(), is_counted=True)
        try:
            await self._follow(self._translate(request), sample)
        except (LlmrunError, CardError) as error:
            sample.error = str(error)
        sample.end_s = time.perf_counter()
        return sample

    async def close(self) -> None:
        """Close the service."""
        await self._service.close()

    def _translate(self, request: BenchRequest) -> ChatRequest:
        is_chat = self._endpoint == "chat"
        messages = request.messages or [{"role": "user", "content": request.prompt}]
        return ChatRequest(
            id=f"bench-{next(self._numbers)}",
            messages=messages if is_chat else None,
            prompt=None if is_chat else request.prompt,
            max_tokens=request.max_tokens,
            ignore_eos=True,
            sampling=SamplingOptions(temperature=0.0),
        )

    async def _follow(self, request: ChatRequest, sample: Sample) -> None:
        last = 0.0
        async with contextlib.aclosing(self._service.generate(request)) as stream:
            async for delta in stream:
                now = time.perf_counter()
                if delta.usage is not None:
                    sample.prompt_tokens = delta.usage.prompt_tokens
                    sample.output_tokens = delta.usage.completion_tokens
                    sample.cached_tokens = delta.usage.cached_tokens
                sample.finish = delta.finish or sample.finish
                if not delta.text and not delta.token_ids:
                    continue
                if sample.first_s is None:
                    sample.first_s = now
                else:
                    sample.gaps_s.append(now - last)
                last = now
                if self._keep_text:
                    sample.text += delta.text
