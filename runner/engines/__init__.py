"""The table of engines: name -> where its factory is, and what it takes. Nothing is imported until used."""

from __future__ import annotations

from typing import Literal

import msgspec


class EngineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `factory` is "module:attr" of `make_engine(spec)`; empty when the engine is not built yet."""

    name: str
    summary: str
    factory: str = ""
    level: Literal["tokens", "text", "models"] = "tokens"
    """`text` engines implement ChatService and skip the pipeline; of `models`, the factory `make_models(plan)` finds
    services by itself and puts them into the catalog while it runs."""
    models: tuple[str, ...] = ("gguf", "hf")
    """Kinds of weights it can run (ModelCard.kind); `none` if it runs without a model."""
    takes_argument: str = ""
    """What stands after the colon in out=NAME:ARGUMENT (`FILE`, `host:port/model`); in brackets if it may lack."""
    flags: tuple[str, ...] = ()
    """Of the flags that only some engines know (ENGINE_FLAGS), those that this one honours, as config keys."""
    command: str = ""
    """"module:attr" of `describe_command(spec) -> list[str]`: the engine's own command, for --dry-run."""
    hints: str = ""
    """"module:attr" of rows (pattern, advice) for this engine's failed starts, before those of hint_rows.py."""
    instead: str = ""
    """For an engine that is not built yet: what to use."""


_MOST = (
    "device",
    "dtype",
    "quantize",
    "kv_cache_dtype",
    "gpu_memory_utilization",
    "max_batched_tokens",
    "engine_python",
)
ENGINE_FLAGS = (*_MOST, "data_parallel_size", "vllm_mode", "allow_runtime_lora")
"""Flags that are refused unless the engine's row names them."""

_ROWS = (
    EngineEntry(
        name="native",
        summary="llmrun's own engine on PyTorch, CUDA and CPU",
        models=("hf", "gguf"),
        factory="runner.engines.native:make_engine",
        command="runner.engines.native:describe_command",
        flags=_MOST,
    ),
    EngineEntry(
        name="llamacpp",
        summary="llama.cpp, GGUF on CPU and GPU",
        models=("gguf",),
        factory="runner.engines.llamacpp:make_engine",
        command="runner.engines.llamacpp:describe_command",
    ),
    EngineEntry(
        name="vllm",
        summary="vLLM's EngineCore in an environment of its own, behind our frontend",
        models=("hf", "gguf"),
        factory="runner.engines.vllm:make_engine",
        flags=tuple(flag for flag in ENGINE_FLAGS if flag != "device"),
        command="runner.engines.vllm:describe_command",
    ),
    EngineEntry(
        name="sglang",
        summary="SGLang's Engine in an environment of its own, one machine or several",
        models=("hf",),
        factory="runner.engines.sglang:make_engine",
        flags=_MOST,
        command="runner.engines.sglang:describe_command",
    ),
    EngineEntry(
        name="trtllm",
        summary="TensorRT-LLM in an environment of its own: compiled engines, folders (never run on a GPU)",
        models=("trtllm", "hf"),
        factory="runner.engines.trtllm:make_engine",
        flags=tuple(flag for flag in _MOST if flag not in ("device", "quantize")),
        command="runner.engines.trtllm:describe_command",
        hints="runner.engines.trtllm.hints:ROWS",
    ),
    EngineEntry(
        name="mistralrs",
        summary="mistral.rs in an environment of its own, CPU and GPU",
        models=("gguf", "hf"),
        factory="runner.engines.mistralrs:make_engine",
        flags=tuple(flag for flag in _MOST if flag not in ("device", "max_batched_tokens")),
        command="runner.engines.mistralrs:describe_command",
    ),
    EngineEntry(
        name="triton",
        summary="a model on a Triton server",
        models=("none",),
        takes_argument="//host:port/model",
        instead="out=llamacpp with a GGUF file",
    ),
    EngineEntry(
        name="dyn",
        summary="remote workers found by discovery",
        level="models",
        models=("none",),
        takes_argument="[//namespace.component.endpoint]",
        factory="runner.remote_models:make_models",
    ),
    EngineEntry(
        name="echo_core",
        summary="repeats the prompt's tokens (tests the pipeline)",
        models=("gguf", "hf"),
        factory="runner.engines.echo:make_core",
    ),
    EngineEntry(
        name="echo_full",
        summary="repeats the last message's text (needs no model)",
        level="text",
        models=("none", "gguf", "hf"),
        factory="runner.engines.echo:make_full",
    ),
    EngineEntry(
        name="pystr",
        summary="your Python file, text in and out",
        level="text",
        models=("none", "gguf", "hf"),
        takes_argument="FILE.py",
        factory="runner.engines.python_file:make_pystr",
    ),
    EngineEntry(
        name="pytok",
        summary="your Python file, token ids in and out",
        models=("gguf", "hf"),
        takes_argument="FILE.py",
        factory="runner.engines.python_file:make_pytok",
    ),
    EngineEntry(
        name="mocker",
        summary="simulated timing of a GPU engine (load tests)",
        models=("gguf", "hf"),
        factory="runner.engines.mocker:make_engine",
    ),
)

ENGINES: dict[str, EngineEntry] = {row.name: row for row in _ROWS}
ALIASES: dict[str, str] = {"llama_cpp": "llamacpp", "echo": "echo_full", "auto": "dyn"}
"""Spellings of dynamo-run that mean one of the above."""
