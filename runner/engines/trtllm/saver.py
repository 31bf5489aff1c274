"""A program for TensorRT-LLM's own Python (1.0 to 1.2): builds an engine of a Hugging Face folder and saves it.

    python saver.py '{"model": ..., "dtype": ..., "tp_size": ..., "max_batch_size": ...}' OUT

Imports nothing of llmrun: it runs before there is an engine.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_BUILD = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")


def main(asked: dict[str, Any], out: str) -> None:
    """Build and save."""
    from tensorrt_llm import BuildConfig
    from tensorrt_llm._tensorrt_engine import LLM

    build = BuildConfig()
    for name in _BUILD:
        if name in asked:
            setattr(build, name, asked[name])
    llm = LLM(
        model=asked["model"],
        dtype=asked["dtype"],
        tensor_parallel_size=asked["tp_size"],
        pipeline_parallel_size=asked["pp_size"],
        skip_tokenizer_init=True,
        build_config=build,
    )
    try:
        llm.save(out)
    finally:
        llm.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
