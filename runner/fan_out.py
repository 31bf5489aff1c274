"""Several prompts of one body, answered side by side as one stream of deltas.

Owns the numbering of choices over prompts. Knows nothing of HTTP, batch files or engines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec

from runner.services import ChatService
from runner.types import ChatRequest, TextDelta


def answer_all(service: ChatService, requests: tuple[ChatRequest, ...]) -> AsyncGenerator[TextDelta, None]:
    """Deltas of all prompts; choice k of prompt p of n choices each has the index p * n + k. Closing cancels all.

    Each prompt's last delta carries its own usage. One prompt that fails fails all.
    """
    if len(requests) == 1:
        return service.generate(requests[0])
    return _merge(service, requests)


async def _merge(service: ChatService, requests: tuple[ChatRequest, ...]) -> AsyncGenerator[TextDelta, None]:
    queue: asyncio.Queue[TextDelta | Exception | None] = asyncio.Queue(maxsize=2 * len(requests))
    n = requests[0].sampling.n or 1
    tasks = [asyncio.create_task(_pump(service, one, index * n, queue)) for index, one in enumerate(requests)]
    num_open = len(tasks)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    service: ChatService, request: ChatRequest, offset: int, queue: asyncio.Queue[TextDelta | Exception | None]
) -> None:
    try:
        async with contextlib.aclosing(service.generate(request)) as stream:
            async for delta in stream:
                await queue.put(msgspec.structs.replace(delta, index=delta.index + offset) if offset else delta)
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
