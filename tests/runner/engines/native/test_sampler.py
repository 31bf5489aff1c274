"""The sampler, on host and batched, against llamacpp/sampler.py: same sets, probabilities and log-probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runner.engines.guidance import Guide  # noqa: E402
from runner.engines.llamacpp import sampler as sibling  # noqa: E402
from runner.engines.native import sampler as native  # noqa: E402
from runner.engines.native.distribution import best_tokens  # noqa: E402
from runner.engines.native.sampler import Sampler  # noqa: E402
from runner.engines.native.sampling_state import make_state, uniforms  # noqa: E402
from runner.errors import EngineFailed, RequestError  # noqa: E402
from runner.types import GuidedDecoding, SamplingParams, TokenRequest  # noqa: E402

VOCAB = 1100
"""Not a multiple of a block."""


def make_rows(count: int, seed: int = 1, scale: float = 3.0, vocab: int = VOCAB) -> Any:
    rows = np.random.default_rng(seed).standard_normal((count, vocab)).astype(np.float32)
    return torch.from_numpy(rows * np.float32(scale))


def make_stream(
    prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), matcher: Any = None, seed: int = 0, **params: Any
) -> Any:
    fields = {name: params.pop(name) for name in ("min_tokens", "stop_token_ids") if name in params}
    request = TokenRequest(id="x", token_ids=list(prompt), sampling=SamplingParams(**params), **fields)
    state = make_state(request, seed=seed, matcher=matcher)
    return SimpleNamespace(
        request=request, token_ids=[*prompt, *output], prompt_len=len(prompt), num_output=len(output), sampling=state
    )


class _Moving(Sampler):
    """A Sampler that takes logits from anywhere."""

    def sample(self, logits: Any, streams: Any) -> Any:
        return super().sample(logits.to(self._device), streams)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WAYS = [
    pytest.param(("cpu", True), id="host"),
    pytest.param(("cpu", False), id="batched"),
    pytest.param(("cuda", False), id="cuda", marks=[pytest.mark.gpu, NO_GPU]),
]


@pytest.fixture(params=WAYS)
def make_sampler(request: pytest.FixtureRequest) -> Any:
    """Makes a Sampler for a vocabulary's size: each way of choosing."""
    device, on_host = request.param
    return lambda vocab=VOCAB: _Moving(vocab, device, on_host=on_host)


@pytest.fixture
def sample(make_sampler: Any) -> Any:
    """One step of a fresh Sampler."""
    return lambda logits, *streams: make_sampler(logits.shape[1]).sample(logits, streams)


@pytest.fixture
def choose(sample: Any) -> Any:
    """The token for one row."""
    return lambda row, **params: sample(row.reshape(1, -1), make_stream(**params))[0].token_id


def siblings(stream: Any, vocab: int = VOCAB) -> Any:
    """The sibling's Sampler, which has heard the same output."""
    made = sibling.Sampler(stream.request, vocab_size=vocab, seed=0)
    for token in stream.token_ids[stream.prompt_len :]:
        made.accept(token)
    return made


def sibling_distribution(stream: Any, row: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Any]:
    """The tokens that the sibling may draw, and their probabilities."""
    drawn_from: list[Any] = []
    place = 0

    def draw(logits: Any, uniform: float) -> int:
        drawn_from.append(logits)
        return place

    made, ids = siblings(stream), []
    with monkeypatch.context() as patch:
        patch.setattr(sibling, "draw", draw)
        while place == 0 or place < len(drawn_from[0]):
            ids.append(made.choose(row, stream.token_ids, stream.num_output))
            place += 1
    weights = np.exp(drawn_from[0].astype(np.float64))
    return ids, weights / weights.sum()


def random_params(seed: int) -> dict[str, Any]:
    """Some of everything; about half of the settings are off."""
    random = np.random.default_rng(seed)

    def maybe(value: Any, neutral: Any) -> Any:
        return value if random.random() < 0.4 else neutral

    return {
        "temperature": float(random.uniform(0.2, 2.0)),
        "top_k": maybe(int(random.integers(1, 200)), 0),
        "top_p": maybe(float(random.uniform(0.05, 0.999)), 1.0),
        "min_p": maybe(float(random.uniform(0.001, 0.3)), 0.0),
        "typical_p": maybe(float(random.uniform(0.1, 0.95)), 1.0),
        "repetition_penalty": maybe(float(random.uniform(0.7, 1.8)), 1.0),
        "presence_penalty": maybe(float(random.uniform(-1, 1)), 0.0),
        "frequency_penalty": maybe(float(random.uniform(-1, 1)), 0.0),
        "logit_bias": maybe({int(token): float(random.normal()) * 3 for token in random.integers(0, VOCAB, 9)}, None),
        "bad_words_ids": maybe(((3,), (4, 5), (6, 7, 8)), ()),
        "min_tokens": maybe(9, 0),
        "stop_token_ids": (11, 12),
        "prompt": tuple(random.integers(0, 40, 30).tolist()),
        "output": maybe((*random.integers(0, 40, 5).tolist(), 6, 7), ()),
    }


