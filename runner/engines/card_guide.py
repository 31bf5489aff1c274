"""CardGuide: guided decoding for the model of a card; its vocabulary is read when the first request asks for it."""

from __future__ import annotations

from model_cards.card import ModelCard
from model_cards.errors import CardError
from model_cards.tokenizer import load_tokenizer
from runner.engines.guidance import Guide, Matcher
from runner.errors import UnsupportedField
from runner.types import TokenRequest


class CardGuide:
    """`vocab_size` is the width of a row of logits."""

    def __init__(self, card: ModelCard, vocab_size: int) -> None:
        self._card = card
        self._vocab_size = vocab_size
        self._guide: Guide | None = None

    def matcher(self, request: TokenRequest) -> Matcher | None:
        """For a request that is guided. Raises RequestError, UnsupportedField."""
        if request.sampling.guided is None:
            return None
        if self._guide is None:
            self._guide = self._make()
        return self._guide.matcher(request.sampling.guided)

    def _make(self) -> Guide:
        try:
            tokenizer = load_tokenizer(self._card)
        except CardError as problem:
            raise UnsupportedField(f"guided decoding needs this model's tokenizer: {problem}", field="guided") from None
        return Guide(tokenizer, vocab_size=self._vocab_size, eos_token_ids=self._card.eos_token_ids)
