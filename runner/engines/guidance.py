"""Guided decoding: a schema, regex, grammar or list of choices as a mask over the vocabulary, token by token.

Shared by engines that see logits; runs on the engine's side. llguidance walks a trie of the vocabulary along the
grammar's lexer states, so a mask costs some 10 us and no token is checked by itself (llama.cpp's own grammar sampler
checks all: 8 to 10 ms a token at 32,000). Does not know sampling.

What is honoured or refused is llguidance's reading of JSON Schema: an unknown keyword is an error, never ignored.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from runner.engines import gbnf
from runner.errors import EngineFailed, RequestError, UnsupportedField
from runner.types import GuidedDecoding

CAPABILITIES = tuple(f"guided.{name}" for name in GuidedDecoding.__struct_fields__)
_FIELD = "guided"
_JSON: Any = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}"}
"""As llama.cpp bounds it: a weak model that may write blanks without end does so until max_tokens."""
_CACHED_GRAMMARS = 32
_NO_TEXT = "NoExtensionBias"
_LIMITS = ("lexer error", "; max is ", "too many")
"""llguidance's words for what is the request's fault."""


class Vocabulary(Protocol):
    """The part of model_cards.tokenizer.Tokenizer that is needed."""

    special_ids: frozenset[int]

    def all_token_bytes(self) -> list[bytes]:
        """What each token adds to a text."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Text -> ids."""


class _Tokens:
    """The shape that llguidance's TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_id: int) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = eos_token_id
        known = vocabulary.all_token_bytes()[:vocab_size]
        self.tokens = known + [b""] * (vocab_size - len(known))  # rows of logits are often padded
        self.special_token_ids = sorted(token for token in vocabulary.special_ids if token < vocab_size)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text only")  # llguidance tries bytes first, to see whether it may
        return self._vocabulary.encode(text, parse_special=False)


class Guide:
    """Makes matchers for one vocabulary; compiled grammars are kept, since clients repeat them."""

    def __init__(self, vocabulary: Vocabulary, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`vocab_size` is the width of a row of logits. Raises UnsupportedField for a model without an end token.

        From the bytes of all tokens and not from a tokenizer.json: exact for every kind of tokenizer, and faster
        (128k tokens: 0.4 s instead of 1.2 s).
        """
        if not eos_token_ids:
            raise UnsupportedField("guided decoding needs a model with an end token; its card names none", field=_FIELD)
        wrapper = TokenizerWrapper(_Tokens(vocabulary, vocab_size, eos_token_ids[0]))
        self._tokenizer = LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[bytes, Any] = OrderedDict()

    def matcher(self, guided: GuidedDecoding) -> Matcher:
        """A fresh matcher. Raises RequestError that names the fault of the schema or grammar."""
        key = msgspec.json.encode(guided)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compile(guided)
            self._compiled[key] = compiled
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return Matcher(compiled.deep_copy(), self._vocab_size)

    def _compile(self, guided: GuidedDecoding) -> Any:
        name, text = grammar_text(guided)
        matcher = LLMatcher(self._tokenizer, text, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what is without end, or too large, shows only here
        if _NO_TEXT in matcher.get_error():
            raise RequestError(f"guided.{name}: no text can match it", field=_FIELD)
        if matcher.is_error():
            raise RequestError(f"guided.{name}: {_first_line(matcher.get_error())}", field=_FIELD)
        return matcher


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def mask(self, row: NDArray[np.float32]) -> None:
        """Set the logits of all tokens that cannot come next to -inf; end tokens stay where the answer may end.

        Raises RequestError where the grammar became too complex.
        """
        allowed = np.unpackbits(self.bits(), count=self._vocab_size, bitorder="little")
        np.copyto(row, -np.inf, where=allowed == 0)

    def bits(self) -> NDArray[np.uint8]:
        """The tokens that can come next, one bit each, lowest first, padded to 32. Read-only; raises as `mask` does."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self._give_up()
        return bits

    def fork(self) -> Matcher:
        """Another matcher that stands at the same place."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size)

    def allows(self, token: int) -> bool:
        """Whether `token` can come next; much cheaper than a mask."""
        return int(self._matcher.validate_tokens([token])) == 1

    def accept(self, token: int) -> None:
        """`token` was chosen. Raises EngineFailed where the grammar does not allow it: our fault."""
        if not self._matcher.consume_token(token):
            self._give_up()

    def _give_up(self) -> NoReturn:
        said = _first_line(self._matcher.get_error())
        if any(limit in said for limit in _LIMITS):
            raise RequestError(f"the grammar is too complex: {said}; ask for a simpler one", field=_FIELD)
        raise EngineFailed(f"guided decoding failed: {said}")

    @property
    def is_complete(self) -> bool:
        """Nothing can follow: the answer is over even if the model's end token is ignored."""
        return bool(self._matcher.is_stopped())


def grammar_text(guided: GuidedDecoding) -> tuple[str, str]:
    """The field that is set and its grammar in llguidance's own form. Raises RequestError."""
    chosen = [name for name in guided.__struct_fields__ if getattr(guided, name) is not None]
    if len(chosen) != 1:
        raise RequestError(f"guided: exactly one of its fields must be set, got {chosen or 'none'}", field=_FIELD)
    name = chosen[0]
    value = getattr(guided, name)
    if name == "json_object":
        return name, LLMatcher.grammar_from_json_schema({"type": "object"}, defaults=_JSON)
    if name == "json_schema":
        return name, _from_schema(value)
    if name == "regex":
        return name, LLMatcher.grammar_from_regex(_unanchored(value))
    if name == "choice":
        return name, _from_choice(value)
    return name, _from_gbnf(value)


def _from_schema(schema: dict[str, Any] | bool) -> str:
    if schema is False:
        raise RequestError("guided.json_schema: the schema `false` allows no answer", field=_FIELD)
    try:
        return LLMatcher.grammar_from_json_schema({} if schema is True else schema, defaults=_JSON)
    except ValueError as problem:
        raise RequestError(f"guided.json_schema: {_first_line(str(problem))}", field=_FIELD) from None


def _from_choice(choices: Sequence[str]) -> str:
    if not choices:
        raise RequestError("guided.choice: the list is empty; give at least one text", field=_FIELD)
    # A terminal: the lexer takes any number of alternatives, the parser at most 2,000.
    return LLMatcher.grammar_from_lark("start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text) for text in choices))


def _from_gbnf(text: str) -> str:
    try:
        return LLMatcher.grammar_from_lark(gbnf.to_lark(text))
    except gbnf.GbnfError as problem:
        raise RequestError(f"guided.grammar: {problem}", field=_FIELD) from None


def _unanchored(pattern: str) -> str:
    """The whole answer must match anyway; llguidance knows no anchors."""
    if pattern.startswith("^"):
        pattern = pattern[1:]
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    return pattern


def _first_line(message: str) -> str:
    return " ".join(message.split("\n<state>")[0].split())[:500]
