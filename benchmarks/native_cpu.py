"""out=native on the CPU: output tokens/s of 1, 8 and 32 greedy streams, against transformers, vLLM and llama.cpp.

The same weights and prompts for all but llama.cpp, which gets random weights of the same shape and its own prompts.
Ours goes through the engine process as the launcher's does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.client import median, spread_text
from benchmarks.models import make_random_llama_gguf
from benchmarks.native_contenders import prompts
from benchmarks.quiet import undisturbed
from benchmarks.row import Row, skipped
from benchmarks.settings import Settings
from model_cards.resolve import resolve
from runner.engines.base import Engine, EngineOptions, EngineSpec
from runner.engines.native import make_engine
from runner.types import SamplingParams, TokenRequest

STREAMS = (1, 8, 32)
INPUT = 32
CONTENDERS = (("generate", "transformers' generate", 2.0), ("continuous", "its continuous batching", 1.0),
              ("vllm", "vLLM's CPU build", 1.0))  # fmt: skip
_LIMIT_S = 600


@dataclass(frozen=True)
class Size:
    """A LLaMA with random weights."""

    name: str
    dim: int
    layers: int
    ffn: int
    vocab: int
    heads: int
    kv_heads: int
    output: int
    """Tokens that each stream makes."""


SIZES = (
    Size("demo-size", dim=256, layers=4, ffn=640, vocab=1024, heads=4, kv_heads=2, output=128),
    Size("134M", dim=768, layers=12, ffn=2048, vocab=32000, heads=12, kv_heads=12, output=48),
)


def measure(settings: Settings) -> list[Row]:
    """A row for each size, format, number of streams and contender."""
    rows = []
    for size in SIZES:
        for dtype in ("float32", "bfloat16"):
            folder = make_folder(size, dtype, settings.folder)
            for streams in (1, 8) if settings.is_quick else STREAMS:
                rows += _told(_rows(settings, size, dtype, folder, streams))
            rows += _told([_against_llamacpp(settings, size, dtype, folder)])
    return rows


def _told(rows: list[Row]) -> list[Row]:
    """The same, shown while the rest is measured."""
    for row in rows:
        print(f"    {row.what}: {row.ours} against {row.rival} = {row.ratio}", file=sys.stderr, flush=True)
    return rows


def _rows(settings: Settings, size: Size, dtype: str, folder: Path, streams: int) -> list[Row]:
    rates = undisturbed(lambda: asyncio.run(our_rates(settings, folder, dtype, streams, size.output)))
    rows = []
    for kind, name, least in CONTENDERS:
        what, bar = f"{size.name} {dtype}, {streams} streams, output tokens/s, against {name}", f">= {least:g}x"
        try:
            theirs = undisturbed(partial(_contender, settings, kind, folder, dtype, streams, size.output))
        except LookupError as problem:
            rows.append(skipped(what, bar, str(problem)))
            continue
        rows.append(_row(what, bar, rates, theirs, least))
    return rows


def _row(what: str, bar: str, ours: list[float], theirs: list[float], least: float) -> Row:
    ratio = median(ours) / median(theirs)
    return Row(
        what=what,
        ours=spread_text(ours, "tok/s"),
        rival=spread_text(theirs, "tok/s"),
        ratio=f"{ratio:.2f}x",
        bar=bar,
        is_met=ratio >= least,
    )


async def our_rates(settings: Settings, folder: Path, dtype: str, streams: int, output: int) -> list[float]:
    """Output tokens a second, one number a repeat."""
    card = resolve(str(folder), download=False)
    options = EngineOptions(dtype=dtype, threads=settings.threads, context_length=1024)
    engine = make_engine(EngineSpec(name="native", card=card, options=options))
    await engine.start()
    try:
        rates = []
        for repeat in range(settings.repeats + 1):
            batch = prompts(card.vocab_size or 1024, streams, INPUT, repeat)
            start = time.perf_counter()
            made = sum(await asyncio.gather(*(_stream(engine, ids, output) for ids in batch)))
            rates.append(made / (time.perf_counter() - start))
            assert made == streams * output
        return rates[1:]
    finally:
        await engine.close()


async def _stream(engine: Engine, ids: list[int], output: int) -> int:
    request = TokenRequest(id=f"{id(ids)}", token_ids=ids, sampling=SamplingParams(temperature=0.0), max_tokens=output)
    made = 0
    async with contextlib.aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            made += len(delta.token_ids)
    return made


def _contender(settings: Settings, kind: str, folder: Path, dtype: str, streams: int, output: int) -> list[float]:
    """Raises LookupError where it is not installed or does not run."""
    python = settings.rivals.vllm_python if kind == "vllm" else sys.executable
    if python is None:
        raise LookupError("VLLM_PYTHON is not set: vLLM is not installed here")
    script = Path(__file__).with_name("native_contenders.py")
    numbers = (settings.threads, streams, INPUT, output, settings.repeats)
    command = [python, str(script), kind, str(folder), dtype, *map(str, numbers)]
    # files, no pipes: vLLM's processes outlive it and would keep a pipe open
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
        try:
            code = process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise LookupError(f"it took more than {_LIMIT_S} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code:
            raise LookupError(f"it failed: {(_text(errors).splitlines() or ['no message'])[-1]}")
        rates: list[float] = json.loads(_text(out).splitlines()[-1])["rates"]
    return rates


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _against_llamacpp(settings: Settings, size: Size, dtype: str, folder: Path) -> Row:
    what, bar = f"{size.name} {dtype}, one stream, decode tokens/s, against llama-bench", ">= 0.9x"
    if settings.rivals.llama_bench is None:
        return skipped(what, bar, "LLAMA_BENCH is not set (see benchmarks/README.md)")
    kind = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    gguf = settings.folder / f"native-{size.name}.{kind}.gguf"
    if not gguf.exists():
        make_random_llama_gguf(gguf, dim=size.dim, layers=size.layers, ffn=size.ffn, vocab=size.vocab,
                               heads=size.heads, kv_heads=size.kv_heads, dtype=kind)  # fmt: skip
    ours = undisturbed(lambda: asyncio.run(our_rates(settings, folder, dtype, 1, size.output)))
    command = [settings.rivals.llama_bench, "-m", str(gguf), "-p", "0", "-n", str(size.output), "-o", "json"]
    command += ["-t", str(settings.threads), "-r", str(settings.repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return _row(what, bar, ours, [float(rate) for rate in json.loads(done.stdout)[0]["samples_ts"]], 0.9)


# --- weights ---------------------------------------------------------------------------------------------------------


def make_folder(size: Size, dtype: str, parent: Path) -> Path:
    """A Hugging Face folder of random weights without a tokenizer; made once."""
    folder = parent / f"native-{size.name}-{dtype}"
    if (folder / "config.json").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(torch, dtype)
    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in _shapes(size):
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)
        tensors[name] = torch.from_numpy(np.ones(shape, np.float32) if len(shape) == 1 else values).to(kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(size, dtype)))
    return folder


def _shapes(size: Size) -> list[tuple[str, tuple[int, ...]]]:
    dim, kv_dim = size.dim, size.dim // size.heads * size.kv_heads
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (size.vocab, dim)),
        ("model.norm.weight", (dim,)),
        ("lm_head.weight", (size.vocab, dim)),
    ]
    for layer in range(size.layers):
        place: Callable[[str], str] = f"model.layers.{layer}.{{}}.weight".format
        shapes += [
            (place("input_layernorm"), (dim,)),
            (place("post_attention_layernorm"), (dim,)),
            (place("self_attn.q_proj"), (dim, dim)),
            (place("self_attn.k_proj"), (kv_dim, dim)),
            (place("self_attn.v_proj"), (kv_dim, dim)),
            (place("self_attn.o_proj"), (dim, dim)),
            (place("mlp.gate_proj"), (size.ffn, dim)),
            (place("mlp.up_proj"), (size.ffn, dim)),
            (place("mlp.down_proj"), (dim, size.ffn)),
        ]
    return shapes


def _config(size: Size, dtype: str) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": size.dim,
        "intermediate_size": size.ffn, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads, "head_dim": size.dim // size.heads, "vocab_size": size.vocab,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "dtype": dtype, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
