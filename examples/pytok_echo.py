"""llmrun out=pytok:examples/pytok_echo.py MODEL: repeats the prompt's token ids."""

import asyncio


async def generate(request):
    """request["token_ids"] is the prompt; yield dictionaries with new token ids."""
    for token_id in request["token_ids"][: request["stop_conditions"]["max_tokens"]]:
        await asyncio.sleep(0.01)
        yield {"token_ids": [token_id]}
