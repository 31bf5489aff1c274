"""One runner for every model family: our Decoder over a paged cache, against an independent reference's logits.

check_family(model) saves a transformers model, loads the folder with our loader and compares logits in float32; the
steps are (a) one whole prompt, (b) chunks, (c) two sequences whose prefill and decode share batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runner.engines.native.layers.batch import Batch  # noqa: E402
from runner.engines.native.layers.cache import KVCache  # noqa: E402
from runner.engines.native.layers.decoder import Decoder  # noqa: E402
from runner.engines.native.loader import load  # noqa: E402
from runner.engines.native.models import find_family  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from runner.engines.native.plan import StepPlan  # noqa: E402
from runner.engines.native.spec import DecoderSpec  # noqa: E402
from runner.engines.native.weights import Names  # noqa: E402

BLOCK_SIZE = 4
NUM_BLOCKS = 64


@dataclass
class Stream:
    """A sequence that a Runner is given piece by piece; its blocks lie scattered in the cache."""

    token_ids: list[int]
    blocks: list[int]
    num_computed: int = 0


class Runner:
    """A Decoder with a cache, stepped by hand."""

    def __init__(self, model: Decoder, dtype: Any = None, num_blocks: int = NUM_BLOCKS) -> None:
        self.model = model
        heads = {(a.num_kv_heads, a.head_dim) for a in model.attentions()}
        assert len(heads) == 1
        attentions = list(model.attentions())
        self.cache = KVCache(len(attentions), num_blocks, BLOCK_SIZE, *heads.pop(), dtype or model.dtype, "cpu")
        for attention, layer in zip(attentions, self.cache.layers, strict=True):
            attention.cache = layer
        self.free = list(np.random.default_rng(0).permutation(num_blocks))

    def stream(self, token_ids: Sequence[int], room: int = 0) -> Stream:
        """A new sequence with blocks for `room` further tokens."""
        num = -(-(len(token_ids) + room) // BLOCK_SIZE)
        return Stream(list(token_ids), [int(self.free.pop()) for _ in range(num)])

    def step(self, *pieces: tuple[Stream, int]) -> list[Any]:
        """Compute `count` further tokens of each stream in one batch; the logits of each one's tokens."""
        plan = make_plan(pieces)
        with torch.inference_mode():
            logits = self.model.logits(self.model(Batch.from_plan(plan, "cpu")))
        for stream, count in pieces:
            stream.num_computed += count
        return list(logits.split([count for _, count in pieces]))

    def greedy(self, prompt: Sequence[int], num: int) -> list[int]:
        """The naive loop."""
        stream = self.stream(prompt, num)
        for _ in range(num):
            logits = self.step((stream, len(stream.token_ids) - stream.num_computed))[0]
            stream.token_ids.append(int(logits[-1].argmax()))
        self.free += stream.blocks
        return stream.token_ids[len(prompt) :]


def make_plan(pieces: Sequence[tuple[Stream, int]]) -> StepPlan:
    """The plan of one step."""
    positions = [range(s.num_computed, s.num_computed + count) for s, count in pieces]
    width = max(len(stream.blocks) for stream, _ in pieces)
    starts = np.cumsum([0] + [count for _, count in pieces])
    return StepPlan(
        token_ids=_int32([s.token_ids[p] for (s, _), span in zip(pieces, positions, strict=True) for p in span]),
        positions=_int32([p for span in positions for p in span]),
        slots=_int32([
            s.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
            for (s, _), span in zip(pieces, positions, strict=True) for p in span
        ]),
        query_starts=_int32(starts),
        context_lens=_int32([span.stop for span in positions]),
        block_tables=_int32([s.blocks + [0] * (width - len(s.blocks)) for s, _ in pieces]),
        sample_rows=_int32(starts[1:] - 1),
        copies=np.zeros((0, 2), np.int32),
    )  # fmt: skip


def _int32(values: Any) -> Any:
    return np.asarray(values, np.int32)


