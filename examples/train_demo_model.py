"""Train the bundled demo model and write it as a GGUF file, a Hugging Face folder and a list of known answers.

    python examples/train_demo_model.py --out model_cards/presets/demo

Needs torch (CPU), tokenizers, safetensors, gguf and numpy; takes minutes on two cores. Seeded: the same machine and
versions give the same weights. The text is made by demo_text.py, the network is demo_network.py, the files are written
by demo_export.py. Owns the training loop and the check of what was learned.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_conformance import conformance
from demo_export import END_OF_TEXT, IM_END, IM_START, SPECIAL, snap_weights, write_gguf, write_hf
from demo_network import DemoNetwork, Shape, forced_margins, greedy
from demo_text import DemoText, Message
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

STOP_IDS = {0, 2}
MODEL_FILE = "hf/model.safetensors"

Example = tuple[list[int], list[bool]]
"""Token ids, and for each whether it is part of an answer (to be learned)."""


def make_tokenizer(seed: int, vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer, trained on our own text; every digit is a token of its own."""
    text = DemoText(seed)
    corpus = (message["content"] for _ in range(6000) for message in text.conversation())
    without_digits = ("".join(" " if c.isdigit() else c for c in content) for content in corpus)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*without_digits, *(["user", "assistant", "system"] * 500)], trainer)
    return tokenizer


def render(messages: list[Message]) -> str:
    """What the chat template makes of messages, with the head of the answer to come."""
    turns = "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)
    return turns + f"{IM_START}assistant\n"


class Examples:
    """Endless training examples as token ids."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._text = DemoText(seed)
        self._rng = random.Random(seed)
        self._cache: dict[str, list[int]] = {}

    def draw(self) -> Example:
        """One conversation, or now and then a raw text."""
        if self._rng.random() < 0.05:
            head, tail = self._text.completion()
            return self._join([(head, False), (tail + END_OF_TEXT, True)])
        parts: list[tuple[str, bool]] = []
        for message in self._text.conversation():
            is_answer = message["role"] == "assistant"
            parts.append((f"{IM_START}{message['role']}\n", False))
            parts.append((message["content"] + IM_END, is_answer))
            parts.append(("\n", False))
        return self._join(parts)

    def batches(self, num_tokens: int, pool: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(ids, targets), both [batch, tokens]; of similar lengths, about `num_tokens` a batch; -100 is not learned."""
        while True:
            examples = sorted((self.draw() for _ in range(pool)), key=lambda example: len(example[0]))
            groups: list[list[Example]] = [[]]
            for example in examples:
                if len(example[0]) * (len(groups[-1]) + 1) > num_tokens and groups[-1]:
                    groups.append([])
                groups[-1].append(example)
            self._rng.shuffle(groups)
            yield from map(_pad, groups)

    def _join(self, parts: list[tuple[str, bool]]) -> Example:
        ids: list[int] = []
        learned: list[bool] = []
        for text, is_answer in parts:
            piece = self._encode(text)
            ids += piece
            learned += [is_answer] * len(piece)
        return ids, learned

    def _encode(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self._cache[text] = self._tokenizer.encode(text).ids
        return ids


def _pad(group: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(ids) for ids, _ in group) - 1
    ids = torch.zeros(len(group), length, dtype=torch.long)
    targets = torch.full((len(group), length), -100)
    for row, (tokens, learned) in enumerate(group):
        n = len(tokens) - 1
        ids[row, :n] = torch.tensor(tokens[:-1])
        targets[row, :n] = torch.where(torch.tensor(learned[1:]), torch.tensor(tokens[1:]), -100)
    return ids, targets


def _loss(network: DemoNetwork, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    keep = targets != -100
    return F.cross_entropy(network.logits(network.hidden(ids)[keep]).float(), targets[keep])


def _schedule(step: int, num_steps: int) -> float:
    """Share of the full learning rate: a short warm-up, then a straight line to nearly nothing."""
    return min(1.0, (step + 1) / 50, 0.004 + (num_steps - step) / (0.75 * num_steps))


def _optimizers(network: DemoNetwork, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the layers' matrices, AdamW for embedding and norms."""
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.97)),
    ]


