"""llama.cpp as an engine: guided answers, embeddings, LoRA adapters, and its life in a child process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest

from benchmarks.models import make_random_llama_gguf
from model_cards.card import ModelCard, TokenizerRef
from model_cards.tokenizer import load_tokenizer
from runner.engines.base import EngineOptions, EngineSpec
from runner.engines.llamacpp import make_engine
from runner.engines.process import ProcessEngine
from runner.errors import ContextOverflow, EngineStartFailed, RequestError, UnsupportedField
from runner.types import EmbedRequest, GuidedDecoding, SamplingParams, TokenRequest
from tests.runner.engines.llamacpp_driver import GREEDY, Driver

pytestmark = [pytest.mark.llamacpp, pytest.mark.usefixtures("llamacpp_library")]

VOCAB, DIM = 512, 64


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_random_llama_gguf(path, dim=DIM, layers=2, ffn=128, vocab=VOCAB, heads=2, ctx=512, dtype="f32", seed=7)
    return ModelCard(
        name="tiny",
        source=str(path),
        kind="gguf",
        path=str(path),
        vocab_size=VOCAB,
        eos_token_ids=(VOCAB - 3, VOCAB - 1),
        tokenizer=TokenizerRef(kind="gguf", path=str(path)),
    )


@pytest.fixture
def tiny(card: ModelCard) -> Iterator[Driver]:
    assert card.path is not None
    with Driver(Path(card.path), card, threads=1) as driver:
        yield driver


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"enum": ["S", "M", "L"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_random_model_answers_in_the_schemas_form(tiny: Driver, card: ModelCard, temperature: float) -> None:
    """Its own choice is noise, so every character is the grammar's doing."""
    tokenizer = load_tokenizer(card)
    answers = []
    for seed in range(4):
        sampling = SamplingParams(
            temperature=temperature, seed=seed, guided=GuidedDecoding(json_schema=SCHEMA), logit_bias={0: -1.0}
        )
        answers.append(
            tiny.submit(f"g{seed}", [1, 2, seed], sampling, max_tokens=100, stop_token_ids=card.eos_token_ids)
        )
    free = tiny.submit("free", [1, 2, 3], max_tokens=10)
    tiny.run()
    for answer in answers:
        assert answer.finish == "stop"
        document = json.loads(tokenizer.decode(answer.token_ids))
        assert document["size"] in ("S", "M", "L")
        assert isinstance(document["name"], str)
    assert len(free.token_ids) == 10


def test_a_complete_answer_ends_without_an_end_token(tiny: Driver, card: ModelCard) -> None:
    for choice in ("yes", "no"):
        guided = SamplingParams(temperature=0.0, guided=GuidedDecoding(choice=(choice,)))
        answer = tiny.ask([5, 6], guided, max_tokens=50)
        assert (load_tokenizer(card).decode(answer.token_ids), answer.finish) == (choice, "stop")


def test_min_tokens_does_not_break_a_grammar(tiny: Driver, card: ModelCard) -> None:
    guided = SamplingParams(temperature=0.0, guided=GuidedDecoding(regex="ab?"))
    answer = tiny.ask([5, 6], guided, max_tokens=50, min_tokens=30, stop_token_ids=card.eos_token_ids)
    assert answer.error is None
    assert answer.finish == "stop"


def test_a_wrong_grammar_is_the_requests_fault(tiny: Driver) -> None:
    with pytest.raises(RequestError, match=r"guided\.grammar"):
        tiny.submit("x", [1], SamplingParams(guided=GuidedDecoding(grammar="root ::= (")))
    assert not tiny.engine.has_work()


def vectors(driver: Driver, *inputs: list[int]) -> np.ndarray:
    result = driver.engine.embed(EmbedRequest(id="e", inputs=list(inputs)))
    assert result.prompt_tokens == sum(map(len, inputs))
    return np.stack([np.frombuffer(vector, "<f4") for vector in result.vectors])


def test_embeddings_are_unit_vectors_and_independent(tiny: Driver) -> None:
    inputs = [[1, 2, 3], [4, 5, 6, 7, 8], list(range(100))]
    together = vectors(tiny, *inputs)
    assert together.shape == (3, DIM)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.abs(vectors(tiny, inputs[1])[0] - together[1]).max() < 1e-5
    assert not np.allclose(together[0], together[1], atol=0.05)


def test_long_inputs_are_embedded_whole_or_refused(card: ModelCard, tiny: Driver) -> None:
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB, 512)]
    assert vectors(tiny, tokens).shape == (1, DIM)
    for inputs, message in (([[*tokens, 1]], "513 tokens"), ([[]], "empty"), ([[VOCAB]], "vocabulary")):
        with pytest.raises(RequestError, match=message):
            vectors(tiny, *inputs)


def test_embedding_between_steps_leaves_answers_alone(tiny: Driver) -> None:
    wanted = tiny.ask([1, 2, 3], max_tokens=20).token_ids
    answer = tiny.submit("a", [1, 2, 3], max_tokens=20)
    for _ in range(5):
        tiny.step()
        vectors(tiny, [7, 8, 9])
    tiny.run()
    assert answer.token_ids == wanted


