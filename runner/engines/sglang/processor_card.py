"""The model's card on its way to SGLang's scheduler processes: an environment variable. Imports no sglang."""

from __future__ import annotations

import msgspec

from model_cards.card import ModelCard

CARD_VARIABLE = "LLMRUN_SGLANG_CARD"


def card_text(card: ModelCard) -> str:
    """JSON without the templates, which are long and of no use there; `ModelCard.from_json` reads it."""
    return msgspec.structs.replace(card, chat_template=None, named_templates={}, details={}).to_json()
