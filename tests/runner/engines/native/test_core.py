"""Core with a model whose every answer depends on the whole plan: batched equals alone, whatever happens around it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.native.core import Core, CoreConfig, Sample
from runner.engines.native.sampling_state import make_state
from runner.engines.native.sequence import Group
from runner.errors import ContextOverflow, EngineBusy, RequestError
from runner.types import SamplingParams, TokenLogprob, TokenRequest
from tests.runner.engines.native.fake_model import VOCAB, Client, FakeModel, candidates, naive, run, step


def make_config(**changes: object) -> CoreConfig:
    sizes = {"num_blocks": 64, "block_size": 4, "max_running": 8, "max_batched_tokens": 64, "context_length": 128}
    return CoreConfig(**{**sizes, "vocab_size": VOCAB, **changes})  # type: ignore[arg-type]


def make_engine(**changes: object) -> tuple[Core, FakeModel, Client]:
    config = make_config(**changes)
    return Core(config), FakeModel(config.num_blocks, config.block_size), Client()


def make_request(name: str, prompt: list[int], max_tokens: int = 8, **fields: object) -> TokenRequest:
    return TokenRequest(id=name, token_ids=prompt, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def beams(width: int, length_penalty: float = 1.0) -> SamplingParams:
    return SamplingParams(beam_width=width, length_penalty=length_penalty)


prompts = st.builds(
    lambda shared, own: ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2)[:shared] + own,
    st.integers(0, 20),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
samplings = st.one_of(
    st.just(SamplingParams()),
    st.just(SamplingParams()),
    st.builds(beams, st.integers(2, 4), st.sampled_from([-1.0, 0.0, 1.0, 2.0])),
)
requests = st.builds(
    make_request,
    st.just(""),
    prompts,
    st.integers(1, 12),
    stop_token_ids=st.sampled_from([(), (3,), (0, 7, 11)]),
    adapter=st.sampled_from([None, None, "a", "b"]),
    sampling=samplings,
)
configs = st.builds(
    make_config,
    num_blocks=st.integers(2, 24),
    block_size=st.integers(1, 5),
    max_running=st.integers(1, 6),
    max_batched_tokens=st.integers(1, 24),
    prefix_cache=st.booleans(),
)


def happenings_of(requests: st.SearchStrategy[TokenRequest]) -> st.SearchStrategy[list[tuple[str, object]]]:
    """Arrivals, steps, cancels and failures."""
    return st.lists(
        st.one_of(
            st.tuples(st.just("add"), requests),
            st.tuples(st.just("add"), requests),
            st.tuples(st.just("step"), st.integers(1, 6)),
            st.tuples(st.just("cancel"), st.integers(0, 20)),
            st.tuples(st.just("fail"), st.integers(0, 3)),
        ),
        min_size=1,
        max_size=30,
    )


@settings(max_examples=400, deadline=None)
@given(configs, happenings_of(requests))
def test_batched_equals_alone_whatever_happens(config: CoreConfig, events: list[tuple[str, object]]) -> None:
    play(config, events)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_beams_among_others_in_a_cache_that_is_too_small(data: st.DataObject) -> None:
    """Three requests, two of them searches, in a cache that just holds the largest: all sorts of preemption."""
    asked = [
        make_request("", data.draw(prompts), data.draw(st.integers(1, 12)), sampling=sampling)
        for sampling in (SamplingParams(), beams(2), beams(3))
    ]
    size = data.draw(st.integers(1, 4))
    needed = max(Group(request, 0, b"").max_blocks(size) for request in asked)
    config = make_config(
        num_blocks=needed + data.draw(st.integers(0, 3)),
        block_size=size,
        max_batched_tokens=data.draw(st.integers(1, 40)),
        prefix_cache=data.draw(st.booleans()),
    )
    events: list[tuple[str, object]] = []
    for request in data.draw(st.permutations(asked)):
        events += [("add", request), ("step", data.draw(st.integers(1, 9)))]
    if data.draw(st.booleans()):
        events += [("fail", data.draw(st.integers(0, 5))), ("step", 3)]
    play(config, events)


def play(config: CoreConfig, events: list[tuple[str, object]], most_steps: int = 1) -> None:
    """Let it all happen, then run to the end and compare every answer with the request's alone."""
    model = FakeModel(config.num_blocks, config.block_size, most_steps=most_steps)
    core, client = Core(config), Client()
    added: dict[str, TokenRequest] = {}
    for number, (kind, value) in enumerate(events):
        if kind == "add":
            assert isinstance(value, TokenRequest)
            request = make_request(str(number), value.token_ids, value.max_tokens, stop_token_ids=value.stop_token_ids,
                                   adapter=value.adapter, sampling=value.sampling)  # fmt: skip
            try:
                core.add(request, make_state(request, seed=0))
            except (ContextOverflow, RequestError):
                continue
            added[request.id] = request
        elif kind == "cancel":
            core.cancel(str(value))
            core.check()
        elif kind == "step":
            for _ in range(int(str(value))):
                if core.has_work():
                    step(core, model, client)
        elif core.has_work():
            fail_a_step(core, model, client, guilty=int(str(value)))
    run(core, model, client)
    cancelled = {str(value) for kind, value in events if kind == "cancel"}
    for name, request in added.items():
        check_answer(client, request, is_whole=name not in cancelled and name not in client.errors)
    assert core.stats()["kv_used_tokens"] == 0


