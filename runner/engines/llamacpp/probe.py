"""Whether a llama.cpp library can compute at all: a made-up quantised model, two decodes, in a process of its own.

    python -m runner.engines.llamacpp.probe LIBRARY 0|1        # 1: with repacked weights (extra buffers)

Exit code 0 when the logits are numbers; otherwise it dies as the library does.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

from runner.engines import smoke
from runner.engines.llamacpp.context import Context, DecodeResult
from runner.engines.llamacpp.library import INSTALL_HINT, Library
from runner.engines.llamacpp.model import Model
from runner.engines.llamacpp.settings import Extra

_WITH, _WITHOUT = "repacked weights", "plain weights"
_DIM = 256
_ALIGNMENT = 32
_U32, _F32, _STRING = 4, 6, 8
_TYPE_F32, _TYPE_Q8_0 = 0, 8
_Q8_0_BLOCK = struct.pack("<e32b", 0.002, *(17 * index % 61 - 30 for index in range(32)))


def extra_bufts_work(library: Path) -> bool:
    """Whether weights may be repacked for this CPU (llama_model_params.use_extra_bufts); asked once per library.

    Raises EngineStartFailed when the library cannot compute either way.
    """
    command = [sys.executable, "-m", "runner.engines.llamacpp.probe", str(library)]
    works = smoke.first_working(library, {_WITH: [*command, "1"], _WITHOUT: [*command, "0"]}, hint=INSTALL_HINT)
    return works == _WITH


def write_tiny_gguf(path: Path) -> None:
    """A one-layer Llama without a vocabulary, weights in q8_0: 0.5 MB."""
    tensors = _tensors()
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(_METADATA))
    for key, kind, value in _METADATA:
        header += _text(key) + struct.pack("<I", kind)
        header += _text(value) if isinstance(value, str) else struct.pack("<f" if kind == _F32 else "<I", value)
    offset = 0
    for name, shape, kind, data in tensors:
        header += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += len(data)
    padding = b"\0" * (-len(header) % _ALIGNMENT)
    path.write_bytes(header + padding + b"".join(data for *_, data in tensors))


_METADATA: tuple[tuple[str, int, str | int | float], ...] = (
    ("general.architecture", _STRING, "llama"),
    ("llama.context_length", _U32, 64),
    ("llama.embedding_length", _U32, _DIM),
    ("llama.block_count", _U32, 1),
    ("llama.feed_forward_length", _U32, _DIM),
    ("llama.attention.head_count", _U32, 4),
    ("llama.attention.head_count_kv", _U32, 4),
    ("llama.attention.layer_norm_rms_epsilon", _F32, 1e-5),
    ("llama.vocab_size", _U32, _DIM),
    ("tokenizer.ggml.model", _STRING, "no_vocab"),
)


def _tensors() -> list[tuple[str, tuple[int, ...], int, bytes]]:
    """Every size is a multiple of the alignment, so offsets need no padding."""
    norm = struct.pack("<f", 1.0) * _DIM
    matrix = _Q8_0_BLOCK * (_DIM * _DIM // 32)
    matrices = ["token_embd", "output"]
    block = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    matrices += [f"blk.0.{name}" for name in block]
    norms = ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]
    return [(f"{name}.weight", (_DIM, _DIM), _TYPE_Q8_0, matrix) for name in matrices] + [
        (f"{name}.weight", (_DIM,), _TYPE_F32, norm) for name in norms
    ]


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _compute(library_path: Path, *, use_extra_bufts: bool) -> bool:
    library, extra = Library(library_path), Extra()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny_gguf(path)
        model = Model(library, str(path), extra, gpu_layers=0, main_gpu=0, use_extra_bufts=use_extra_bufts)
        context = Context(library, model, extra, num_cells=64, num_sequences=1, threads=1)
        context.batch.add_chunk(range(32), 0, 0, outputs="last")  # matrix times matrix
        works = context.decode() is DecodeResult.DONE
        context.batch.clear()
        context.batch.add_token(1, 32, 0)  # matrix times vector
        works = works and context.decode() is DecodeResult.DONE
        works = works and bool(np.isfinite(context.logits()).all())
        context.close()
        model.close()
    return works


if __name__ == "__main__":
    sys.exit(0 if _compute(Path(sys.argv[1]), use_extra_bufts=sys.argv[2] == "1") else 3)
