"""From names to cards, and what is said when there is nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_cards import resolve as resolve_module
from model_cards.card import ModelCard
from model_cards.errors import CardError, DownloadError, ModelFileError, ModelNotFound, TemplateError
from model_cards.hub_names import HubName
from model_cards.presets import aliases
from model_cards.resolve import resolve


@pytest.fixture
def models(shared_data: Path) -> Path:
    return shared_data / "models"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"vocab": {"a": 0}}}))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


class TestGguf:
    def test_file(self, models: Path) -> None:
        card = resolve(str(models / "tinychat-3m.q8_0.gguf"))
        assert (card.name, card.kind, card.architecture) == ("tinychat-3m.q8_0", "gguf", "gpt2")
        assert card.special_tokens["eos_token"] == "<|endoftext|>", "text, not an id"
        assert card.chat_template and card.context_length == 256 and len(card.mdcsum) == 64

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_any_shard(self, models: Path, number: int) -> None:
        card = resolve(str(models / f"stories3m-split.f16-0000{number}-of-00003.gguf"))
        assert card.name == "stories3m-split.f16" and str(card.path).endswith("-00001-of-00003.gguf")

    def test_a_folder_with_one(self, models: Path, tmp_path: Path) -> None:
        shutil.copy(models / "stories260k.q8_0.gguf", tmp_path / "x.gguf")
        (tmp_path / "mmproj-x.gguf").write_bytes(b"")
        card = resolve(str(tmp_path))
        assert card.kind == "gguf" and card.name == tmp_path.name

    def test_a_folder_with_several(self, models: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"holds 9 GGUF models; give one of them: stories260k.f16.gguf"):
            resolve(str(models))

    def test_corrupt(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
        with pytest.raises(ModelFileError, match=r"x\.gguf"):
            resolve(str(tmp_path / "x.gguf"))

    def test_the_same_model_has_the_same_sum_anywhere(self, models: Path, tmp_path: Path) -> None:
        shutil.copy(models / "stories260k.q8_0.gguf", tmp_path / "y.gguf")
        here, there = resolve(str(models / "stories260k.q8_0.gguf")), resolve(str(tmp_path / "y.gguf"), name="other")
        assert here.mdcsum == there.mdcsum
        assert resolve(str(models / "stories260k.f16.gguf")).mdcsum != here.mdcsum

    def test_model_config_lends_tokenizer_and_template(self, models: Path) -> None:
        card = resolve(str(models / "stories3m.f16.gguf"), model_config=str(models / "stories3m-hf"))
        assert card.kind == "gguf" and card.tokenizer is not None and card.tokenizer.kind == "hf"


class TestFolders:
    def test_hf(self, hf: Path) -> None:
        card = resolve(str(hf))
        assert (card.name, card.kind, card.context_length) == ("my-model", "hf", 64)

    def test_overrides(self, hf: Path, tmp_path: Path) -> None:
        (tmp_path / "t.jinja").write_text("T")
        card = resolve(str(hf), name="n", context_length=32, chat_template=str(tmp_path / "t.jinja"))
        assert (card.name, card.context_length, card.chat_template) == ("n", 32, "T")
        assert card.mdcsum != resolve(str(hf)).mdcsum

    def test_bad_overrides(self, hf: Path) -> None:
        with pytest.raises(ModelFileError, match="context length is -1"):
            resolve(str(hf), context_length=-1)
        with pytest.raises(TemplateError, match=r"cannot read the chat template none\.jinja"):
            resolve(str(hf), chat_template="none.jinja")
        with pytest.raises(ModelNotFound, match="--model-config none does not exist"):
            resolve(str(hf), model_config="none")

    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"it has no config.json \(there is: nothing\)"):
            resolve(str(tmp_path))

    def test_without_a_tokenizer_the_card_says_why(self, hf: Path) -> None:
        (hf / "tokenizer.json").unlink()
        card = resolve(str(hf))
        assert card.tokenizer is None and "has none of tokenizer.json" in card.details["tokenizer_error"]

    @pytest.mark.parametrize("name", ["model.safetensors", "x.engine"])
    def test_one_file_of_a_model(self, hf: Path, name: str) -> None:
        (hf / name).touch()
        with pytest.raises(ModelFileError, match="is one file of a model; give its folder"):
            resolve(str(hf / name))


class TestEngineFolder:
    def make(self, path: Path, **changes: Any) -> Path:
        folder = path / "engine"
        folder.mkdir()
        mapping = {"world_size": 2}
        config = {
            "version": "1.0",
            "pretrained_config": {"architecture": "LlamaForCausalLM", "vocab_size": 9, "mapping": mapping},
            "build_config": {"max_seq_len": 128, "max_batch_size": 4},
            **changes,
        }
        (folder / "config.json").write_text(json.dumps(config))
        for rank in range(2):
            (folder / f"rank{rank}.engine").write_bytes(b"engine")
        return folder

    def test_needs_a_model_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"no tokenizer and no chat template; .*--model-config FOLDER"):
            resolve(str(self.make(tmp_path)))

    def test_card(self, tmp_path: Path, hf: Path) -> None:
        card = resolve(str(self.make(tmp_path)), model_config=str(hf))
        assert (card.kind, card.name, card.context_length, card.vocab_size) == ("trtllm", "engine", 128, 9)
        assert card.tokenizer is not None and card.details["ranks"] == 2

    def test_a_rank_is_missing(self, tmp_path: Path, hf: Path) -> None:
        folder = self.make(tmp_path)
        (folder / "rank1.engine").unlink()
        with pytest.raises(ModelFileError, match=r"holds 1 rank.*files; config.json says 2"):
            resolve(str(folder), model_config=str(hf))


class TestCardFile:
    def test_round_trip(self, hf: Path) -> None:
        card = resolve(str(hf))
        card.save(hf / "card.json")
        again = resolve(str(hf / "card.json"))
        assert again.mdcsum == card.mdcsum and again.path == card.path and again.name == card.name

    def test_its_model_is_gone(self, hf: Path) -> None:
        resolve(str(hf)).save(hf.parent / "card.json")
        shutil.rmtree(hf)
        with pytest.raises(ModelNotFound, match=r"the card .* names .*my-model, which does not exist"):
            resolve(str(hf.parent / "card.json"))

    def test_another_json(self, hf: Path) -> None:
        with pytest.raises(ModelFileError, match="is not a model card"):
            resolve(str(hf / "config.json"))


class TestWhatIsNotThere:
    @pytest.fixture(autouse=True)
    def no_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: HubName, **kwargs: Any) -> Path:
            raise AssertionError(f"{name} must not be downloaded")

        monkeypatch.setattr(resolve_module, "fetch_model", fail)

    @pytest.mark.parametrize(
        "text",
        ["./org/model", "/none/model", "~/none/x", "a/b/c", "model.gguf", "org/model.gguf", "x.safetensors", "dir/",
         "..\\x", "file:///none/x.gguf"],
    )  # fmt: skip
    def test_paths_are_never_downloaded(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFound, match="no such file or folder"):
            resolve(text)

    def test_a_folder_that_may_not_be_searched_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, **_: Any) -> os.stat_result:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "stat", refuse)  # root, who runs some of these tests, may search everything
        with pytest.raises(ModelNotFound, match="Permission denied on the way"):
            resolve(str(tmp_path / "model.gguf"))

    def test_a_local_folder_makes_it_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models").mkdir()
        (tmp_path / "models/llama-3").mkdir()
        with pytest.raises(ModelNotFound, match=r"did you mean models/llama-3\?"):
            resolve("models/llama3")

    def test_the_part_of_a_path_that_is_wrong(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="exists, but not nope in it"):
            resolve(str(tmp_path / "nope/deeper/x.gguf"))

    def test_an_alias_with_a_slip(self) -> None:
        with pytest.raises(ModelNotFound, match=r"did you mean qwen3-0.6b"):
            resolve("qwen3-0.6")

    @pytest.mark.parametrize("text", ["", "  ", "x" * 5000, "a\0b", "ollama://x:y"])
    def test_odd_names(self, text: str) -> None:
        with pytest.raises(CardError):
            resolve(text)


class TestHubNames:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch, hf: Path) -> list[HubName]:
        asked: list[HubName] = []

        def fetch(name: HubName, **kwargs: Any) -> Path:
            asked.append(name)
            return hf

        monkeypatch.setattr(resolve_module, "fetch_model", fetch)
        return asked

    def test_served_name_is_the_id_without_quantization(self, asked: list[HubName]) -> None:
        card = resolve("Org/Repo:Q8_0")
        assert (card.name, card.source) == ("Org/Repo", "Org/Repo:Q8_0")
        assert asked == [HubName("Org/Repo", "Q8_0")]

    def test_preset(self, asked: list[HubName]) -> None:
        card = resolve("qwen3-0.6b")
        assert card.name == "qwen3-0.6b" and card.sampling["temperature"] == 0.6
        assert resolve("QWEN3-0.6B@f16").name == "qwen3-0.6b"
        assert [name.quant for name in asked] == ["Q8_0", "f16"]

    def test_offline(self) -> None:
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
            resolve("org/model")


def test_presets_are_sound() -> None:
    fields = set(ModelCard.__struct_fields__)
    for alias, preset in aliases().items():
        assert alias == alias.lower() and set(preset.card) <= fields and preset.about, alias
    assert {"demo", "demo-hf"} <= set(aliases())
