"""Runs under a Python with ai-dynamo-runtime 1.x: `NS.COMP.EP STEP_S`, a worker, so many seconds a token, TCP plane.

All streams wake in one step, as an engine's do. Imports nothing of llmrun; Python 3.10.
"""

import asyncio
import sys

from dynamo.runtime import DistributedRuntime


async def main(path, step_s):
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "etcd", "tcp")
    state = {"step": loop.create_future()}

    async def steps():
        while True:
            await asyncio.sleep(step_s)
            old, state["step"] = state["step"], loop.create_future()
            old.set_result(None)

    async def generate(request, context=None):
        num = request["stop_conditions"]["max_tokens"]
        for made in range(1, num + 1):
            await asyncio.shield(state["step"])
            yield {"token_ids": [300 + made % 150], "finish_reason": "length" if made == num else None}

    task = asyncio.create_task(steps())
    endpoint = runtime.endpoint(path)
    await endpoint.serve_endpoint(generate)
    task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
