"""Runs under a Python with ai-dynamo-runtime 1.6: `text|embedding NS.COMP.EP PLANE FOLDER NAME`, a worker of that kind.

Text: ModelInput.Text, an OpenAI request in, OpenAI chunks out: the last message in capitals, word by word. Embedding:
ModelInput.Tokens; of each sequence its length and its sum. Imports nothing of llmrun; Python 3.10.
"""

import asyncio
import sys

from dynamo import _core
from dynamo.runtime import DistributedRuntime


async def capitals(request, context=None):
    words = request["messages"][-1]["content"].upper().split(" ")
    for word in [*words, None]:
        delta = {"role": "assistant", "content": "" if word is None else word + " "}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
        yield {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "theirs", "choices": [choice]}


async def sums(request, context=None):
    ids = request["token_ids"]
    num = sum(map(len, ids))
    yield {"embeddings": [[float(len(one)), sum(one) / 3] for one in ids], "prompt_tokens": num, "total_tokens": num}


async def main(kind, path, plane, folder, name):
    runtime = DistributedRuntime(asyncio.get_running_loop(), "etcd", plane)
    endpoint = runtime.endpoint(path)
    is_text = kind == "text"
    kinds = (
        _core.ModelInput.Text if is_text else _core.ModelInput.Tokens,
        _core.ModelType.Chat if is_text else _core.ModelType.Embedding,
    )
    await _core.register_model(*kinds, endpoint, folder, name, worker_type=_core.WorkerType.Aggregated)
    await endpoint.serve_endpoint(capitals if is_text else sums)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
