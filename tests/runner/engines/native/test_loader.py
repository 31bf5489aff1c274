"""Loading: formats, prefixes, shards, progress, and errors that name the tensor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from model_cards.errors import ModelFileError, ModelNotFound  # noqa: E402
from runner.engines.native.layers.linear import Linear  # noqa: E402
from runner.engines.native.models import find_family  # noqa: E402
from runner.engines.native.parallel import Parallel  # noqa: E402
from tests.runner.engines.native.families import build, load_folder, toy  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved toy llama."""
    toy(transformers.LlamaConfig, transformers.LlamaForCausalLM).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    """Change tensors of the folder's file; None removes one."""
    weights = load_file(folder / "model.safetensors")
    weights.update({name.replace("__", "."): value for name, value in changes.items()})
    save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors")


def same(ours: Any, wanted: Any) -> bool:
    """All parameters are equal."""
    return all(torch.equal(a, b) for a, b in zip(ours.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["", "transformer.", "language_model.model.", "model.language_model."])
def test_prefixes(folder: Path, prefix: str) -> None:
    wanted = load_folder(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.", prefix): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors")
    assert same(load_folder(folder), wanted)


def test_bin(folder: Path) -> None:
    wanted = load_folder(folder)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same(load_folder(folder), wanted)


def test_bin_that_is_no_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="has no weights"):
        load_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin.*download it again"):
        load_folder(folder)


def test_converts_to_the_models_dtype(folder: Path) -> None:
    model = load_folder(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_missing_tensor(folder: Path) -> None:
    edit(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(ModelFileError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of shape \[96, 64\]"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": None}, "lacks intermediate_size"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_sizes_that_are_missing_or_none(changes: dict[str, Any], message: str) -> None:
    config = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 96} | changes
    family = find_family({name: value for name, value in config.items() if value is not None})
    assert family is not None
    with pytest.raises(ModelFileError, match=rf"config\.json.*{message}"):
        family.spec({name: value for name, value in config.items() if value is not None})


def test_misshapen_tensor(folder: Path) -> None:
    edit(folder, model__norm__weight=torch.zeros(63))
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight in .*model\.safetensors has shape \[63\].*\[64\]"):
        load_folder(folder)


@pytest.mark.parametrize("dtype", ["int32", "float8_e4m3fn"])
def test_packed_tensor(folder: Path, dtype: str) -> None:
    edit(folder, lm_head__weight=torch.zeros(128, 64, dtype=getattr(torch, dtype)))
    with pytest.raises(ModelFileError, match=rf"lm_head\.weight .* is {dtype}"):
        load_folder(folder)


@pytest.mark.parametrize("length", [4, 100, 4000, -1])
def test_truncated_file(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelFileError, match=r"model\.safetensors .*incomplete or corrupt"):
        load_folder(folder)


def test_missing_shard(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models" / "stories3m-bf16-sharded-hf"
    for name in ("config.json", "model-00001-of-00004.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).symlink_to(source / name)
    with pytest.raises(ModelFileError, match=r"lacks 3 of 4 weight files, among them model-00002-of-00004"):
        load_folder(tmp_path)


def test_stacked_experts(tmp_path: Path) -> None:
    """All experts in one tensor, as GGUF has them."""
    toy(transformers.MixtralConfig, transformers.MixtralForCausalLM, num_local_experts=3).save_pretrained(tmp_path)
    wanted = load_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        for part in ("w1", "w2", "w3"):
            weights[f"{prefix}.{part}.weight"] = torch.stack(
                [weights.pop(f"{prefix}.{e}.{part}.weight") for e in range(3)]
            )
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    family = find_family(config)
    assert family is not None
    stacked = {name: template.replace(".{e}", "") for name, template in family.names.templates.items()}
    names = dataclasses.replace(family.names, templates=stacked)
    assert same(build(family.spec(config), names, tmp_path, dtype=torch.float32), wanted)


def test_progress_and_replacement(folder: Path) -> None:
    seen: list[float] = []
    replaced: list[str] = []

    def replace(path: str, module: Any) -> Any:
        if not isinstance(module, Linear):
            return None
        replaced.append(path)
        return torch.nn.Identity()

    model = load_folder(folder, progress=lambda phase, share: seen.append(share), replace=replace)
    assert seen[0] == 0.0 and seen[-1] == 1.0 and seen == sorted(seen)
    assert len(replaced) == 8
    assert isinstance(model.get_submodule("layers.1.mlp.down"), torch.nn.Identity)


def test_a_rank_holds_and_reads_its_share(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    whole = load_folder(folder)
    halves = [load_folder(folder, parallel=Parallel(rank, 2)) for rank in range(2)]
    downs = [half.get_submodule("layers.0.mlp.down").weight for half in halves]
    assert torch.equal(torch.cat(downs, 1), whole.get_submodule("layers.0.mlp.down").weight)
    assert halves[0].head.weight.shape == (config["vocab_size"] // 2, 64)
    q, kv = whole.get_submodule("layers.0.attn.qkv").weight.split((64, 64))
    rank1 = torch.cat([q[32:], kv[16:32], kv[48:]])
    assert torch.equal(halves[1].get_submodule("layers.0.attn.qkv").weight, rank1)