def make_bert(path: Path) -> Path:
    """A one-layer BERT with random weights: it embeds and cannot generate."""
    rng, vocab = np.random.default_rng(0), 300
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581w{index}" for index in range(vocab - 4))])
    writer.add_token_types([1] * vocab)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", vocab, 32)
    add("token_types.weight", 2, 32)
    add("position_embd.weight", 64, 32)
    for norm in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        add(f"{norm}.weight", 32)
        add(f"{norm}.bias", 32)
    for name, rows, columns in (
        ("attn_q", 32, 32),
        ("attn_k", 32, 32),
        ("attn_v", 32, 32),
        ("attn_output", 32, 32),
        ("ffn_up", 64, 32),
        ("ffn_down", 32, 64),
    ):
        add(f"blk.0.{name}.weight", rows, columns)
        add(f"blk.0.{name}.bias", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_encoder_embeds_and_does_not_generate(tmp_path: Path) -> None:
    with Driver(make_bert(tmp_path / "bert.gguf"), threads=1) as driver:
        assert driver.info.capabilities == ("embed",)
        found = vectors(driver, [2, 10, 11, 3], [2, 12, 3])
        assert found.shape == (2, 32)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
        with pytest.raises(UnsupportedField, match="only embeds"):
            driver.submit("x", [1, 2])
        with pytest.raises(RequestError, match="at most 64"):
            vectors(driver, [5] * 65)


def make_lora(path: Path, seed: int) -> Path:
    """Changes the query and output projections of the tiny model."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight"):
        writer.add_tensor(f"{name}.lora_a", rng.standard_normal((4, DIM)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", rng.standard_normal((DIM, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_adapters_are_chosen_by_request(card: ModelCard, tmp_path: Path) -> None:
    first, second = make_lora(tmp_path / "first.gguf", 1), make_lora(tmp_path / "second.gguf", 2)
    assert card.path is not None
    with Driver(Path(card.path), card, threads=1, adapters=(str(first), f"two={second}")) as driver:
        assert {"adapter", "adapter:first", "adapter:two"} <= set(driver.info.capabilities)
        prompt = list(range(40))
        adapters = (None, "first", "two")
        alone = [driver.ask(prompt, max_tokens=15, adapter=adapter) for adapter in adapters]
        assert len({tuple(answer.token_ids) for answer in alone}) == 3
        assert [answer.cached_tokens for answer in alone] == [0, 0, 0]  # a prefix belongs to its adapter
        mixed = [driver.submit(f"m{i}", prompt, max_tokens=15, adapter=adapters[i % 3]) for i in range(6)]
        driver.run()
        assert [answer.token_ids for answer in mixed] == [answer.token_ids for answer in alone] * 2
        with pytest.raises(RequestError, match="'three' is not loaded: loaded are first, two"):
            driver.submit("x", prompt, adapter="three")
    with Driver(Path(card.path), card, threads=1) as plain:
        assert plain.ask(prompt, max_tokens=15).token_ids == alone[0].token_ids


def test_wrong_adapters_fail_the_start(card: ModelCard, tmp_path: Path) -> None:
    assert card.path is not None
    lora = make_lora(tmp_path / "a.gguf", 1)
    for adapters, message in (
        (("nowhere.gguf",), "no file nowhere.gguf"),
        ((card.path,), "cannot load"),
        ((str(lora), f"a={lora}"), "two adapters are named a"),
    ):
        with pytest.raises(EngineStartFailed, match=message):
            Driver(Path(card.path), card, adapters=adapters)


@pytest.fixture
async def process(card: ModelCard) -> AsyncIterator[ProcessEngine]:
    engine: Any = make_engine(EngineSpec(name="llamacpp", card=card, options=EngineOptions(threads=1)))
    await engine.start()
    yield engine
    await engine.close()


async def collect(engine: ProcessEngine, request: TokenRequest) -> list[int]:
    token_ids: list[int] = []
    async with aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            token_ids += delta.token_ids
    return token_ids


async def test_the_same_answers_from_a_child_process(process: ProcessEngine, tiny: Driver) -> None:
    wanted = tiny.ask([1, 2, 3], max_tokens=20).token_ids
    request = TokenRequest(id="a", token_ids=[1, 2, 3], max_tokens=20, sampling=GREEDY)
    assert await collect(process, request) == wanted
    with pytest.raises(ContextOverflow):
        await collect(process, TokenRequest(id="b", token_ids=[1] * 500, max_tokens=20))
    result = await process.embed(EmbedRequest(id="c", inputs=[[1, 2, 3]]))
    assert result.prompt_tokens == 3
    assert (await process.stats())["kv_total_tokens"] == 4096


async def test_a_failed_start_says_why(card: ModelCard, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    assert card.path is not None
    cut.write_bytes(Path(card.path).read_bytes()[:-100_000])
    engine = make_engine(EngineSpec(name="llamacpp", card=msgspec.structs.replace(card, path=str(cut))))
    with pytest.raises(EngineStartFailed, match=r"cut.gguf"):
        await engine.start()
    await engine.close()
