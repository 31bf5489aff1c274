"""GGUF files for out=vllm: weights and configuration are those of the folder that the file was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from model_cards.gguf import GgufFile  # noqa: E402
from runner.engines.vllm.gguf_folder import make_config, make_folder  # noqa: E402
from runner.engines.vllm.gguf_weights import GgufWeights  # noqa: E402
from runner.engines.vllm.settings import GGUF_ARCHITECTURES  # noqa: E402
from runner.errors import EngineStartFailed  # noqa: E402
from tests.runner.engines.native.gguf_toys import write_gguf  # noqa: E402
from tests.runner.engines.native.test_gguf_weights import make_toy, test_models_llama  # noqa: E402

DEMO = Path(__file__).parents[4] / "model_cards" / "presets" / "demo"
IDS = torch.tensor([[5, 9, 17, 3, 44, 80, 2, 61, 23]])


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(IDS).logits


def rebuilt(path: Path, folder: Path) -> Any:
    """transformers' own model of a folder's configuration with what the file holds."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unknown = model.load_state_dict(dict(GgufWeights(path).read(config)), strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", [name for name in GGUF_ARCHITECTURES if name != "gemma3"])
def test_weights_are_those_of_the_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    model = make_toy(name, path)
    torch.testing.assert_close(logits(rebuilt(path, tmp_path / "toy.gguf.hf")), logits(model), atol=1e-5, rtol=1e-5)


def test_weights_of_gemma3(tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=24, vocab_size=128, max_position_embeddings=64, sliding_window=6,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.Gemma3ForCausalLM(config)
    write_gguf(model, tmp_path / "toy.gguf", "gemma3")
    made = rebuilt(tmp_path / "toy.gguf", tmp_path / "toy.gguf.hf")
    torch.testing.assert_close(logits(made), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_the_file_alone_gives_the_model_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    model = make_toy(name, path)
    with GgufFile.open(path) as file:
        (tmp_path / "config.json").write_text(json.dumps(make_config(file)))
    torch.testing.assert_close(logits(rebuilt(path, tmp_path)), logits(model), atol=1e-5, rtol=1e-5)


def test_the_demo_model_is_nearly_its_folder_and_has_its_tokenizer(tmp_path: Path) -> None:
    path = DEMO / "demo.q8_0.gguf"
    make_folder(path, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO / "hf", dtype=torch.float32)
    ours, theirs = logits(rebuilt(path, tmp_path)), logits(model)
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
    own = transformers.AutoTokenizer.from_pretrained(tmp_path)
    known = json.loads((DEMO / "conformance.json").read_text())["cases"]
    assert all(own.decode(case["greedy_ids"], skip_special_tokens=True) == case["text"] for case in known)


def test_what_a_configuration_cannot_say_needs_the_folder(tmp_path: Path) -> None:
    path, factors = tmp_path / "toy.gguf", [1.0] * 8
    scaling = test_models_llama.SCALINGS["llama3"]
    parameters = {"rope_type": "llama3", "rope_theta": 5000.0, **scaling}
    scaled = test_models_llama.toy_of("Llama", rope_parameters=parameters)
    for model, arch, keys, extra, words in (
        (scaled, "llama", {}, {"rope_freqs.weight": factors}, "with rope_freqs.weight"),
        (scaled, "llama", {"rope.scaling.type": "yarn"}, {}, "with rope.scaling.type"),
        (scaled, "llama", {"rope.dimension_count": 4}, {}, "with rope.dimension_count"),
    ):
        write_gguf(model, path, arch, keys, extra=extra)
        with GgufFile.open(path) as file, pytest.raises(EngineStartFailed, match=words) as caught:
            make_config(file)
        assert "--model-config" in caught.value.hint
    torch.testing.assert_close(logits(rebuilt(path, tmp_path / "toy.gguf.hf")), logits(scaled), atol=1e-5, rtol=1e-5)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    make_toy("qwen2moe", tmp_path / "experts.gguf")
    with pytest.raises(EngineStartFailed, match=r"reads GGUF files of llama, .*; experts\.gguf is qwen2moe"):
        GgufWeights(tmp_path / "experts.gguf")
    make_toy("llama-experts", tmp_path / "mixtral.gguf")
    with pytest.raises(EngineStartFailed, match=r"mixtral\.gguf is llama with experts"):
        GgufWeights(tmp_path / "mixtral.gguf")
    make_toy("qwen3", tmp_path / "toy.gguf")
    config = transformers.AutoConfig.for_model("llama", num_hidden_layers=2)
    with pytest.raises(EngineStartFailed, match=r"not the model that its .*not known \['blk.0.attn_k"):
        dict(GgufWeights(tmp_path / "toy.gguf").read(config))
