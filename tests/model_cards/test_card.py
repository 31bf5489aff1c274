"""Cards: JSON, files that can be moved, checksum, slug."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from model_cards.card import CARD_FORMAT, ModelCard, TokenizerRef, slugify
from model_cards.checksum import checksum
from model_cards.errors import CardError, ModelFileError, ModelNotFound

TOKENIZER = {"model": {"vocab": {"a": 0}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return model


def make_card(folder: Path) -> ModelCard:
    return ModelCard(
        name="Org/Model",
        source="Org/Model:Q8_0",
        kind="hf",
        path=str(folder),
        context_length=4096,
        eos_token_ids=(1, 2),
        tokenizer=TokenizerRef(kind="hf", path=str(folder / "tokenizer.json")),
        chat_template="{{ messages }}",
        special_tokens={"bos_token": "<s>"},
        sampling={"temperature": 0.6},
        details={"parameters": 3},
    )


def test_json_round_trip(folder: Path) -> None:
    card = make_card(folder)
    assert ModelCard.from_json(card.to_json()) == card
    assert json.loads(card.to_json())["format"] == CARD_FORMAT


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "x.json is not valid JSON"),
        ("[]", "is not a model card: it has no format"),
        ('{"format": "llmrun-card-9"}', "it has format 'llmrun-card-9'"),
        (f'{{"format": "{CARD_FORMAT}", "name": "n"}}', "missing required field `source`"),
        (f'{{"format": "{CARD_FORMAT}", "name": "n", "source": "s", "nam": 1}}', "unknown field `nam`"),
        (f'{{"format": "{CARD_FORMAT}", "name": "n", "source": "s", "context_length": "4"}}', r"\$.context_length"),
        (f'{{"format": "{CARD_FORMAT}", "name": "n", "source": "s", "kind": "onnx"}}', "onnx"),
    ],
)
def test_broken_json(text: str, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        ModelCard.from_json(text, origin="x.json")


def test_a_card_moves_with_its_model(folder: Path, tmp_path: Path) -> None:
    make_card(folder).save(folder / "card.json")
    assert str(tmp_path) not in (folder / "card.json").read_text()
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    card = ModelCard.load(moved / "card.json")
    assert card.path is not None and Path(card.path) == moved
    assert card.tokenizer is not None and Path(card.tokenizer.path).read_text() == json.dumps(TOKENIZER)


def test_load_and_save_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        ModelCard.load(tmp_path / "none.json")
    with pytest.raises(CardError, match="cannot write the card"):
        make_card(folder).save(tmp_path / "none" / "card.json")


class TestChecksum:
    def weights(self, folder: Path) -> list[Path]:
        return [folder / "model.safetensors"]

    def test_the_same_on_every_host(self, folder: Path, tmp_path: Path) -> None:
        here = checksum(make_card(folder), self.weights(folder))
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        other = msgspec.structs.replace(make_card(copy), name="x", source="y", details={})
        assert checksum(other, self.weights(copy)) == here
        assert len(here) == 64

    @pytest.mark.parametrize(
        "change",
        [
            {"context_length": 8192},
            {"eos_token_ids": (1,)},
            {"chat_template": "{{ messages }} "},
            {"special_tokens": {"bos_token": "<S>"}},
            {"sampling": {"temperature": 0.7}},
            {"add_bos": True},
            {"tool_parser": "hermes"},
            {"named_templates": {"rag": "x"}},
        ],
    )
    def test_what_changes_answers_changes_it(self, folder: Path, change: dict[str, object]) -> None:
        card = make_card(folder)
        assert checksum(msgspec.structs.replace(card, **change)) != checksum(card)

    def test_tokenizer_and_weights_count(self, folder: Path) -> None:
        before = checksum(make_card(folder), self.weights(folder))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
        between = checksum(make_card(folder), self.weights(folder))
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[100_000] ^= 1
        (folder / "model.safetensors").write_bytes(data)
        assert len({before, between, checksum(make_card(folder), self.weights(folder))}) == 3

    def test_dictionary_order_does_not_count(self, folder: Path) -> None:
        one, two = (
            msgspec.structs.replace(make_card(folder), sampling=sampling)
            for sampling in ({"top_k": 1, "top_p": 0.5}, {"top_p": 0.5, "top_k": 1})
        )
        assert checksum(one) == checksum(two)

    def test_a_missing_file(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelFileError, match="cannot read"):
            checksum(make_card(folder))


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Qwen/Qwen3-0.6B", "qwen_qwen3-0_6b"), ("__x", "x"), ("É-a", "-a"), ("a b", "a_b")],
)
def test_slug(name: str, slug: str) -> None:
    assert slugify(name) == slug