@pytest.mark.parametrize("seed", range(60))
def test_draws_follow_the_siblings_distribution(seed: int, monkeypatch: pytest.MonkeyPatch, sample: Any) -> None:
    row = make_rows(1, seed, scale=[0.3, 1.0, 3.0][seed % 3])
    number = 1000
    stream = make_stream(**random_params(seed))
    ids, wanted = sibling_distribution(stream, row[0].numpy(), monkeypatch)
    monkeypatch.setattr(native, "uniforms", lambda seeds, counters: (np.arange(len(seeds)) + 0.5) / number)
    streams = [make_stream(**random_params(seed)) for _ in range(number)]
    drawn = [one.token_id for one in sample(row.expand(number, -1), *streams)]
    counts = np.bincount(drawn, minlength=VOCAB)
    assert set(drawn) <= set(ids)
    assert np.abs(counts[ids] - wanted * number).max() <= 1.001
    if streams[0].sampling.num_head and stream.sampling.params.top_p < 1.0:
        assert streams[0].sampling.num_head // 2 == len(ids)


@pytest.mark.parametrize("seed", range(20))
def test_greedy_edited_tokens_are_the_siblings_in_one_mixed_batch(seed: int, sample: Any) -> None:
    rows = make_rows(30, seed, scale=1.0)
    streams = [make_stream(**{**random_params(100 * seed + at), "temperature": 0.0}) for at in range(30)]
    wanted = [
        siblings(stream).choose(row.numpy(), stream.token_ids, stream.num_output)
        for row, stream in zip(rows, streams, strict=True)
    ]
    before = rows.clone()
    assert [one.token_id for one in sample(rows, *streams)] == wanted
    assert torch.equal(rows, before)


def test_penalties_keep_up_with_the_output(make_sampler: Any) -> None:
    """Streams come and go between steps; the tables grow and their rows are used again."""
    random = np.random.default_rng(5)
    ours = make_sampler()
    streams = [make_stream(**{**random_params(at), "temperature": 0.0}) for at in range(20)]
    for step in range(30):
        rows = make_rows(len(streams), step, scale=1.0)
        chosen = ours.sample(rows, streams)
        for row, stream, one in zip(rows, streams, chosen, strict=True):
            assert one.token_id == siblings(stream).choose(row.numpy(), stream.token_ids, stream.num_output)
            stream.token_ids.append(one.token_id)
            stream.num_output += 1
        leaving = int(random.integers(len(streams)))
        streams[leaving] = make_stream(**{**random_params(1000 + step), "temperature": 0.0})
    assert len(ours._penalties._ids) <= 32


def test_penalties_of_a_fork_are_its_own(make_sampler: Any) -> None:
    row = torch.zeros(2, VOCAB)
    row[:, 5], row[:, 6] = 1.0, 0.9
    ours = make_sampler()
    first = make_stream(temperature=0.0, presence_penalty=0.5)
    assert ours.sample(row[:1], [first])[0].token_id == 5
    first.token_ids.append(9)
    second = SimpleNamespace(**{**vars(first), "token_ids": [1, 2, 5], "sampling": first.sampling.fork()})
    assert [one.token_id for one in ours.sample(row, [first, second])] == [5, 6]


@pytest.mark.parametrize("params", [{}, {"top_k": 40}, {"top_p": 0.9}, {"typical_p": 0.5}, {"min_p": 0.01}])
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(params: dict[str, Any], sample: Any) -> None:
    vocab = 5000
    rows = make_rows(64, vocab=vocab)
    streams = [make_stream(seed=at, output=(1,) * (at % 7), **params) for at in range(64)]
    together = [one.token_id for one in sample(rows, *streams)]
    alone = [sample(rows[at : at + 1], stream)[0].token_id for at, stream in enumerate(streams)]
    mixed = sample(rows, *(one if at % 2 else make_stream(top_k=3) for at, one in enumerate(streams)))
    assert together == alone
    assert together[1::2] == [one.token_id for one in mixed][1::2]
    assert len(set(together)) > 10


