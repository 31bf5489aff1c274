"""Fields out of Hugging Face folders, tidy and untidy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_cards.errors import ModelFileError, ModelNotFound
from model_cards.hf_card import fields_from_hf

TOKENIZER = {
    "added_tokens": [{"id": 5, "content": "<|im_end|>"}, {"id": 6, "content": "<s>"}],
    "model": {"type": "BPE", "vocab": {"a": 0, "</s>": 1, "<eot>": 2}},
}


def make_folder(path: Path, **files: Any) -> Path:
    """Keyword `a__b` is the file `a.b`; dicts and lists become JSON."""
    files = {"config__json": {"model_type": "llama"}, "tokenizer__json": TOKENIZER, **files}
    for name, body in files.items():
        if body is not None:
            text = body if isinstance(body, str) else json.dumps(body)
            (path / name.replace("__", ".")).write_text(text, newline="")
    return path


class TestLengths:
    @pytest.mark.parametrize(
        ("config", "length"),
        [
            ({"max_position_embeddings": 4096}, 4096),
            ({"n_positions": 1024}, 1024),
            ({"text_config": {"max_position_embeddings": 8192}}, 8192),
            ({"max_position_embeddings": 2048, "text_config": {"max_position_embeddings": 8192}}, 2048),
            ({"max_position_embeddings": 32768,
              "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
            ({"max_position_embeddings": 163840,
              "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}}, 163840),
            ({"max_position_embeddings": 131072,
              "rope_scaling": {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 8192}}, 131072),
            ({"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
            ({"max_position_embeddings": 4096, "sliding_window": 1024}, 4096),
            ({}, 0),
        ],
    )  # fmt: skip
    def test_context_length(self, tmp_path: Path, config: dict[str, Any], length: int) -> None:
        assert fields_from_hf(make_folder(tmp_path, config__json=config))["context_length"] == length

    def test_the_tokenizers_length_where_config_is_silent(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path, tokenizer_config__json={"model_max_length": 512})
        assert fields_from_hf(folder)["context_length"] == 512

    def test_an_unlimited_tokenizer(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path, tokenizer_config__json={"model_max_length": 1e30})
        assert fields_from_hf(folder)["context_length"] == 0

    def test_vocabulary(self, tmp_path: Path) -> None:
        assert fields_from_hf(make_folder(tmp_path))["vocab_size"] == 7
        folder = make_folder(tmp_path, config__json={"text_config": {"vocab_size": 99}})
        assert fields_from_hf(folder)["vocab_size"] == 99


class TestEnds:
    def test_the_union_without_repeats(self, tmp_path: Path) -> None:
        folder = make_folder(
            tmp_path,
            config__json={"eos_token_id": [7, 8]},
            generation_config__json={"eos_token_id": 8},
            tokenizer_config__json={"eos_token": "<|im_end|>", "eot_token": {"content": "<eot>"}},
        )
        assert fields_from_hf(folder)["eos_token_ids"] == (8, 7, 5, 2)

    def test_only_the_tokenizer_knows(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path, special_tokens_map__json={"eos_token": "</s>", "bos_token": {"content": "<s>"}})
        fields = fields_from_hf(folder)
        assert fields["eos_token_ids"] == (1,) and fields["bos_token_id"] == 6
        assert fields["special_tokens"] == {"bos_token": "<s>", "eos_token": "</s>"}

    def test_added_tokens_decoder(self, tmp_path: Path) -> None:
        decoder = {"42": {"content": "<end>"}}
        folder = make_folder(
            tmp_path,
            tokenizer__json=None,
            tokenizer_config__json={"eos_token": "<end>", "added_tokens_decoder": decoder},
        )
        assert fields_from_hf(folder)["eos_token_ids"] == (42,)

    def test_wrong_types_are_not_ids(self, tmp_path: Path) -> None:
        folder = make_folder(
            tmp_path, config__json={"eos_token_id": "2"}, generation_config__json={"eos_token_id": True}
        )
        assert fields_from_hf(folder)["eos_token_ids"] == ()


class TestTemplates:
    def test_jinja_file_wins_with_its_newlines(self, tmp_path: Path) -> None:
        folder = make_folder(
            tmp_path,
            tokenizer_config__json={"chat_template": "old"},
            chat_template__json={"chat_template": "older"},
            chat_template__jinja="a\r\nb\n",
        )
        assert fields_from_hf(folder)["chat_template"] == "a\r\nb\n"

    def test_named(self, tmp_path: Path) -> None:
        entries = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
        folder = make_folder(tmp_path, tokenizer_config__json={"chat_template": entries})
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates/rag.jinja").write_text("r")
        fields = fields_from_hf(folder)
        assert fields["chat_template"] == "d" and fields["named_templates"] == {"tool_use": "t", "rag": "r"}

    def test_none(self, tmp_path: Path) -> None:
        fields = fields_from_hf(make_folder(tmp_path))
        assert fields["chat_template"] is None and fields["named_templates"] == {}


class TestBeginAndEnd:
    BOS = {"tokenizer_config__json": {"bos_token": "<s>"}}

    def processor(self, **single: Any) -> dict[str, Any]:
        return {**TOKENIZER, "post_processor": {"type": "Sequence", "processors": [single]}}

    def test_a_template_processor_that_adds_it(self, tmp_path: Path) -> None:
        single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        body = self.processor(type="TemplateProcessing", single=single)
        fields = fields_from_hf(make_folder(tmp_path, tokenizer__json=body, **self.BOS))
        assert fields["add_bos"] is True and fields["add_eos"] is False

    def test_a_byte_level_processor_that_does_not(self, tmp_path: Path) -> None:
        body = self.processor(type="ByteLevel")
        assert fields_from_hf(make_folder(tmp_path, tokenizer__json=body, **self.BOS))["add_bos"] is False

    def test_the_flag_wins(self, tmp_path: Path) -> None:
        config = {"bos_token": "<s>", "add_bos_token": True}
        assert fields_from_hf(make_folder(tmp_path, tokenizer_config__json=config))["add_bos"] is True

    def test_sentencepiece_adds_it(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path, tokenizer__json=None, tokenizer__model="x", **self.BOS)
        fields = fields_from_hf(folder)
        assert fields["tokenizer"].kind == "sentencepiece" and fields["add_bos"] is True


class TestSampling:
    def test_defaults(self, tmp_path: Path) -> None:
        generation = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 1.0, "repetition_penalty": 1.05}
        folder = make_folder(tmp_path, generation_config__json=generation)
        expected = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
        assert fields_from_hf(folder)["sampling"] == expected

    def test_not_for_greedy_models(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path, generation_config__json={"do_sample": False, "temperature": 0.6})
        assert fields_from_hf(folder)["sampling"] == {}


class TestBadFolders:
    def test_no_config_says_what_is_there(self, tmp_path: Path) -> None:
        make_folder(tmp_path, config__json=None)
        with pytest.raises(ModelNotFound, match=r"no config.json \(there is: tokenizer.json\)"):
            fields_from_hf(tmp_path)

    @pytest.mark.parametrize("name", ["config__json", "tokenizer__json", "generation_config__json"])
    @pytest.mark.parametrize("text", ["{", "[1, 2", '"x"', "\x00", "[" * 100_000])
    def test_broken_json(self, tmp_path: Path, name: str, text: str) -> None:
        with pytest.raises(ModelFileError, match=name.replace("__", ".")):
            fields_from_hf(make_folder(tmp_path, **{name: text}))

    @pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], [{}], {"a": []}])
    def test_odd_values_do_not_crash(self, tmp_path: Path, value: Any) -> None:
        keys = ["bos_token", "eos_token", "chat_template", "added_tokens_decoder", "add_bos_token", "model_max_length"]
        config = ["eos_token_id", "bos_token_id", "rope_scaling", "text_config", "max_position_embeddings",
                  "model_type", "quantization_config", "vocab_size", "torch_dtype"]  # fmt: skip
        folder = make_folder(
            tmp_path,
            config__json=dict.fromkeys(config, value),
            tokenizer_config__json=dict.fromkeys(keys, value),
            generation_config__json=dict.fromkeys(["eos_token_id", "temperature", "top_k", "do_sample"], value),
            added_tokens__json=json.dumps(value),
        )
        fields_from_hf(folder)


def test_shared_models(shared_data: Path) -> None:
    fields = fields_from_hf(shared_data / "models/stories3m-bf16-sharded-hf")
    assert fields["eos_token_ids"] == (1, 2) and fields["context_length"] == 512
    assert fields["details"]["parameters"] == 3_148_224 and fields["details"]["shards"] == 4