def check_answer(client: Client, request: TokenRequest, *, is_whole: bool) -> None:
    wanted, finish = naive(request)
    if is_whole:
        assert client.answer(request.id) == (wanted, finish)
    elif client.deltas.get(request.id):
        heard, _ = client.answer(request.id)
        assert heard == wanted[: len(heard)]


def fail_a_step(core: Core, model: FakeModel, client: Client, guilty: int) -> None:
    """The step raises after it wrote something; the fault is known to lie with one sequence, or not."""
    scheduled = core.schedule()
    assert scheduled is not None
    model.cache[scheduled.plan.slots] = -99
    model.cache.reshape(-1, model.block_size)[scheduled.plan.copies[:, 1]] = -99
    whose = [scheduled.chunks[guilty].sequence] if guilty < len(scheduled.chunks) else None
    client.hear(core.fail(scheduled, "broken", whose))
    core.check()


def test_preemption_happens_and_changes_nothing() -> None:
    core, model, client = make_engine(num_blocks=12, block_size=2, max_running=6, max_batched_tokens=16)
    asked = [make_request(str(at), [at, at + 1, at + 2], 12) for at in range(6)]
    for request in asked:
        core.add(request)
    run(core, model, client)
    assert core.stats()["num_preemptions"] > 0
    for request in asked:
        check_answer(client, request, is_whole=True)


def test_a_preempted_request_waits_in_front() -> None:
    core, model, client = make_engine(num_blocks=8, block_size=1, max_running=2, max_batched_tokens=16)
    for name, prompt in (("first", [1, 2]), ("second", [3, 4]), ("third", [5])):
        core.add(make_request(name, prompt, 5))
    while not core.stats()["num_preemptions"]:
        step(core, model, client)
    ends = []
    while core.has_work():
        before = {name for name, deltas in client.deltas.items() if deltas[-1].finish}
        step(core, model, client)
        ends += sorted({name for name, deltas in client.deltas.items() if deltas[-1].finish} - before)
    assert ends == ["first", "second", "third"]


@pytest.mark.parametrize("length", [15, 16, 17])
def test_a_second_request_shares_the_prefix(length: int) -> None:
    core, model, client = make_engine()
    prompt = [at % VOCAB for at in range(length)]
    core.add(make_request("one", prompt))
    run(core, model, client)
    core.add(make_request("two", prompt))
    assert core.schedule().plan.num_tokens <= 4  # type: ignore[union-attr]
    run(core, model, client)
    assert client.deltas["one"][0].cached_tokens == 0
    assert client.deltas["two"][0].cached_tokens == (length - 1) // 4 * 4
    assert client.answer("one") == client.answer("two")
    assert core.stats()["prefix_cache_hits"] == (length - 1) // 4 * 4


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    core, model, client = make_engine(max_batched_tokens=256, context_length=128)
    prompt = [at % VOCAB for at in range(40)]
    for name in "abcd":
        core.add(make_request(name, prompt))
    assert step(core, model, client).plan.num_tokens == 40
    assert step(core, model, client).plan.num_tokens == 1 + 3 * 4
    run(core, model, client)
    assert len({str(client.answer(name)) for name in "abcd"}) == 1


