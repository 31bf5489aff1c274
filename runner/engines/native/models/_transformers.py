"""Architectures without a family file: transformers' own modules over our paged attention; slower, but right.

Owns the plug into transformers' attention interface and the proof that a model can be run so: nothing but attention may
connect tokens. Whatever fails the proof is refused with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_cards.card import ModelCard
from runner.engines.failures import describe
from runner.engines.native.layers.attention import Attention
from runner.engines.native.layers.batch import Batch
from runner.engines.native.layers.decoder import Decoder
from runner.engines.native.parallel import Parallel
from runner.engines.native.plan import StepPlan
from runner.engines.native.spec import DecoderSpec
from runner.errors import EngineStartFailed

_NAME = "llmrun_paged"
_PLUG = "_llmrun_paged"
_KINDS = {"full_attention", "sliding_attention"}
_HARMLESS = {"position_ids", "position_embeddings", "cache_position"}
"""Tensors that transformers hands through to attention functions, and that say nothing about scores."""
_HINT = "use out=llamacpp with a GGUF file of it, or out=vllm"
_TOLERANCE = 0.05


class TransformersDecoder(Decoder):
    """A Decoder's interface around a causal language model of transformers. `base` computes hidden states."""

    can_capture = False

    def __init__(self, causal: Any, dtype: torch.dtype, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.parallel, self.dtype, self.device = Parallel.single(), dtype, device
        self.causal, self.base = causal, causal.get_decoder()
        self.paged: nn.ModuleList = nn.ModuleList()
        self._by_module: dict[int, Attention] = {}
        self._batch: Batch | None = None
        # transformers calls one function for all models; it finds this model by its module
        for module in causal.modules():
            module.__dict__[_PLUG] = self
        self._probe()

    def set_context(self, length: int) -> None:
        """Rotary positions are transformers' own."""

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states after the last norm, [tokens, hidden]."""
        self._batch = batch
        out = self.base(input_ids=batch.token_ids[None], position_ids=batch.positions[None], use_cache=False)
        hidden: Tensor = out[0][0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> [rows, vocab] float32, with whatever the model does after its base."""
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        self.base.forward = lambda *args, **options: _Hidden(hidden[None])
        try:
            logits: Tensor = self.causal(input_ids=ids, use_cache=False).logits[0].float()
        finally:
            del self.base.forward
        return logits

    def attentions(self) -> Iterator[Attention]:
        """In the order in which they are called."""
        yield from self.paged  # type: ignore[misc]

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        """q [1, heads, tokens, dim], k and v [1, kv_heads, tokens, dim] -> [1, tokens, heads, dim of v]."""
        attention = self._by_module.get(id(module))
        if attention is None:
            attention = self._plug(module, q, k, v, mask, options)
        width = v.shape[-1]
        v = F.pad(v, (0, k.shape[-1] - width)) if width < k.shape[-1] else v  # multi-head latent attention
        assert self._batch is not None
        heads = [part[0].transpose(0, 1).contiguous() for part in (q, k, v)]
        out: Tensor = attention(*heads, self._batch).view(len(heads[0]), q.shape[1], -1)
        return out[None, ..., :width]

    # --- the proof

    def _plug(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]) -> Attention:
        """Our attention for one of transformers'. Raises EngineStartFailed for what it cannot do."""
        odd = [name for name, value in options.items() if isinstance(value, Tensor) and name not in _HARMLESS]
        if odd or mask is not None or options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            what = "attention sinks" if "s_aux" in odd else f"more than causal attention ({', '.join(odd) or 'a mask'})"
            _refuse(self.causal, f"it wants {what}")
        if v.shape[-1] > k.shape[-1] or q.shape[1] % k.shape[1]:
            _refuse(self.causal, f"its attention has the shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)}")
        scale = options.get("scaling") or k.shape[-1] ** -0.5
        window = options.get("sliding_window") or _stated_window(self.causal.config.get_text_config(), len(self.paged))
        attention = Attention(q.shape[1], k.shape[1], k.shape[-1], float(scale), window, options.get("softcap"))
        self._by_module[id(module)] = attention
        self.paged.append(attention)
        return attention

    @torch.inference_mode()
    def _probe(self) -> None:
        """Two prompts in one step must give what each gives alone through the whole model; finds all attentions."""
        prompts, config = ([1, 2, 3], [4, 5]), self.causal.config.get_text_config()
        alone = [self._alone(prompt) for prompt in prompts]
        num, layers = len(self.paged), config.num_hidden_layers
        kinds = {(attention.num_kv_heads, attention.head_dim) for attention in self.attentions()}
        if num != layers or len(kinds) != 1:
            what = (
                f"{num} of its {layers} layers call transformers' attention function, with {len(kinds)} shapes of heads"
            )
            _refuse(self.causal, what)
        packed = self.logits(self.forward(_batch(prompts, self.device)))
        for together, wanted in zip((packed[:3], packed[3:]), alone, strict=True):
            # all rows: rounding may send a single token to other experts
            difference = (together - wanted).norm(dim=-1) / wanted.norm(dim=-1)
            if not bool((difference < _TOLERANCE).any()):
                _refuse(self.causal, "its tokens know of each other by more than attention and positions")
        first = next(self.attentions())
        self.spec = DecoderSpec(
            vocab_size=alone[0].shape[-1], hidden_size=config.hidden_size, num_layers=len(self.paged),
            num_heads=first.num_heads, num_kv_heads=first.num_kv_heads, head_dim=first.head_dim, intermediate_size=0,
        )  # fmt: skip

    def _alone(self, prompt: list[int]) -> Tensor:
        self._batch = batch = _batch([prompt], self.device)
        try:
            out = self.causal(input_ids=batch.token_ids[None], position_ids=batch.positions[None], use_cache=False)
        except EngineStartFailed:
            raise
        except Exception as error:  # code of some hundred architectures that we do not know
            _refuse(self.causal, f"its own code fails: {describe(error)}")
        logits: Tensor = out.logits[0].float()
        return logits


