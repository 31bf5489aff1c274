"""Child side: the weights of a GGUF file under the names and in the order of a Hugging Face folder, one by one.

vLLM dropped GGUF; its plugin (vllm-gguf-plugin 0.0.5) has no kernels for CPUs and takes the reordered q and k rows of
`llama` files as they are. Here weights are dequantised as they are read, so that every device and vLLM runs them, at
the memory of an unquantised model. Needs torch, transformers and gguf; knows nothing of vllm.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.engines.vllm.settings import GGUF_ARCHITECTURES
from runner.errors import EngineStartFailed

_PERMUTED = ("llama",)
"""Architectures whose q and k rows the converter reorders, from rotary halves to interleaved pairs."""
_PLUS_ONE = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms are stored with the 1 added that the model adds."""
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""What config.json says in the Hugging Face folder."""
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class GgufWeights:
    """One model; all shards of a split one. Raises EngineStartFailed for a file that cannot be read this way."""

    def __init__(self, path: Path) -> None:
        import gguf

        from model_cards.gguf import GgufFile

        with GgufFile.open(path) as file:
            self.path = path
            self.architecture = file.architecture or ""
            self._shards = file.shards
            self._has_experts = bool(file.metadata.get(f"{self.architecture}.expert_count"))
            assert file.tensors is not None
            self.names = {info.name for info in file.tensors}
        self._library = gguf
        self._check()

    def _check(self) -> None:
        if self.architecture not in GGUF_ARCHITECTURES or self._has_experts:
            what = f"{self.architecture} with experts" if self._has_experts else self.architecture
            raise EngineStartFailed(
                f"out=vllm reads GGUF files of {', '.join(GGUF_ARCHITECTURES)}; {self.path.name} is {what}",
                hint="use out=llamacpp or out=native, or the model's Hugging Face folder",
            )

    def read(self, config: Any) -> Iterator[tuple[str, Any]]:
        """(name in the folder's checkpoint, Tensor); `config` is transformers'. Raises EngineStartFailed for a tensor
        that has no place in such a model, and for one that is missing."""
        places = self._places(config)
        for shard in self._shards:
            for tensor in self._library.GGUFReader(str(shard)).tensors:
                if tensor.name not in ROPE_TENSORS:
                    yield places[tensor.name], self._decode(tensor, config)

    def _places(self, config: Any) -> dict[str, str]:
        """GGUF's name -> the folder's, for exactly the tensors of the file."""
        names = set(_state_names(config))
        if config.tie_word_embeddings or "output.weight" not in self.names:
            names.discard("lm_head.weight")
        kind = next(one for one, name in self._library.MODEL_ARCH_NAMES.items() if name == self.architecture)
        table = self._library.get_tensor_name_map(kind, config.num_hidden_layers)
        places: dict[str, str] = {}
        for name in names:
            module, _, suffix = name.rpartition(".")
            places[f"{table.get_name(module)}.{suffix}"] = name
        wanted = self.names - set(ROPE_TENSORS)
        if places.keys() != wanted:
            missing, unknown = sorted(places.keys() - wanted), sorted(wanted - places.keys())
            raise EngineStartFailed(
                f"{self.path.name} is not the model that its configuration describes: "
                f"missing {missing[:3] or 'none'}, not known {unknown[:3] or 'none'}",
                hint="name the Hugging Face folder of this model with --model-config, or use out=llamacpp",
            )
        return places

    def _decode(self, tensor: Any, config: Any) -> Any:
        """A copy, float32 where it was quantised."""
        import numpy as np
        import torch

        kind = tensor.tensor_type.name
        if kind == "BF16":
            value = torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16)
        elif kind in _PLAIN:
            value = torch.from_numpy(np.array(tensor.data))
        else:
            value = torch.from_numpy(self._library.quants.dequantize(tensor.data, tensor.tensor_type))
        if self.architecture in _PLUS_ONE and tensor.name.endswith("norm.weight"):
            value = value - 1
        part = tensor.name.rpartition(".")[0].rpartition(".")[2]
        if self.architecture in _PERMUTED and part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        return value


def _state_names(config: Any) -> list[str]:
    """Of a model that is made without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return list(skeleton.state_dict())