def test_adapters_share_nothing() -> None:
    core, model, client = make_engine()
    for adapter in (None, "a", "b"):
        core.add(make_request(str(adapter), list(range(12)), adapter=adapter))
        run(core, model, client)
    assert core.stats()["prefix_cache_hits"] == 0


def test_without_prefix_cache_nothing_is_shared() -> None:
    core, model, client = make_engine(prefix_cache=False)
    for name in "ab":
        core.add(make_request(name, list(range(12))))
        run(core, model, client)
    assert client.deltas["b"][0].cached_tokens == 0


def test_a_long_prompt_comes_in_chunks_beside_a_decode() -> None:
    core, model, client = make_engine(max_batched_tokens=8)
    core.add(make_request("short", [1, 2, 3], 30))
    step(core, model, client)
    core.add(make_request("long", [5] * 40, 4))
    sizes = [step(core, model, client).plan.num_tokens for _ in range(4)]
    assert sizes == [8, 8, 8, 8]
    run(core, model, client)
    assert client.answer("long") == naive(make_request("long", [5] * 40, 4))


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    core, model, client = make_engine(num_blocks=4, block_size=4, context_length=1000)
    with pytest.raises(
        ContextOverflow, match=r"prompt has 10 tokens and max_tokens is 7.* room for 16 .*up to 20"
    ) as caught:
        core.add(make_request("big", [1] * 10, 7))
    assert (caught.value.prompt_tokens, caught.value.context_length, caught.value.max_tokens) == (10, 16, 7)
    core.add(make_request("fits", [1] * 10, 6))
    run(core, model, client)
    assert client.answer("fits") == naive(make_request("fits", [1] * 10, 6))


def test_context_length_is_a_limit_of_its_own() -> None:
    core, _, _ = make_engine(context_length=16)
    with pytest.raises(ContextOverflow, match="the context is 16 tokens"):
        core.add(make_request("big", [1] * 10, 7))


def test_beams_that_can_never_fit_are_refused() -> None:
    core, model, client = make_engine(num_blocks=8, block_size=4, max_running=4)
    with pytest.raises(ContextOverflow, match="with 4 beams"):
        core.add(make_request("wide", [1] * 9, 8, sampling=beams(4)))
    with pytest.raises(RequestError, match="beam_width must be from 1 to 4, got 5"):
        core.add(make_request("wider", [1], 1, sampling=beams(5)))
    fitting = make_request("fits", [1] * 8, 4, sampling=beams(4))
    core.add(fitting)
    run(core, model, client)
    assert client.answer("fits") == naive(fitting)


def test_beams_come_back_into_the_room_that_they_were_admitted_for() -> None:
    """The prompt is held once for all of them: the leader is computed first, the others find its blocks."""
    request = make_request("beams", list(range(16)), 2, sampling=beams(3))
    num_blocks = Group(request, 0, b"").max_blocks(1)
    core, model, client = make_engine(num_blocks=num_blocks, block_size=1, max_batched_tokens=12)
    core.add(request)
    for _ in range(2):
        step(core, model, client)
    scheduler = core._scheduler
    (group,) = scheduler.running
    assert [len(sequence.token_ids) for sequence in group.sequences] == [17, 17, 17]
    scheduler.preempt(group)
    scheduler.pool.free_all([scheduler.pool.allocate() for _ in range(num_blocks)])  # nothing is cached any more
    run(core, model, client)
    assert client.answer("beams") == naive(request)


def test_copies_of_a_failed_step_are_not_trusted() -> None:
    core, model, client = make_engine()
    search, other = make_request("beams", [1, 2, 3], 8, sampling=beams(3)), make_request("other", [7, 8], 12)
    core.add(search)
    core.add(other)
    core.add(make_request("guilty", [9], 12))
    step(core, model, client)
    fail_a_step(core, model, client, guilty=4)
    assert list(client.errors) == ["guilty"]
    run(core, model, client)
    assert client.answer("beams") == naive(search)
    assert client.answer("other") == naive(other)


