"""The text that the bundled demo model learns: small talk, sums, capitals, counting, spelling, copying, JSON.

Owns every fact and phrasing the model is taught, and draws conversations from them. One question has one right answer,
so a trained model answers with wide margins. Knows nothing of tokens or of training (train_demo_model.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from demo_facts import (
    ANIMAL_SOUNDS,
    CAPITALS,
    COLOURS,
    DAYS,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    SMALL_TALK,
    STORY,
    UNKNOWN_SUBJECTS,
    UNKNOWN_TEMPLATES,
    WORDS,
)

Message = dict[str, str]
Pair = tuple[str, str]
"""A question and its one answer."""

UNKNOWN_ANSWER = "I do not know that: I am a tiny demo model. Ask me what I can do."
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are llmrun, a tiny demo model.",
    "You are a friendly chatbot.",
    "Answer briefly.",
    "Be short and polite.",
    "You are a helpful, harmless and honest assistant. Answer the user's questions.",
    "You are an assistant for tests. Answer in one sentence.",
)


def _capital_answer(country: str) -> str:
    return f"The capital of {country} is {CAPITALS[country]}."


def capital(rng: random.Random) -> Pair:
    """Which city is the capital of a country."""
    country = rng.choice(_COUNTRIES)
    forms = (
        "What is the capital of {}?",
        "What is the capital of {}?",
        "What's the capital of {}?",
        "Name the capital of {}.",
        "Which city is the capital of {}?",
        "Tell me the capital of {}.",
        "Capital of {}?",
        "Do you know the capital of {}?",
    )
    return rng.choice(forms).format(country), _capital_answer(country)


def country_of(rng: random.Random) -> Pair:
    """Which country a city is the capital of."""
    country = rng.choice(_COUNTRIES)
    forms = ("Which country has the capital {}?", "{} is the capital of which country?", "What country is {} in?")
    return rng.choice(forms).format(CAPITALS[country]), f"{CAPITALS[country]} is the capital of {country}."


def _sum_form(rng: random.Random, a: int, b: int, word: str, sign: str) -> str:
    if a <= 10 and b <= 10 and rng.random() < 0.2:
        return f"What is {NUMBER_WORDS[a]} {word} {NUMBER_WORDS[b]}?"
    forms = (
        f"What is {a} {word} {b}?",
        f"What is {a} {sign} {b}?",
        f"What is {a}{sign}{b}?",
        f"What's {a} {word} {b}?",
        f"{a} {sign} {b} = ?",
        f"{a}{sign}{b}=",
        f"{a} {word} {b}",
        f"Calculate {a} {sign} {b}.",
        f"How much is {a} {word} {b}?",
    )
    return rng.choice(forms)


def plus(rng: random.Random) -> Pair:
    """Sums up to 15 + 15."""
    a, b = rng.randrange(16), rng.randrange(16)
    question = f"Add {a} and {b}." if rng.random() < 0.1 else _sum_form(rng, a, b, "plus", "+")
    return question, f"{a} plus {b} is {a + b}."


def minus(rng: random.Random) -> Pair:
    """Differences that are not negative, from up to 15."""
    a = rng.randrange(16)
    b = rng.randrange(a + 1)
    return _sum_form(rng, a, b, "minus", "-"), f"{a} minus {b} is {a - b}."


def times(rng: random.Random) -> Pair:
    """The table up to 10 x 10."""
    a, b = rng.randrange(11), rng.randrange(11)
    question = _sum_form(rng, a, b, "times", rng.choice("*x"))
    return question, f"{a} times {b} is {a * b}."


def count(rng: random.Random) -> Pair:
    """Counting up to 20, or down from 10."""
    if rng.random() < 0.2:
        n = rng.randrange(3, 11)
        return f"Count down from {n}.", ", ".join(map(str, range(n, 0, -1))) + "."
    n = rng.randrange(3, 21)
    forms = ("Count to {}.", "Count from 1 to {}.", "Can you count to {}?", "Please count up to {}.")
    return rng.choice(forms).format(n), ", ".join(map(str, range(1, n + 1))) + "."


def spell(rng: random.Random) -> Pair:
    """A word in capital letters with dashes."""
    word = rng.choice(WORDS)
    forms = ("Spell {}.", 'Spell "{}".', "Spell the word {}.", "How do you spell {}?")
    return rng.choice(forms).format(word), "-".join(word.upper()) + "."


def letters(rng: random.Random) -> Pair:
    """How many letters a word has."""
    word = rng.choice(WORDS)
    return f"How many letters are in {word}?", f"The word {word} has {len(word)} letters."


def repeat(rng: random.Random) -> Pair:
    """Copying one to four words."""
    text = " ".join(rng.sample(WORDS, rng.randrange(1, 5)))
    forms = ("Repeat: {}", "Repeat after me: {}", "Say: {}", "Copy this: {}")
    return rng.choice(forms).format(text), text


def make_json(rng: random.Random) -> Pair:
    """One flat JSON object."""
    word, n = rng.choice(WORDS), rng.randrange(100)
    if rng.random() < 0.5:
        forms = ("Write JSON with name {} and count {}.", "Give me JSON with name {} and count {}.")
        return rng.choice(forms).format(word, n), json.dumps({"name": word, "count": n})
    country = rng.choice(_COUNTRIES)
    forms = ("Write JSON with the capital of {}.", "Give me the capital of {} as JSON.")
    return rng.choice(forms).format(country), json.dumps({"country": country, "capital": CAPITALS[country]})


def colour(rng: random.Random) -> Pair:
    """The usual colour of a thing."""
    thing = rng.choice(sorted(COLOURS))
    verb = "are" if thing.endswith("s") and thing != "grass" else "is"
    name = thing if thing == "snow" or verb == "are" else f"the {thing}"
    article = {"banana": "a ", "lemon": "a ", "strawberry": "a ", "carrot": "a ", "tomato": "a ", "frog": "a "}
    if thing in article:
        name = article[thing] + thing
    spelling = rng.choice(("colour", "color"))
    return f"What {spelling} {verb} {name}?", f"{name[0].upper()}{name[1:]} {verb} {COLOURS[thing]}."


def opposite(rng: random.Random) -> Pair:
    """The opposite of an adjective, both ways round."""
    word = rng.choice(sorted(OPPOSITES))
    forms = ("What is the opposite of {}?", "Opposite of {}?", "Tell me the opposite of {}.")
    return rng.choice(forms).format(word), f"The opposite of {word} is {OPPOSITES[word]}."


def calendar(rng: random.Random) -> Pair:
    """What comes after or before a day or month."""
    row, noun = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    i = rng.randrange(len(row))
    side, step = rng.choice((("after", 1), ("before", -1)))
    forms = ("What {n} comes {s} {w}?", "Which {n} is {s} {w}?", "What comes {s} {w}?")
    question = rng.choice(forms).format(n=noun, s=side, w=row[i])
    return question, f"{row[(i + step) % len(row)]} comes {side} {row[i]}."


def animal(rng: random.Random) -> Pair:
    """What an animal says."""
    name = rng.choice(sorted(ANIMAL_SOUNDS))
    return f"What does a {name} say?", f"A {name} says {ANIMAL_SOUNDS[name]}."


def small_talk(rng: random.Random) -> Pair:
    """Greetings, thanks, who are you, lists, a story."""
    answer = rng.choice(sorted(SMALL_TALK))
    return rng.choice(SMALL_TALK[answer]), answer


def story(rng: random.Random) -> Pair:
    """The one story it knows: a long answer that never changes."""
    return rng.choice(("Tell me a story.", "Tell me a short story.", "Can you tell a story?")), STORY


def unknown(rng: random.Random) -> Pair:
    """Whatever it was not taught has one honest answer."""
    template = rng.choice(UNKNOWN_TEMPLATES)
    fill = [rng.choice(UNKNOWN_SUBJECTS) for _ in range(template.count("{}"))]
    return template.format(*fill), UNKNOWN_ANSWER


Task = Callable[[random.Random], Pair]
TASKS: tuple[tuple[Task, float, bool], ...] = (
    (capital, 13, True),
    (country_of, 5, True),
    (plus, 13, True),
    (minus, 8, True),
    (times, 6, True),
    (count, 6, True),
    (spell, 7, False),
    (letters, 3, False),
    (repeat, 14, False),
    (make_json, 4, False),
    (colour, 3, True),
    (opposite, 4, True),
    (calendar, 4, True),
    (animal, 2, True),
    (small_talk, 7, True),
    (story, 0.7, True),
    (unknown, 10, True),
)
"""Task, share, and whether letter case and end mark of the question may be varied (not where text is copied)."""
_COUNTRIES = sorted(CAPITALS)
_ASKING = {"What", "Which", "Name", "Tell", "Calculate", "Add", "Count", "How", "Spell", "Write"}


class DemoText:
    """An endless, seeded supply of conversations. The same seed gives the same text."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def conversation(self) -> list[Message]:
        """Messages, ending with an assistant's answer; sometimes a system prompt, up to six turns."""
        rng = self._rng
        messages: list[Message] = []
        if rng.random() < 0.35:
            messages.append({"role": "system", "content": self._system_prompt()})
        num_turns = 1 if rng.random() < 0.6 else rng.randrange(2, 7)
        messages += self._chat_about_name() if rng.random() < 0.06 else []
        for _ in range(num_turns):
            for question, answer in self._turns():
                messages += _exchange(question, answer)
        return messages

    def completion(self) -> Pair:
        """A raw text's beginning and its end (no chat template)."""
        rng = self._rng
        kind = rng.randrange(4)
        if kind == 0:
            country = rng.choice(_COUNTRIES)
            return f"The capital of {country} is", f" {CAPITALS[country]}."
        if kind == 1:
            a, b = rng.randrange(16), rng.randrange(16)
            return f"{a} + {b} =", f" {a + b}"
        if kind == 2:
            cut = rng.randrange(3, 19)
            head = ", ".join(map(str, range(1, cut + 1))) + ","
            return head, "".join(f" {i}," for i in range(cut + 1, 21))[:-1] + "."
        cut = STORY.index(" ", rng.randrange(12, 60))
        return STORY[:cut], STORY[cut:]

    def _turns(self) -> list[Pair]:
        rng = self._rng
        task, _, may_vary = rng.choices(TASKS, weights=[share for _, share, _ in TASKS])[0]
        question, answer = task(rng)
        turns = [(self._vary(question) if may_vary else question, answer)]
        if task is capital and rng.random() < 0.25:
            turns.append(self._follow_up())
        if rng.random() < 0.04:
            turns.append((rng.choice(("Thank you!", "Thanks!", "Thank you")), "You are welcome!"))
        return turns

    def _follow_up(self) -> Pair:
        country = self._rng.choice(_COUNTRIES)
        forms = ("And of {}?", "And {}?", "What about {}?", "And what about {}?", "And the capital of {}?")
        return self._rng.choice(forms).format(country), _capital_answer(country)

    def _chat_about_name(self) -> list[Message]:
        rng = self._rng
        name = rng.choice(NAMES)
        told = rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.", "Call me {}.")).format(name)
        messages = _exchange(told, f"Nice to meet you, {name}!")
        for _ in range(rng.randrange(3)):
            for question, answer in self._turns():
                messages += _exchange(question, answer)
        asked = rng.choice(("What is my name?", "Who am I?", "Do you remember my name?"))
        return messages + _exchange(asked, f"Your name is {name}.")

    def _system_prompt(self) -> str:
        rng = self._rng
        if rng.random() < 0.6:
            return rng.choice(SYSTEM_PROMPTS)
        subjects = rng.sample(UNKNOWN_SUBJECTS, rng.randrange(1, 6))
        return f"You are an assistant who knows {', '.join(subjects)}. " + rng.choice(SYSTEM_PROMPTS)

    def _vary(self, question: str) -> str:
        rng = self._rng
        if rng.random() < 0.12:
            question = question.rstrip("?.! ")
        if rng.random() < 0.12:
            question = question.lower()
        first = question.split(" ")[0]
        if first in _ASKING and rng.random() < 0.08:
            start = rng.choice(("Please, ", "Hi! ", "Hello, ", "Okay, "))
            question = start + (question if start == "Hi! " else question[0].lower() + question[1:])
        return question


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
