"""llmrun out=pystr:examples/pystr_upper.py --model-name upper: answers in capitals."""

import asyncio


async def generate(request):
    """request is an OpenAI request; yield OpenAI chunks."""
    text = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
    for word in text.upper().split(" "):
        await asyncio.sleep(0.01)
        yield {"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
