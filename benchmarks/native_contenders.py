"""Programs that native_cpu.py runs beside our engine, one process each: transformers' generate, its continuous
batching, vLLM. Each loads a folder, computes the same greedy batch of random prompts again and again, and prints
tokens a second.

    python benchmarks/native_contenders.py KIND FOLDER DTYPE THREADS STREAMS INPUT OUTPUT REPEATS

Imports nothing of this project: it also runs under another Python.
"""

import atexit
import json
import os
import random
import sys
import time
from collections.abc import Callable


def prompts(vocab: int, streams: int, length: int, seed: int) -> list[list[int]]:
    """Random ids, the same for all contenders."""
    pick = random.Random(seed)
    return [[pick.randrange(3, vocab) for _ in range(length)] for _ in range(streams)]


def generate(folder: str, dtype: str, threads: int, output: int) -> Callable[[list[list[int]]], int]:
    """transformers, one padded batch (here all prompts are equally long)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run(batch: list[list[int]]) -> int:
        ids = torch.tensor(batch)
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=output,
                                  min_new_tokens=output, pad_token_id=0)  # fmt: skip
        return int(made.numel() - ids.numel())

    return run


def continuous(folder: str, dtype: str, threads: int, output: int) -> Callable[[list[list[int]]], int]:
    """transformers' continuous batching."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="paged|sdpa"
    ).eval()
    config = GenerationConfig(do_sample=False, max_new_tokens=output, eos_token_id=-1, pad_token_id=0)
    # one manager for all batches and a small cache: else each batch begins with ten seconds of clearing memory
    memory = ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=1024)

    def run(batch: list[list[int]]) -> int:
        made = model.generate_batch(
            inputs=batch, generation_config=config, continuous_batching_config=memory, persistent_manager=True
        )
        return sum(len(result.generated_tokens) for result in made.values())

    return run


def vllm(folder: str, dtype: str, threads: int, output: int) -> Callable[[list[list[int]]], int]:
    """vLLM's CPU build, offline; without a worker process, since waiting for one costs it a core."""
    os.environ.update(OMP_NUM_THREADS=str(threads), VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
                      VLLM_CPU_OMP_THREADS_BIND=f"0-{threads - 1}", HF_HUB_OFFLINE="1")  # fmt: skip
    from vllm import LLM, SamplingParams

    model = LLM(folder, dtype=dtype, skip_tokenizer_init=True, max_model_len=1024, enable_prefix_caching=False,
                disable_log_stats=True, distributed_executor_backend="uni")  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)

    def run(batch: list[list[int]]) -> int:
        made = model.generate([{"prompt_token_ids": ids} for ids in batch], sampling, use_tqdm=False)
        return sum(len(result.outputs[0].token_ids) for result in made)

    atexit.register(model.llm_engine.engine_core.shutdown)  # waited for, so that its CPU time counts as ours
    return run


def main() -> None:
    """One line of JSON: the rates, oldest first."""
    kind, folder, dtype, *numbers = sys.argv[1:]
    threads, streams, length, output, repeats = map(int, numbers)
    with open(f"{folder}/config.json", encoding="utf-8") as file:  # noqa: PTH123 - any Python, any folder
        vocab = json.load(file)["vocab_size"]
    run = {"generate": generate, "continuous": continuous, "vllm": vllm}[kind](folder, dtype, threads, output)
    rates = []
    for repeat in range(repeats + 1):
        batch = prompts(vocab, streams, length, repeat)
        start = time.perf_counter()
        made = run(batch)
        rates.append(made / (time.perf_counter() - start))
        if made != streams * output:
            sys.exit(f"{kind}: {made} tokens instead of {streams * output}")
    print(json.dumps({"rates": rates[1:]}), flush=True)
    atexit._run_exitfuncs()
    os._exit(0)  # the threads and processes of some contenders do not end by themselves


if __name__ == "__main__":
    main()