class _Hidden:
    """What a base model returns, where only the hidden states are of interest."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


def build_transformers(
    card: ModelCard,
    config: dict[str, Any],
    *,
    parallel: Parallel,
    dtype: torch.dtype,
    device: torch.device,
    context_length: int,
    progress: Callable[[str, float | None], None],
) -> Decoder:
    """The loaded model. Raises EngineStartFailed where transformers is missing or the architecture cannot be run so."""
    try:
        import transformers
    except ImportError:
        raise EngineStartFailed(
            f"out=native has no family file for {config.get('model_type')!r}, and transformers is not installed",
            hint="pip install transformers, or " + _HINT,
        ) from None
    if card.kind == "gguf" or card.path is None:
        raise EngineStartFailed(f"{card.name}: GGUF files do not run through transformers", hint="use out=llamacpp")
    if parallel.size > 1:
        raise EngineStartFailed(
            f"architecture {config.get('model_type')!r} runs through transformers' modules, on one rank only",
            hint="leave --tensor-parallel-size out, or use out=vllm",
        )
    transformers.AttentionInterface.register(_NAME, _attention)
    _check(Path(card.path))
    progress("loading weights", None)
    causal: Any = transformers.AutoModelForCausalLM.from_pretrained(card.path, dtype=dtype, attn_implementation=_NAME)
    for name, module in causal.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("wpe", "positions", "position_embeddings")):
            most = module.num_embeddings - getattr(module, "offset", 0)
            if context_length > most:
                raise EngineStartFailed(f"--context-length {context_length:,}: {most:,} is the most for this model")
    return TransformersDecoder(causal.to(device).eval(), dtype, device)


def _check(folder: Path) -> None:
    """Raises EngineStartFailed for what config.json alone shows to be impossible, before weights are read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (KeyError, ValueError, OSError) as error:
        raise EngineStartFailed(
            f"neither out=native nor transformers knows {folder.name}: {str(error).splitlines()[0]}", hint=_HINT
        ) from None
    auto: Any = AutoModelForCausalLM
    classes = auto._model_mapping
    if config.is_encoder_decoder or type(config) not in classes:
        _refuse(
            type(config), "it is no decoder-only language model", hint="no engine of this launcher runs such models"
        )
    model_class = classes[type(config)]
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - _KINDS
    if kinds or getattr(model_class, "_is_stateful", False):
        _refuse(model_class, f"its layers keep a state of their own ({', '.join(sorted(kinds)) or 'recurrent'})")
    if getattr(text, "num_kv_shared_layers", None) or getattr(text, "attention_chunk_size", None):
        _refuse(model_class, "its layers share keys and values, or attend in chunks")
    if "position_ids" not in inspect.signature(model_class.forward).parameters:
        _refuse(model_class, "it takes no positions")
    try:
        with torch.device("meta"):
            auto.from_config(config, attn_implementation=_NAME)
    except Exception as error:  # some choose among attention classes of their own
        _refuse(model_class, f"it cannot be built with our attention: {describe(error)}")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in the place of its own attention."""
    model: TransformersDecoder = module.__dict__[_PLUG]
    return model.attend(module, query, key, value, attention_mask, options), None


def _refuse(model: Any, reason: str, hint: str = _HINT) -> NoReturn:
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    raise EngineStartFailed(f"out=native cannot run {name} through transformers: {reason}", hint=hint)


def _stated_window(config: Any, layer: int) -> int | None:
    """Of config.json, where the model leaves windows to a mask."""
    kinds = getattr(config, "layer_types", None)
    return config.sliding_window if kinds and kinds[layer] == "sliding_attention" else None


def _batch(prompts: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """A step of whole prompts, without a cache."""
    return Batch.from_plan(StepPlan.of_prompts([np.array(prompt, np.int32) for prompt in prompts]), device)
