"""Random-weight GGUF models of any size, for benchmarks and tests: real tensors, real tokenizer, no sense.

Owns: the shapes of a Llama-architecture model and a byte-level BPE vocabulary whose merges are made up. Does not know
who measures with it. Same arguments, same file.

    python -m benchmarks.models model.gguf                       # 134M parameters, q8_0 (the size that RESULTS.md uses)
    python -m benchmarks.models tiny.gguf --dim 64 --layers 2 --ffn 128 --vocab 1024 --heads 2 --dtype f32
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

Array = np.ndarray

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The last ids of the vocabulary, in this order. The first and the last end a turn."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def make_random_llama_gguf(
    path: Path | str,
    *,
    dim: int = 768,
    layers: int = 12,
    ffn: int = 2048,
    vocab: int = 32000,
    heads: int = 12,
    kv_heads: int | None = None,
    ctx: int = 4096,
    seed: int = 0,
    dtype: str = "q8_0",
) -> Path:
    """Write a Llama-architecture GGUF with random weights to `path`; dims must be multiples of 32 for q8_0 and q4_0."""
    kv_heads = heads if kv_heads is None else kv_heads
    if dim % heads or heads % kv_heads:
        raise ValueError(f"dim {dim} must be a multiple of heads {heads}, and heads of kv_heads {kv_heads}")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(f"random-{dim}x{layers}")
    writer.add_context_length(ctx)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(dim // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(_FILE_TYPES[dtype])
    _add_tokenizer(writer, vocab)
    for name, tensor in _tensors(np.random.default_rng(seed), dim, layers, ffn, vocab, heads, kv_heads):
        _add_tensor(writer, name, tensor, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in byte order (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def synthetic_merges() -> Iterator[tuple[str, str]]:
    """Endless enough: pairs, triples and quadruples of lower-case letters, each also after a space."""
    letters = "Ġetaoinshrdlucmfwypvbgkjqxz"
    pairs = [(a, b) for a in letters for b in letters[1:]]
    yield from pairs
    for (a, b), c in itertools.product(pairs, letters[1:]):
        yield a + b, c
    for (a, b), (c, d) in itertools.product(pairs, pairs):
        if c != "Ġ":
            yield a + b, c + d


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    num_merges = vocab - 256 - len(SPECIAL_TOKENS)
    if num_merges < 0:
        raise ValueError(f"vocab {vocab} is too small: bytes and special tokens alone are {256 + len(SPECIAL_TOKENS)}")
    merges = list(itertools.islice(synthetic_merges(), num_merges))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_alphabet(), *(a + b for a, b in merges), *SPECIAL_TOKENS])
    writer.add_token_types([1] * (vocab - len(SPECIAL_TOKENS)) + [3] * len(SPECIAL_TOKENS))
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_eos_token_id(vocab - 3)
    writer.add_eot_token_id(vocab - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(
    rng: np.random.Generator, dim: int, layers: int, ffn: int, vocab: int, heads: int, kv_heads: int
) -> Iterator[tuple[str, Array]]:
    def normal(rows: int, columns: int, scale: float) -> Array:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)

    kv_dim = dim // heads * kv_heads
    yield "token_embd.weight", normal(vocab, dim, 1.0)
    for layer in range(layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", np.ones(dim, np.float32)
        yield block + "attn_q.weight", normal(dim, dim, dim**-0.5)
        yield block + "attn_k.weight", normal(kv_dim, dim, dim**-0.5)
        yield block + "attn_v.weight", normal(kv_dim, dim, dim**-0.5)
        yield block + "attn_output.weight", normal(dim, dim, dim**-0.5)
        yield block + "ffn_norm.weight", np.ones(dim, np.float32)
        yield block + "ffn_gate.weight", normal(ffn, dim, dim**-0.5)
        yield block + "ffn_up.weight", normal(ffn, dim, dim**-0.5)
        yield block + "ffn_down.weight", normal(dim, ffn, ffn**-0.5)
    yield "output_norm.weight", np.ones(dim, np.float32)
    yield "output.weight", normal(vocab, dim, 3 * dim**-0.5)


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Array, dtype: str) -> None:
    if tensor.ndim == 1 or dtype == "f32":
        writer.add_tensor(name, tensor)
        return
    writer.add_tensor(name, gguf.quantize(tensor, _TYPES[dtype]), raw_dtype=_TYPES[dtype])


def main() -> None:
    """Command line; see the module header."""
    parser = argparse.ArgumentParser(description="Write a random-weight Llama GGUF.")
    parser.add_argument("path", type=Path)
    for name, value in (("dim", 768), ("layers", 12), ("ffn", 2048), ("vocab", 32000), ("heads", 12), ("ctx", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--kv-heads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=sorted(_TYPES), default="q8_0")
    arguments = vars(parser.parse_args())
    path = make_random_llama_gguf(arguments.pop("path"), **arguments)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