def test_uniforms_are_uniform_and_depend_on_both_numbers() -> None:
    seeds, counters = np.meshgrid(np.arange(100, dtype=np.uint64), np.arange(100, dtype=np.uint64))
    values = uniforms(seeds.ravel(), counters.ravel())
    assert len(set(values.tolist())) == 10_000
    assert np.histogram(values, 10, (0, 1))[0] == pytest.approx([1000] * 10, abs=120)
    by_both = values.reshape(100, 100)
    assert abs(np.corrcoef(by_both[:, 0], by_both[:, 1])[0, 1]) < 0.3
    assert make_stream(seed=-1).sampling.seed == 2**64 - 1


@pytest.mark.parametrize("vocab", [1, 50, 200, 1100, 40_000])
@pytest.mark.parametrize("count", [1, 7, 256])
def test_best_tokens_are_those_of_a_stable_sort(vocab: int, count: int) -> None:
    rows = torch.round(make_rows(3, vocab=vocab) * 8) / 8  # many are equal
    rows[1] = -rows[1].abs() * 0.0
    values, ids, best = best_tokens(rows, count)
    wanted = np.argsort(-rows.numpy(), axis=1, kind="stable")[:, :count]
    assert ids.tolist() == wanted.tolist()
    assert torch.equal(values, rows.gather(1, ids))
    assert torch.equal(best[:, 0], rows.amax(dim=1))


def test_a_wide_nucleus_is_found_and_remembered() -> None:
    vocab = 50_000
    rows = make_rows(1, vocab=vocab, scale=0.1)
    stream = make_stream(top_p=0.3)
    Sampler(vocab, "cpu", on_host=False).sample(rows, [stream])
    logits = rows[0].numpy() - rows[0].numpy().max()
    assert stream.sampling.num_head == 2 * len(sibling.nucleus(logits, 0.3))


def test_logprobs_are_the_siblings_of_the_raw_row(sample: Any) -> None:
    rows = make_rows(3)
    streams = [make_stream(logprobs=0, temperature=0.0), make_stream(), make_stream(logprobs=5, logit_bias={7: 60.0})]
    found = sample(rows, *streams)
    assert found[1].logprob is None
    for row, one, count in ((rows[0], found[0], 0), (rows[2], found[2], 5)):
        wanted = sibling.token_logprob(row.numpy(), one.token_id, count)
        assert one.logprob.token_id == one.token_id
        assert one.logprob.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert [token for token, _ in one.logprob.top] == [token for token, _ in wanted.top]
        assert [value for _, value in one.logprob.top] == pytest.approx([value for _, value in wanted.top], abs=1e-5)
    assert found[2].token_id == 7


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.5}, {"presence_penalty": 1.0}, {"beam_width": 2}]
)
def test_unusable_logits_are_the_error_of_their_row_only(value: float, params: dict[str, Any], sample: Any) -> None:
    rows = make_rows(3)
    rows[1, 700] = value
    found = sample(rows, *(make_stream(logprobs=1, seed=at, **params) for at in range(3)))
    assert "no usable logits" in found[1].error
    assert [found[at].error for at in (0, 2)] == [None, None]
    assert found[0].token_id == sample(rows[:1], make_stream(**params))[0].token_id


def test_no_token_left_is_an_error(sample: Any) -> None:
    found = sample(make_rows(1, vocab=3), make_stream(bad_words_ids=((0,), (1,), (2,))))
    assert "no token is left" in found[0].error


class _Letters:
    """Token 0 ends, token i is the character i."""

    special_ids = frozenset({0})

    def all_token_bytes(self) -> list[bytes]:
        return [b"<end>", *(bytes([at]) for at in range(1, 128))]

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return list(text.encode())


LETTERS = 150


def make_matcher(*choices: str) -> Any:
    guide = Guide(_Letters(), vocab_size=LETTERS, eos_token_ids=[0])
    return guide.matcher(GuidedDecoding(choice=choices))


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}, {"logit_bias": {1: 2.0}}])
def test_a_grammar_is_kept_to_its_end(params: dict[str, Any], make_sampler: Any) -> None:
    ours = make_sampler(LETTERS)
    streams = [
        make_stream(matcher=make_matcher("abc", "xyz") if at % 3 else None, seed=at, stop_token_ids=(0,), **params)
        for at in range(9)
    ]
    for step in range(3):
        found = ours.sample(make_rows(9, step, vocab=LETTERS), streams)
        for stream, one in zip(streams, found, strict=True):
            assert one.error is None
            assert one.is_end == (step == 2 and stream.sampling.matcher is not None)
            stream.token_ids.append(one.token_id)
    texts = ["".join(map(chr, stream.token_ids[2:])) for at, stream in enumerate(streams) if at % 3]
    assert set(texts) <= {"abc", "xyz"}


