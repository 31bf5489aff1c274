"""Runs under a Python with ai-dynamo-runtime, any of 0.4 to 1.6: `worker|client NS.COMP.EP PLANE ...`.

`worker ... [FOLDER NAME]` answers as tests.runner.net.cluster.PREFIX_ENGINE does, and publishes a card of the model in
FOLDER. `client ... PROMPT MAX` prints one JSON line with the token ids and the finish reason that it got. Imports
nothing of llmrun; Python 3.10.
"""

import asyncio
import inspect
import json
import sys

from dynamo.runtime import DistributedRuntime


def make_runtime(loop, plane):
    """The constructor changed in each of these releases."""
    names = list(inspect.signature(DistributedRuntime).parameters)
    if "is_static" in names:
        return DistributedRuntime(loop, False)
    return DistributedRuntime(loop, "etcd", plane)


async def make_endpoint(runtime, path):
    if hasattr(runtime, "endpoint"):
        return runtime.endpoint(path)
    namespace, component, endpoint = path.split(".")
    part = runtime.namespace(namespace).component(component)
    if hasattr(part, "create_service"):
        await part.create_service()
    return part.endpoint(endpoint)


async def generate(request, context=None):
    ids = list(request["token_ids"])
    num = request["stop_conditions"]["max_tokens"]
    for made in range(1, num + 1):
        await asyncio.sleep(0.005)
        ids.append(300 + (sum(ids) * 31 + len(ids)) % 150)
        yield {"token_ids": ids[-1:], "finish_reason": "length" if made == num else None}


async def publish_card(endpoint, folder, name):
    """For 0.9 and later, which keep the card where instances are; named otherwise since 1.1."""
    from dynamo import _core

    register = getattr(_core, "register_model", None) or _core.register_llm
    more = {"worker_type": _core.WorkerType.Aggregated} if hasattr(_core, "WorkerType") else {}
    kinds = _core.ModelInput.Tokens, _core.ModelType.Chat | _core.ModelType.Completions
    await register(*kinds, endpoint, folder, name, **more)


async def ask(endpoint, prompt, max_tokens):
    client = await endpoint.client()
    await client.wait_for_instances()
    request = {
        "model": "toy",
        "token_ids": prompt,
        "stop_conditions": {"max_tokens": max_tokens, "ignore_eos": True},
        "sampling_options": {"temperature": 0.0},
        "output_options": {},
        "eos_token_ids": [],
        "annotations": [],
    }
    ids, finish = [], None
    async for item in await client.round_robin(request):
        data = item.data()
        ids += data.get("token_ids") or []
        finish = data.get("finish_reason") or finish
    print(json.dumps({"token_ids": ids, "finish_reason": finish}), flush=True)


async def main(role, path, plane, *rest):
    runtime = make_runtime(asyncio.get_running_loop(), plane)
    endpoint = await make_endpoint(runtime, path)
    if role == "worker":
        if rest:
            await publish_card(endpoint, *rest)
        await endpoint.serve_endpoint(generate)
    else:
        await ask(endpoint, json.loads(rest[0]), int(rest[1]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
