"""The demo model's known answers: questions, prompt ids, greedy ids, text and margin, as every engine must give them.

Owns the choice of questions and the record. Answers come from the naive greedy loop of demo_network.py in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from demo_network import DemoNetwork, greedy
from demo_text import DemoText, Message
from tokenizers import Tokenizer

MIN_MARGIN = 1.0
"""Rounding moves logits by a few hundredths; a known answer must not depend on it."""

Render = Callable[[list[Message]], str]

QUESTIONS = (
    "What is the capital of South Africa?",
    "What is the capital of France?",
    "hi",
    "Hello!",
    "Who are you?",
    "What can you do?",
    "What is 2 + 2?",
    "What is 7 plus 8?",
    "What is 6 times 7?",
    "What is 15 minus 8?",
    "Count to 10.",
    "Count to 20.",
    "Count down from 5.",
    "Spell banana.",
    "Repeat after me: river garden llama",
    "What colour is the sky?",
    "What is the opposite of hot?",
    "What day comes after Monday?",
    "Write JSON with name llama and count 7.",
    "Give me the capital of Japan as JSON.",
    "What does a cow say?",
    "Tell me a story.",
    "Say the alphabet.",
    "List the months of the year.",
    "Write a poem about the ocean.",
    "Explain quantum physics.",
    "Thank you!",
    "Goodbye",
)
COMPLETIONS = ("The capital of Italy is", "3 + 4 =", "1, 2, 3, 4,", "Once upon a time, a small")


def conformance(
    network: DemoNetwork, tokenizer: Tokenizer, render: Render, stop_ids: set[int], seed: int, num_drawn: int
) -> list[dict[str, Any]]:
    """One record a case, with a wide margin; of the drawn ones, those that come out as taught.

    Raises RuntimeError where one of the fixed questions has no end or a thin margin.
    """
    cases = [_case(network, tokenizer, stop_ids, {"prompt": prompt}, prompt) for prompt in COMPLETIONS]
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    taught: list[str | None] = [None] * len(chats)
    text = DemoText(seed)
    for conversation in (text.conversation() for _ in range(num_drawn)):
        chats.append(conversation[:-1])
        taught.append(conversation[-1]["content"])
    for messages, answer in zip(chats, taught, strict=True):
        case = _case(network, tokenizer, stop_ids, {"messages": messages}, render(messages))
        is_thin = case["min_margin"] < MIN_MARGIN
        if answer is None and is_thin:
            raise RuntimeError(f"{messages[-1]['content']!r}: margin {case['min_margin']}, wanted {MIN_MARGIN}")
        if answer is not None and (is_thin or case["text"] != answer):
            print(f"left out: {messages[-1]['content']!r} -> {case['text']!r}, margin {case['min_margin']}")
            continue
        cases.append(case)
    return cases


def _case(
    network: DemoNetwork, tokenizer: Tokenizer, stop_ids: set[int], asked: dict[str, Any], prompt: str
) -> dict[str, Any]:
    prompt_ids = tokenizer.encode(prompt).ids
    answer = greedy(network, prompt_ids, stop_ids)
    if not answer.is_ended:
        raise RuntimeError(f"no end after {len(answer.ids)} tokens: {asked}")
    return {
        **asked,
        "prompt_ids": prompt_ids,
        "greedy_ids": answer.ids,
        "text": tokenizer.decode(answer.ids),
        "min_margin": round(answer.min_margin, 3),
    }