def tokens(vocab_size: int, length: int, seed: int) -> list[int]:
    """Random ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def randomize(model: Any, seed: int = 0) -> Any:
    """Seeded weights; norms near one and biases that are not zero, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() == 1:
                is_scale = "norm" in name or "ln_" in name
                value.copy_((0.2 * noise + (1.0 if is_scale and "bias" not in name else 0.0)).to(value.dtype))
            else:
                value.copy_((noise * 0.9 / value.shape[-1] ** 0.5).to(value.dtype))
    return model.eval()


def build(spec: DecoderSpec, names: Names, source: Any, *, dtype: Any = torch.float32, **options: Any) -> Decoder:
    """A loaded Decoder of one rank; `options` go to load()."""
    model = Decoder(spec, options.pop("parallel", None) or Parallel.single(), dtype, options.pop("device", "cpu"))
    load(model, source, names, **options)
    return model


def load_folder(folder: Path, **options: Any) -> Decoder:
    """Our model of a Hugging Face folder, float32."""
    config = json.loads((folder / "config.json").read_text())
    family = find_family(config)
    assert family is not None, config["model_type"]
    return build(family.spec(config), family.names, folder, **options)


def toy(config_class: Any, model_class: Any, **changes: Any) -> Any:
    """A toy model of transformers: 2 layers, hidden 64, vocabulary 128."""
    values = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "attn_implementation": "eager",
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    values.update(changes)
    return randomize(model_class(config_class(**{k: v for k, v in values.items() if v is not ...})))


def transformers_logits(model: Any) -> Callable[[list[int]], Any]:
    """Logits of all tokens of a sequence, from a whole forward pass without a cache."""

    def logits(token_ids: list[int]) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float()

    return logits


def check_family(model: Any, tmp_path: Path, *, edit: Callable[[dict[str, Any]], None] | None = None) -> Decoder:
    """A transformers model against ours, loaded from what it saves (config.json changed by `edit`)."""
    model.save_pretrained(tmp_path)
    if edit is not None:
        config = json.loads((tmp_path / "config.json").read_text())
        edit(config)
        (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load_folder(tmp_path)
    check_logits(ours, transformers_logits(model))
    return ours


def check_logits(ours: Decoder, reference: Callable[[list[int]], Any], length: int = 21) -> None:
    """(a) whole, (b) chunked, (c) two sequences in mixed batches: all within 1e-4 of the reference."""
    vocab = ours.spec.vocab_size
    first, second = tokens(vocab, length, 1), tokens(vocab, length - 4, 2)
    wanted, other = reference(first), reference(second)
    assert wanted.std() > 0.05, "the toy says nothing"
    runner = Runner(ours)
    close(runner.step((runner.stream(first), length))[0], wanted)
    chunked = runner.stream(first)
    close(torch.cat([runner.step((chunked, count))[0] for count in (5, 1, 9, length - 15)]), wanted)
    close_mixed(runner, first, second, wanted, other)


def close_mixed(runner: Runner, first: list[int], second: list[int], wanted: Any, other: Any) -> None:
    """The first sequence decodes while the second is prefilled in chunks; then both decode."""
    one, two = runner.stream(first), runner.stream(second)
    parts = ([runner.step((one, len(first) - 5))[0]], [])
    for counts in ((1, 7), (1, len(second) - 9), (1, 1), (1, 1)):
        for part, logits in zip(parts, runner.step((one, counts[0]), (two, counts[1])), strict=True):
            part.append(logits)
    parts[0].append(runner.step((one, 1))[0])
    close(torch.cat(parts[0]), wanted)
    close(torch.cat(parts[1]), other)


def close(got: Any, wanted: Any, atol: float = 1e-4) -> None:
    """Equal within 1e-4, with the largest difference in the message."""
    difference = (got - wanted).abs().max().item()
    assert difference < atol, f"logits differ by {difference:.2e}"


def single() -> Parallel:
    """No other rank."""
    return Parallel.single()
