"""The launcher alone: its CPU per streamed token and per request, with an engine that only pretends.

64 streams over HTTP; the client is this process, the engine a child, and only the launcher's own CPU time is counted.
Two loads, long answers and answers of one token, give cost per request and per token.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from benchmarks import client
from benchmarks.processes import cpu_s
from benchmarks.row import Row, skipped
from benchmarks.servers import Server, free_port, llmrun, serve
from benchmarks.settings import Settings
from runner.bench.workload import Shape

STREAMS = 64
LONG = 256
TOKEN_BAR_US, REQUEST_BAR_MS = 12.0, 0.6


def measure(settings: Settings) -> list[Row]:
    """Rows for token and request, and one against vLLM where it is installed."""
    with llmrun(settings, "demo", "--max-running", str(STREAMS), out="mocker") as server:
        client.measure(server, STREAMS, STREAMS, Shape(input_len=16, output_len=16), seed=99)
        pairs = [_cost(server, settings, repeat) for repeat in range(settings.repeats)]
    token_us = [pair[0] for pair in pairs]
    request_ms = [pair[1] for pair in pairs]
    return [
        Row(
            what=f"launcher CPU per streamed token, {STREAMS} streams, mocker",
            ours=client.spread_text(token_us, "us"),
            bar=f"<= {TOKEN_BAR_US:g} us",
            is_met=client.median(token_us) <= TOKEN_BAR_US,
        ),
        Row(
            what="launcher CPU per request",
            ours=f"{client.median(request_ms):.2f} ms ({min(request_ms):.2f} to {max(request_ms):.2f})",
            bar=f"<= {REQUEST_BAR_MS:g} ms",
            is_met=client.median(request_ms) <= REQUEST_BAR_MS,
            notes=["of answers of one token"],
        ),
        _against_vllm(settings, client.median(token_us)),
    ]


def _cost(server: Server, settings: Settings, seed: int) -> tuple[float, float]:
    """(us per token, ms per request) of the launcher process."""
    # CPU time is told in steps of 10 ms: enough requests make that a few percent.
    rounds = 4 if settings.is_quick else 12
    request_s = _spent(server, STREAMS * rounds, 1, seed) / (STREAMS * rounds)
    number = STREAMS * (rounds // 4)
    long_s = _spent(server, number, LONG, seed)
    token_s = (long_s - request_s * number) / (number * (LONG - 1))
    return token_s * 1e6, request_s * 1e3


def _spent(server: Server, num_requests: int, output_len: int, seed: int) -> float:
    before = cpu_s(server.process.pid)
    point = client.measure(server, STREAMS, num_requests, Shape(input_len=16, output_len=output_len), seed=seed)
    if point.output_tokens != num_requests * output_len:
        raise RuntimeError(f"asked for {num_requests * output_len} tokens, got {point.output_tokens}")
    return cpu_s(server.process.pid) - before


def _against_vllm(settings: Settings, ours_us: float) -> Row:
    what, bar = "launcher CPU per streamed token against vLLM's Python API server", "<= 1/3"
    if settings.rivals.vllm_python is None:
        return skipped(what, bar, "VLLM_PYTHON is not set: vLLM is not installed here")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(_vllm(settings.rivals.vllm_python, folder))
        client.measure(server, STREAMS, STREAMS, Shape(input_len=16, output_len=16), seed=99)
        theirs = [_cost(server, settings, repeat)[0] for repeat in range(settings.repeats)]
    ratio = ours_us / client.median(theirs)
    return Row(
        what=what,
        ours=f"{ours_us:.1f} us",
        rival=client.spread_text(theirs, "us"),
        ratio=f"1/{1 / ratio:.1f}",
        bar=bar,
        is_met=ratio <= 1 / 3,
    )


def _vllm(python: str, folder: Path) -> contextlib.AbstractContextManager[Server]:
    """vLLM's API server with its engine in another process, on the demo model's Hugging Face folder."""
    from model_cards import presets

    model = Path(presets.__file__).parent / "demo" / "hf"
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-model-len", "2048", "--max-num-seqs", str(STREAMS), "--enforce-eager"]
    command += ["--disable-uvicorn-access-log"]
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    return serve("vllm", command, port, env=env)
