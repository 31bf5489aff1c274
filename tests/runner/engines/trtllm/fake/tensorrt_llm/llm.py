"""LLM of both backends: arguments, limits and errors as TensorRT-LLM's; the model is a toy (model.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .executor import Executor, RequestOutput
from .signatures import signature_of

_RANK = "import sys, time; sys.argv[1:]; time.sleep(600)"


class BaseLLM:
    """`is_engine` chooses the backend."""

    is_engine = False

    def __init__(self, model: Any, **given: Any) -> None:
        bound = signature_of("EngineLLM" if self.is_engine else "LLM").bind(model, **given)
        bound.apply_defaults()
        self.args = bound.arguments
        self._config = json.loads((Path(model) / "config.json").read_text())
        is_engine_folder = "build_config" in self._config
        if is_engine_folder and not self.is_engine:
            raise ValueError("Please use 'from tensorrt_llm._tensorrt_engine import LLM' for a TensorRT engine")
        tokenizer = self.args["tokenizer"]
        self.tokenizer = None if self.args["skip_tokenizer_init"] else tokenizer
        if self.args["guided_decoding_backend"] and self.tokenizer is None:
            raise ValueError("guided decoding needs a tokenizer")
        build = self._config.get("build_config", {})
        if is_engine_folder:
            self._check_engine()
        self._max_seq_len = build.get("max_seq_len") or self.args["max_seq_len"]
        max_batch = min(self.args["max_batch_size"] or 2048, build.get("max_batch_size", 2048))
        vocab = self._config.get("pretrained_config", self._config)["vocab_size"]
        self._ranks = [
            subprocess.Popen([sys.executable, "-c", _RANK, f"rank{rank}"])
            for rank in range(1, self.args["tensor_parallel_size"])
        ]
        self._executor = Executor(vocab, max_batch)

    def _check_engine(self) -> None:
        """As TrtLlmArgs does."""
        built = self._config["pretrained_config"].get("mapping", {}).get("tp_size", 1)
        asked = self.args["tensor_parallel_size"]
        if asked not in (1, built):
            raise ValueError(f"tp_size {asked} is not consistent with the engine's tp_size {built}")
        kv_cache = self.args["kv_cache_config"]
        if kv_cache is not None and kv_cache.dtype != "auto":
            raise ValueError("KvCacheConfig.dtype is not supported by the TensorRT backend.")

    def generate_async(
        self,
        inputs: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
    ) -> RequestOutput:
        if sampling_params.end_id is None:
            if self.tokenizer is None:
                raise ValueError("tokenizer is required to reset end_id if it is None")
            sampling_params.end_id = 2
        if self._max_seq_len and len(inputs) + sampling_params.max_tokens > self._max_seq_len:
            raise ValueError(
                f"The sum of prompt length ({len(inputs)}) and query length (0) max_tokens "
                f"({sampling_params.max_tokens}) should not exceed max_seq_len ({self._max_seq_len})"
            )
        if sampling_params.guided_decoding is not None and not self.args["guided_decoding_backend"]:
            raise ValueError("guided decoding is not enabled")
        assert streaming
        return self._executor.submit(list(inputs), sampling_params)

    def save(self, engine_dir: str) -> None:
        """What the real one writes: config.json and one file a rank."""
        from . import __version__

        folder = Path(engine_dir)
        folder.mkdir(parents=True)
        build = vars(self.args["build_config"])
        ranks = self.args["tensor_parallel_size"]
        pretrained = {
            "architecture": self._config["architectures"][0],
            "dtype": self.args["dtype"],
            "vocab_size": self._config["vocab_size"],
            "mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1},
        }
        config = {"version": __version__, "pretrained_config": pretrained, "build_config": build}
        (folder / "config.json").write_text(json.dumps(config))
        for rank in range(ranks):
            (folder / f"rank{rank}.engine").write_bytes(b"toy")

    def shutdown(self) -> None:
        self._executor.shutdown()
        for rank in self._ranks:
            rank.kill()
            rank.wait()


class EngineLLM(BaseLLM):
    is_engine = True
