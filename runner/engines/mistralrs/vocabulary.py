"""Vocabulary: token ids to the texts that mistral.rs takes, and back from what it says of each new token.

mistral.rs reads and writes text, but tells the bytes of each token and the ids of the likeliest (Python package 0.9).
"""

from __future__ import annotations

from typing import Any, Protocol

from runner.errors import EngineFailed, RequestError


class Tokens(Protocol):
    """The part of model_cards.tokenizer.Tokenizer that is needed."""

    special_ids: frozenset[int]

    def all_token_bytes(self) -> list[bytes]:
        """What each token adds to a text."""


class TextReader(Protocol):
    """The part of mistralrs.Runner that is needed."""

    def tokenize_text(self, text: str, add_special_tokens: bool, enable_thinking: bool | None) -> list[int]:
        """Ids of a text."""

    def detokenize_text(self, tokens: list[int], skip_special_tokens: bool) -> str:
        """Text of ids."""


class Vocabulary:
    """`renamed`: tokens that mistral.rs knows by another name (tokenizer_file.py), which it tells like all others.

    `num_added`: tokens that it puts before every prompt by itself (begin of text).
    """

    def __init__(
        self, tokens: Tokens, reader: TextReader, *, renamed: dict[int, bytes] | None = None, num_added: int = 0
    ) -> None:
        self._reader = reader
        self._pieces = tokens.all_token_bytes()
        self.renamed_ids = frozenset(renamed or ())
        for token, name in (renamed or {}).items():
            self._pieces[token] = name
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(self._pieces):
            self._ids.setdefault(piece, token)
        self.hidden_ids = tokens.special_ids - self.renamed_ids
        """Those that mistral.rs makes without telling."""
        self.num_added = num_added

    def prompt_text(self, ids: list[int]) -> str:
        """A text that mistral.rs reads as exactly these ids. Raises RequestError where there is none.

        There is none, for one, where a user typed the text of a control token, which is not that token.
        """
        added, rest = ids[: self.num_added], ids[self.num_added :]
        text = self._reader.detokenize_text(rest, False)
        if self._read(text) != rest:
            text = b"".join(self._pieces[token] for token in rest).decode("utf-8", "replace")
        if not rest or self._read(text) != rest or len(added) != self.num_added:
            raise RequestError(
                "mistral.rs takes prompts as text, and would read this one as other tokens (the text of a control "
                "token in a message, or token ids that no text gives); change the prompt or use another engine",
                field="prompt",
            )
        return text

    def _read(self, text: str) -> list[int]:
        return self._reader.tokenize_text(text, False, None)

    def text_of(self, token: int) -> str:
        """Of a special token, as it is written."""
        return self._reader.detokenize_text([token], False)

    def id_of(self, row: Any) -> int:
        """The token of a mistralrs.ResponseLogprob. Exact: of two tokens of equal bytes, the one that is likeliest."""
        for top in row.top_logprobs:
            if top.logprob == row.logprob and top.bytes == row.token:
                piece = self._pieces[top.token] if top.token < len(self._pieces) else b""
                if row.bytes is None or bytes(row.bytes) == piece:
                    return int(top.token)
        piece = bytes(row.bytes) if row.bytes is not None else row.token.encode()
        if piece not in self._ids:
            raise EngineFailed(f"mistral.rs answered with {row.token!r}, which is no token of this model")
        return self._ids[piece]
