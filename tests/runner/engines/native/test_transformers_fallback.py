"""Architectures without a family file run through transformers' modules, equal to transformers; or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from model_cards.card import ModelCard  # noqa: E402
from runner.engines.native.models import find_family  # noqa: E402
from runner.engines.native.models._transformers import build_transformers  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from runner.errors import EngineStartFailed  # noqa: E402
from tests.runner.engines.native.families import check_logits, randomize, tokens, transformers_logits  # noqa: E402
from tests.runner.engines.native.native_driver import Driver  # noqa: E402

COMMON = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HF = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
      "intermediate_size": 96, "max_position_embeddings": 64}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "codegen": ("CodeGen", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8}),
    "cohere2": ("Cohere2", {**HF, "sliding_window": 6, "layer_types": MIXED, "logit_scale": 0.5}),
    "olmoe": ("Olmoe", {**HF, "num_experts": 4, "num_experts_per_tok": 2}),
    "nemotron": ("Nemotron", HF),
    "exaone4": ("Exaone4", {**HF, "sliding_window": 6, "layer_types": MIXED, "head_dim": 16}),
    "persimmon": ("Persimmon", HF),
    "hunyuan": ("HunYuanDenseV1", {**HF, "head_dim": 16}),
    "deepseek": ("DeepseekV3", {**HF, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
                                "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
                                "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                                "moe_intermediate_size": 32, "n_shared_experts": 1}),
    "gpt2-scaled-by-layer": ("GPT2LMHead", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64,
                                            "scale_attn_by_inverse_layer_idx": True}),
    "opt-350m": ("OPT", {**HF, "ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "vaultgemma": ("VaultGemma", {**HF, "head_dim": 16, "sliding_window": 6, "layer_types": MIXED,
                                  "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}),
}  # fmt: skip


def toy_of(name: str, **changes: Any) -> Any:
    """A toy of transformers' and what it was made of."""
    kind, values = MODELS[name]
    config_class = getattr(transformers, kind.removesuffix("LMHead") + "Config")
    found = next(k for k in ("ForCausalLM", "Model") if hasattr(transformers, kind + k))
    torch.manual_seed(0)
    config = config_class(**{**COMMON, **values, **changes})
    config._attn_implementation = "eager"
    return randomize(getattr(transformers, kind + found)(config))


def build(folder: Path, **changes: Any) -> Any:
    """Through transformers, float32."""
    card = ModelCard(name="toy", source=str(folder), kind="hf", path=str(folder))
    fixed = {"dtype": torch.float32, "device": torch.device("cpu"), "parallel": Parallel.single(), "context_length": 64}
    return build_transformers(card, {}, progress=lambda phase, share: None, **fixed | changes)


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_transformers(tmp_path: Path, name: str) -> None:
    model = toy_of(name)
    assert find_family(model.config.to_dict()) is None
    model.save_pretrained(tmp_path)
    check_logits(build(tmp_path), transformers_logits(model))


def test_families_of_ours_run_so_too(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**COMMON, **HF, head_dim=24)
    model = randomize(transformers.Qwen3ForCausalLM(config))
    model.save_pretrained(tmp_path)
    check_logits(build(tmp_path), transformers_logits(model))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an encoder": ("T5", {"d_model": 32, "num_layers": 1}, "no decoder-only language model"),
    "a recurrent state": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 1}, "state of their own"),
    "convolutions": ("Lfm2", {**HF, "layer_types": ["conv", "full_attention"]}, r"state of their own \(conv\)"),
    "chunks": ("Llama4Text", {**HF, "attention_chunk_size": 8, "layer_types": MIXED, "head_dim": 16}, "in chunks"),
    "no positions": ("Mpt", {"d_model": 32, "n_heads": 2, "n_layers": 1}, "takes no positions"),
    "sinks": ("GptOss", {**HF, "head_dim": 16, "num_local_experts": 4, "layer_types": MIXED}, "attention sinks"),
    "attention classes of its own": ("Falcon", {**HF, "num_kv_heads": 4}, "with our attention"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(tmp_path: Path, what: str) -> None:
    kind, values, message = REFUSED[what]
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **values})
    name = next(kind + end for end in ("ForCausalLM", "Model") if hasattr(transformers, kind + end))
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    with pytest.raises(EngineStartFailed, match=message):
        build(tmp_path)


def test_more_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineStartFailed, match="one rank only"):
        build(tmp_path, parallel=Parallel(0, 2))


@pytest.mark.parametrize("name", ["opt-350m", "gpt2-scaled-by-layer"])
def test_a_context_beyond_the_learned_positions(tmp_path: Path, name: str) -> None:
    toy_of(name).save_pretrained(tmp_path)
    with pytest.raises(EngineStartFailed, match="64 is the most"):
        build(tmp_path, context_length=65)


def test_unknown_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(EngineStartFailed, match="neither out=native nor transformers knows"):
        build(tmp_path)


class Leaky(torch.nn.Module):
    """An MLP that looks at the token before."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Any) -> Any:
        return self.mlp(x) + 2 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


def test_tokens_that_know_of_each_other_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_of("cohere2").save_pretrained(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def leaky(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        model.model.layers[0].mlp = Leaky(model.model.layers[0].mlp)
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", leaky)
    with pytest.raises(EngineStartFailed, match="more than attention"):
        build(tmp_path)


@pytest.mark.parametrize("name", ["codegen", "olmoe"])
def test_in_the_engine(tmp_path: Path, name: str) -> None:
    """Several at once, in chunks, through the whole engine: transformers' greedy ids."""
    model = toy_of(name)
    model.save_pretrained(tmp_path)
    prompts = [tokens(128, length, length) for length in (19, 3, 11)]
    extra = {"max_batched_tokens": 8, "block_size": 4, "num_blocks": 64}
    with Driver(tmp_path, extra=extra) as driver:
        answers = [driver.submit(str(i), p, max_tokens=12) for i, p in enumerate(prompts)]
        driver.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        wanted = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=None)
        assert answer.token_ids == wanted[0, len(prompt) :].tolist()