def train(network: DemoNetwork, examples: Examples, args: argparse.Namespace) -> None:
    """Train for `args.steps` steps; mutates `network`."""
    optimizers = _optimizers(network, args.lr)
    start, average = time.monotonic(), 0.0
    for step, (ids, targets) in zip(range(args.steps), examples.batches(args.batch_tokens, 2000), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.float32):
            loss = _loss(network, ids, targets)
        network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * _schedule(step, args.steps)
            optimizer.step()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step:5d}  loss {average:.4f}  {time.monotonic() - start:5.0f} s", flush=True)


def check(network: DemoNetwork, tokenizer: Tokenizer, num_conversations: int, seed: int) -> tuple[int, int, float]:
    """(right answers, answers, smallest margin of the right ones) over conversations of a seed not trained on."""
    text, good, total, smallest = DemoText(seed), 0, 0, float("inf")
    for _ in range(num_conversations):
        messages = text.conversation()
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = tokenizer.encode(render(messages[:i])).ids
            is_right, margin = forced_margins(network, prompt, tokenizer.encode(message["content"] + IM_END).ids)
            total += 1
            good += is_right
            smallest = min(smallest, margin) if is_right else smallest
            if not is_right or margin < 0.5:
                print(f"{'thin' if is_right else 'MISS'} {margin:.2f} {messages[i - 1]['content']!r}", flush=True)
    return good, total, smallest


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, help="train a model further: a folder that an earlier run wrote")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=int, default=400, help="conversations to check with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="train in float32 (twice as slow where bf16 is native)")
    return parser.parse_args()


def _same_in_bfloat16(network: DemoNetwork, cases: list[dict[str, Any]]) -> int:
    """How many of the known answers come out the same when everything is computed in bfloat16."""
    rounded = copy.deepcopy(network).bfloat16()
    return sum(greedy(rounded, case["prompt_ids"], STOP_IDS).ids == case["greedy_ids"] for case in cases)


def write(network: DemoNetwork, tokenizer: Tokenizer, out: Path, seed: int) -> None:
    """GGUF, Hugging Face folder and known answers. Raises RuntimeError if it does not answer what it was taught."""
    out.mkdir(parents=True, exist_ok=True)
    write_hf(network, tokenizer, out / "hf")
    write_gguf(network, tokenizer, out / "demo.q8_0.gguf")
    cases = conformance(network, tokenizer, render, STOP_IDS, seed, num_drawn=120)
    smallest = min(case["min_margin"] for case in cases)
    print(f"{_same_in_bfloat16(network, cases)} of {len(cases)} known answers are the same in bfloat16")
    record = {"stop_token_ids": sorted(STOP_IDS), "min_margin": smallest, "cases": cases}
    (out / "conformance.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def _begin(args: argparse.Namespace, shape: Shape) -> tuple[DemoNetwork, Tokenizer]:
    """A new network and tokenizer, or those of an earlier run."""
    network = DemoNetwork(shape)
    if args.start is None:
        return network, make_tokenizer(args.seed + 1, shape.vocab_size)
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(args.start / MODEL_FILE).items()})
    return network, Tokenizer.from_file(str(args.start / "hf" / "tokenizer.json"))


def main() -> None:
    """Train, snap the weights to what every format can hold, check, write."""
    args = _arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    shape = Shape()
    network, tokenizer = _begin(args, shape)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens")
    train(network, Examples(tokenizer, args.seed + 2), args)
    snap_weights(network)
    network.eval()
    good, total, smallest = check(network, tokenizer, args.check, args.seed + 3)
    print(f"{good} of {total} fresh answers right, smallest margin {smallest:.3f}")
    write(network, tokenizer, args.out, args.seed + 4)


if __name__ == "__main__":
    main()
