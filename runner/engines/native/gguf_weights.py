"""GgufSource: the tensors of a GGUF file as a TensorSource, dequantised one by one as they are read.

Owns GGUF's tensor names and what llama.cpp's converter changes in the weights. The meaning of the metadata is in
gguf_config.py, the file format in model_cards/gguf.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_cards.errors import ModelFileError
from model_cards.gguf import GgufFile, TensorInfo
from runner.engines.native.gguf_config import make_config
from runner.engines.native.spec import DecoderSpec
from runner.engines.native.weights import Names

_NAMES = {
    "embed": "token_embd", "position": "position_embd", "embed_norm": "token_embd_norm", "norm": "output_norm",
    "head": "output", "norm1": "blk.{i}.attn_norm", "norm2": "blk.{i}.ffn_norm",
    "norm1_post": "blk.{i}.post_attention_norm", "norm2_post": "blk.{i}.post_ffw_norm",
    "attn.q": "blk.{i}.attn_q", "attn.k": "blk.{i}.attn_k", "attn.v": "blk.{i}.attn_v", "attn.qkv": "blk.{i}.attn_qkv",
    "attn.out": "blk.{i}.attn_output", "attn.q_norm": "blk.{i}.attn_q_norm", "attn.k_norm": "blk.{i}.attn_k_norm",
    "mlp.gate": "blk.{i}.ffn_gate", "mlp.up": "blk.{i}.ffn_up", "mlp.down": "blk.{i}.ffn_down",
    "moe.router": "blk.{i}.ffn_gate_inp", "moe.experts.gate": "blk.{i}.ffn_gate_exps",
    "moe.experts.up": "blk.{i}.ffn_up_exps", "moe.experts.down": "blk.{i}.ffn_down_exps",
    "moe.shared.gate": "blk.{i}.ffn_gate_shexp", "moe.shared.up": "blk.{i}.ffn_up_shexp",
    "moe.shared.down": "blk.{i}.ffn_down_shexp", "moe.shared_gate": "blk.{i}.ffn_gate_inp_shexp",
}  # fmt: skip
_PERMUTED = frozenset({"llama", "mistral", "granite", "smollm3", "internlm2", "baichuan", "xverse"})
"""Architectures whose q and k rows the converter reorders, from rotary halves to interleaved pairs."""
_PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3"})
"""Architectures whose norms are stored with the 1 added that the model adds."""
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_DTYPES = {"F32": "float32", "F16": "float16"}


class _Place(NamedTuple):
    info: TensorInfo
    file: Path
    start: int


class GgufSource:
    """One model; all shards of a split one. Raises ModelFileError for a broken file, EngineStartFailed for an unknown
    architecture."""

    def __init__(self, path: Path) -> None:
        with GgufFile.open(path) as file:
            self._tensors = _places(file)
            self._maps = {shard: np.memmap(shard, np.uint8, "r") for shard in file.shards}
            vocab_size = self.shape("token_embd.weight")[0] if "token_embd.weight" in self._tensors else 0
            self.architecture = file.architecture
            self.config: dict[str, Any] = make_config(file, self.names(), vocab_size, self._factors)
            label = next(iter(file.bytes_by_type), "")
        self.config["dtype"] = _DTYPES.get(label, "bfloat16")

    def names(self) -> set[str]:
        """As GGUF has them."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Slowest dimension first, [out, in]."""
        shape = self._tensors[name].info.shape[::-1]
        return (1, *shape) if "gate_inp_shexp" in name and len(shape) == 1 else shape

    def file(self, name: str) -> str:
        """The shard."""
        return str(self._tensors[name].file)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> Tensor:
        """Only the wanted rows are read and dequantised: to float32 whatever is quantised."""
        shape = self.shape(name)
        *rows, columns = index or (slice(None),) * len(shape)
        raw = self._raw(name, shape)
        order = self._row_order(name, shape[0])
        if order is not None and rows:
            raw, rows = raw[order[rows[0]]], []
        values = self._decode(name, raw[tuple(rows)])
        if order is not None and len(shape) == 1:
            values = values[torch.from_numpy(order)]
        if self.architecture in _PLUS_ONE and name.endswith("norm.weight"):
            values = values - 1.0
        return values[..., columns]

    def adapt(self, spec: DecoderSpec) -> tuple[DecoderSpec, Names]:
        """A spec made of `config` with what the tensors tell, and their names."""
        first = "blk.0."
        rope = {"dim": self.config["rotary_dim"]} if spec.position == "rope" and "rotary_dim" in self.config else {}
        spec = replace(
            spec,
            norm_bias="output_norm.bias" in self._tensors,
            qkv_bias=not {first + "attn_q.bias", first + "attn_qkv.bias"}.isdisjoint(self._tensors),
            out_bias=first + "attn_output.bias" in self._tensors,
            mlp_bias=first + "ffn_up.bias" in self._tensors,
            tied_head="output.weight" not in self._tensors,
            head_bias="output.bias" in self._tensors,
            rope=replace(spec.rope, **rope),
            rope_local=None if spec.rope_local is None else replace(spec.rope_local, **rope),
        )
        return spec, Names(self._names_of(spec), prefixes=("",))

    def _names_of(self, spec: DecoderSpec) -> dict[str, str]:
        names = dict(_NAMES)
        if spec.block == "post_norm":
            names |= {"norm1": _NAMES["norm1_post"], "norm2": _NAMES["norm2_post"]}
        if "blk.0.attn_norm_2.weight" in self._tensors:  # Falcon-40B
            names |= {"norm1": "blk.{i}.attn_norm_2", "norm2": "blk.{i}.attn_norm"}
        if spec.gated and spec.moe is None and "blk.0.ffn_gate.weight" not in self._tensors:
            names["mlp.gate_up"] = names.pop("mlp.up")
        if "blk.0.ffn_gate.0.weight" in self._tensors:  # Mixtral files of before March 2024
            parts = ("gate", "up", "down")
            names |= {f"moe.experts.{part}": f"blk.{{i}}.ffn_{part}.{{e}}" for part in parts}
        return names

    def _raw(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The bytes of all rows, [..., bytes of a row]."""
        info, file, start = self._tensors[name]
        data: NDArray[np.uint8] = self._maps[file][start : start + info.num_bytes]
        return data.reshape(*shape[:-1], info.num_bytes // max(1, int(np.prod(shape[:-1]))))

    def _decode(self, name: str, raw: NDArray[np.uint8]) -> Tensor:
        """A copy: the file stays read-only."""
        kind = self._tensors[name].info.type.name
        if kind in _PLAIN:
            return torch.from_numpy(np.array(raw)).view(_PLAIN[kind])
        try:
            return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))
        except (NotImplementedError, KeyError):
            raise ModelFileError(
                f"tensor {name} in {self.file(name)} is {kind}, which out=native cannot dequantise; take another "
                "quantisation of the model, or out=llamacpp"
            ) from None

    def _row_order(self, name: str, num_rows: int) -> NDArray[np.int64] | None:
        """Where each row of a reordered q or k lies in the file: there as [heads, dim/2, 2], here [heads, 2, dim/2]."""
        part = name.rsplit(".", 2)[-2] if name.startswith("blk.") else ""
        if part not in ("attn_q", "attn_k") or self.architecture not in _PERMUTED:
            return None
        heads = self.config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        return np.arange(num_rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _factors(self, name: str) -> list[float] | None:
        return self.read(name).tolist() if name in self._tensors else None


def _places(file: GgufFile) -> dict[str, _Place]:
    """All tensors, checked; where each begins in its shard."""
    places: dict[str, _Place] = {}
    assert file.tensors is not None  # raises where shards do not belong together
    for shard in file.shards:
        with GgufFile(shard, (shard,)) as part:
            places |= {info.name: _Place(info, shard, part.data_at + info.offset) for info in part.tensors}
    return places
