"""Child side, in SGLang's scheduler processes: our Edits as SGLang's CustomLogitProcessor, one row a request.

Nothing that a request asks may end the scheduler: an error becomes the end of that one request.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

from model_cards.card import ModelCard
from runner.engines.card_guide import CardGuide
from runner.engines.sglang.edits import Edits
from runner.engines.sglang.processor_card import CARD_VARIABLE
from runner.engines.sglang.sampling import REQUEST_KEY
from runner.errors import LlmrunError, RequestError
from runner.types import TokenRequest

_STATE_KEY = "__llmrun__"


class LlmrunProcessor(CustomLogitProcessor):  # type: ignore[misc]
    """SGLang makes one of these whenever the batch changes; a request's state lies in its own parameters."""

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> torch.Tensor:
        """`logits` [rows, vocabulary], changed in place and returned."""
        for row, params in zip(logits, custom_param_list or (), strict=True):
            request = params["__req__"]
            try:
                _apply(row, params, request)
            except Exception as error:
                _end(request, error)
        return logits


def _apply(row: torch.Tensor, params: dict[str, Any], request: Any) -> None:
    edits = params.get(_STATE_KEY)
    if edits is None:
        edits = params[_STATE_KEY] = _make_edits(params[REQUEST_KEY], len(row))
    values = row.float().cpu().numpy().copy()
    edits.apply(values, request.origin_input_ids, request.output_ids)
    row.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _make_edits(text: str, vocab_size: int) -> Edits:
    request = msgspec.json.decode(text, type=TokenRequest)
    return Edits(request, _guide(vocab_size).matcher(request))


@lru_cache(maxsize=1)
def _guide(vocab_size: int) -> CardGuide:
    return CardGuide(ModelCard.from_json(os.environ[CARD_VARIABLE]), vocab_size)


def _end(request: Any, error: Exception) -> None:
    """End this one request with the error's words (read by answer.py)."""
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    if not isinstance(error, LlmrunError):
        traceback.print_exception(error, file=sys.stderr)
    status = HTTPStatus.BAD_REQUEST if isinstance(error, RequestError) else HTTPStatus.INTERNAL_SERVER_ERROR
    request.to_finish = FINISH_ABORT(str(error), status)