def test_a_full_queue_is_told() -> None:
    core, _, _ = make_engine(max_running=1, max_queue=2)
    for name in "abc":
        core.add(make_request(name, [1]))
    with pytest.raises(EngineBusy, match="1 requests run and 2 wait"):
        core.add(make_request("d", [1]))


def test_the_same_id_twice_is_two_requests_and_one_cancel() -> None:
    core, _, _ = make_engine()
    core.add(make_request("twin", [1, 2]))
    core.add(make_request("twin", [3, 4]))
    assert core.schedule().plan.num_sequences == 2  # type: ignore[union-attr]
    core.cancel("twin")
    core.cancel("unknown")
    core.check()
    assert not core.has_work()


def test_a_cancel_in_the_middle_of_a_step_is_honoured() -> None:
    core, model, client = make_engine()
    core.add(make_request("gone", list(range(9))))
    core.add(make_request("stays", [1, 2]))
    scheduled = core.schedule()
    assert scheduled is not None
    samples = model.compute(scheduled)
    core.cancel("gone")
    client.hear(core.commit(scheduled, samples))
    core.check()
    run(core, model, client)
    assert list(client.deltas) == ["stays"]
    assert client.answer("stays") == naive(make_request("stays", [1, 2]))


def test_an_error_of_one_row_ends_one_request() -> None:
    core, model, client = make_engine()
    core.add(make_request("bad", [1, 2]))
    core.add(make_request("good", [3, 4]))
    scheduled = core.schedule()
    assert scheduled is not None
    samples = model.compute(scheduled)
    samples[0] = Sample(0, error="logits are not finite")
    client.hear(core.commit(scheduled, samples))
    run(core, model, client)
    assert client.errors == {"bad": "logits are not finite"}
    assert client.answer("good") == naive(make_request("good", [3, 4]))


def test_failing_everything() -> None:
    core, _, client = make_engine(max_running=1)
    core.add(make_request("runs", [1, 2]))
    core.add(make_request("waits", [3, 4]))
    client.hear(core.fail(core.schedule(), "boom"))
    assert client.errors == {"runs": "boom"}
    client.hear(core.fail(None, "bang"))
    assert client.errors == {"runs": "boom", "waits": "bang"}
    core.check()
    assert not core.has_work()


def test_stop_ids_logprobs_and_the_end_of_a_grammar() -> None:
    core, _, client = make_engine()
    core.add(make_request("stops", [1], 9, stop_token_ids=(5,)))
    core.add(make_request("ends", [2], 9))
    tell = TokenLogprob(4, -0.5, [(4, -0.5)])
    scheduled = core.schedule()
    assert scheduled is not None
    client.hear(core.commit(scheduled, [Sample(4, tell), Sample(4)]))
    scheduled = core.schedule()
    assert scheduled is not None
    client.hear(core.commit(scheduled, [Sample(5), Sample(6, is_end=True)]))
    assert client.answer("stops") == ([4], "stop")
    assert client.deltas["stops"][0].logprobs == [tell]
    assert client.deltas["stops"][-1].stop_token_id == 5
    assert client.answer("ends") == ([4, 6], "stop")
    assert not core.has_work()


def test_beams_without_any_candidate_end_with_an_error() -> None:
    core, _, client = make_engine()
    core.add(make_request("beams", [1], 4, sampling=beams(2)))
    scheduled = core.schedule()
    assert scheduled is not None
    client.hear(core.commit(scheduled, [Sample(-1, candidates=[])]))
    assert "no token left" in client.errors["beams"]


def test_beams_fork_the_state_of_the_sampler() -> None:
    class State:
        def __init__(self, depth: int = 0) -> None:
            self.depth = depth

        def fork(self) -> State:
            return State(self.depth + 1)

    core, _, _ = make_engine()
    core.add(make_request("beams", [1, 2, 3], 4, sampling=beams(3)), State())
    scheduled = core.schedule()
    assert scheduled is not None
    core.commit(scheduled, [Sample(-1, candidates=candidates([1], 6))])
    scheduled = core.schedule()
    assert scheduled is not None
    assert [sequence.sampling.depth for sequence in scheduled.sampled] == [0, 1, 1]
    assert [sequence.num_output for sequence in scheduled.sampled] == [1, 1, 1]
    assert len(scheduled.plan.copies) == 2, "who writes last to the shared block keeps it"
