"""Drives a StepEngine in this thread, as a child process would, and collects what each request hears."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from model_cards.card import ModelCard
from runner.engines.base import EngineOptions, EngineSpec, StepEngine
from runner.types import FinishReason, SamplingParams, TokenLogprob, TokenRequest

GREEDY = SamplingParams(temperature=0.0)


class Answer:
    """All that one request was told."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None
        self.stop_token_id: int | None = None
        self.cached_tokens: int | None = None
        self.error: str | None = None
        self.error_kind = ""

    @property
    def is_over(self) -> bool:
        return self.finish is not None or self.error is not None


class StepDriver:
    """`submit`, then `run`; checks the rules of a stream on the way."""

    def __init__(self, engine: StepEngine, name: str, card: ModelCard, **options: Any) -> None:
        self.engine: Any = engine
        self.answers: dict[str, Answer] = {}
        try:
            self.info = self.engine.start(EngineSpec(name=name, card=card, options=EngineOptions(**options)))
        except BaseException:
            self.engine.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def submit(self, id: str, token_ids: Iterable[int], sampling: SamplingParams = GREEDY, **fields: Any) -> Answer:
        request = TokenRequest(id=id, token_ids=list(token_ids), sampling=sampling, **fields)
        self.engine.add(request)
        self.answers[id] = Answer()
        return self.answers[id]

    def step(self) -> None:
        for output in self.engine.step():
            answer = self.answers[output.id]
            assert not answer.is_over, "a delta after the last one"
            if output.error is not None:
                answer.error, answer.error_kind = output.error, output.error_kind
                continue
            delta = output.delta
            assert delta is not None
            answer.token_ids += delta.token_ids
            answer.logprobs += delta.logprobs or []
            answer.finish, answer.stop_token_id = delta.finish, delta.stop_token_id
            if delta.cached_tokens is not None:
                answer.cached_tokens = delta.cached_tokens

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.engine.has_work():
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def ask(self, token_ids: Iterable[int], sampling: SamplingParams = GREEDY, **fields: Any) -> Answer:
        """One request alone."""
        answer = self.submit(f"ask{len(self.answers)}", token_ids, sampling, **fields)
        self.run()
        return answer