def test_the_best_token_is_taken_where_the_grammar_allows_it(sample: Any) -> None:
    rows = torch.zeros(2, LETTERS)
    rows[0, ord("b")], rows[1, ord("z")] = 5.0, 5.0
    streams = [make_stream(matcher=make_matcher("a", "b"), temperature=0.0) for _ in range(2)]
    assert [one.token_id for one in sample(rows, *streams)] == [ord("b"), ord("a")]


def test_what_is_complete_ends_before_min_tokens(sample: Any) -> None:
    rows = torch.zeros(1, LETTERS)
    rows[0, 0] = 9.0
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 5, "stop_token_ids": (0,)}
    matcher = make_matcher("a", "ab")
    matcher.accept(ord("a"))
    assert sample(rows, make_stream(matcher=matcher, **params))[0].token_id == ord("b")
    matcher = make_matcher("a")
    matcher.accept(ord("a"))
    assert sample(rows, make_stream(matcher=matcher, **params))[0].token_id == 0


@pytest.mark.parametrize("problem", [RequestError("too complex"), EngineFailed("broken")])
def test_a_grammar_that_fails_is_the_error_of_its_row_only(problem: Exception, sample: Any) -> None:
    def fail() -> None:
        raise problem

    broken = SimpleNamespace(bits=fail)
    rows = make_rows(3)
    found = sample(rows, make_stream(top_k=1), make_stream(matcher=broken), make_stream(top_k=1))
    assert found[1].error == str(problem)
    assert [found[0].token_id, found[2].token_id] == [int(rows[0].argmax()), int(rows[2].argmax())]


def test_stop_ids_wait_for_min_tokens(choose: Any) -> None:
    row = make_rows(1)
    best = int(row.argmax())
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (best,)}
    assert choose(row, output=(1,), **params) != best
    assert choose(row, output=(1, 2), **params) == best


def test_bad_words_are_not_completed(choose: Any) -> None:
    row = torch.zeros(VOCAB)
    row[5], row[6] = 2.0, 1.0
    params: dict[str, Any] = {"temperature": 0.0, "bad_words_ids": ((3, 4, 5),)}
    assert choose(row, prompt=(3, 4), **params) == 6
    assert choose(row, prompt=(3,), output=(4,), **params) == 6
    assert choose(row, prompt=(4, 4), **params) == 5
    assert choose(row, prompt=(4,), **params) == 5


def test_beams_get_the_candidates_that_transformers_would_rank(sample: Any) -> None:
    transformers = pytest.importorskip("transformers")
    rows = make_rows(2)
    stop = int(rows[1].argmax())
    streams = [
        make_stream(beam_width=2),
        make_stream(
            prompt=(5, 6), output=(9, 5), beam_width=4, repetition_penalty=1.3, min_tokens=3, stop_token_ids=(stop,)
        ),
    ]
    found = sample(rows, *streams)
    plain = rows[0].log_softmax(dim=-1)
    ids = torch.tensor([streams[1].token_ids])
    penalised = transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids, rows[1:].log_softmax(dim=-1))
    waiting = transformers.MinNewTokensLengthLogitsProcessor(2, 3, stop)(ids, penalised)[0]
    for one, scores, count in ((found[0], plain, 4), (found[1], waiting, 8)):
        values, tokens = scores.topk(count)
        assert [token for token, _ in one.candidates] == tokens.tolist()
        assert [value for _, value in one.candidates] == pytest.approx(values.tolist(), abs=1e-6)


def test_beams_part_with_their_grammars(make_sampler: Any) -> None:
    ours = make_sampler(LETTERS)
    first = make_stream(matcher=make_matcher("ab", "cd"), beam_width=2, stop_token_ids=(0,))
    found = ours.sample(make_rows(1, vocab=LETTERS), [first])
    assert sorted(token for token, _ in found[0].candidates) == [ord("a"), ord("c")]
    second = SimpleNamespace(**{**vars(first), "token_ids": [1, 2, ord("c")], "sampling": first.sampling.fork()})
    first.token_ids.append(ord("a"))
    found = ours.sample(make_rows(2, vocab=LETTERS), [first, second])
    assert [[token for token, _ in one.candidates] for one in found] == [[ord("b")], [ord("d")]]
