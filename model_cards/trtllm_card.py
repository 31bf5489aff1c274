"""What a TensorRT-LLM engine folder says: limits of the compiled engine. Tokenizer and template come from elsewhere.

Knows nothing of Hugging Face folders (hf_card.py) or of who runs the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_cards.errors import ModelFileError
from model_cards.hf_card import read_json


def is_engine_folder(path: Path) -> bool:
    """Does the folder hold compiled engines (`rank0.engine` ...), or the config.json that goes with them?"""
    if any(path.glob("rank*.engine")):
        return True
    if not (path / "config.json").is_file():
        return False
    config = read_json(path / "config.json")
    return isinstance(config, dict) and "pretrained_config" in config and "build_config" in config


def engine_fields(path: Path) -> dict[str, Any]:
    """Keyword arguments for ModelCard: `architecture`, `context_length`, `vocab_size`, `details`.

    Raises ModelFileError where the folder is incomplete.
    """
    config = read_json(path / "config.json")
    ranks = sorted(path.glob("rank*.engine"))
    if not isinstance(config, dict):
        raise ModelFileError(f"{path} has engines but no config.json; give the folder that trtllm-build wrote")
    pretrained, build = config.get("pretrained_config"), config.get("build_config")
    if not isinstance(pretrained, dict) or not isinstance(build, dict):
        raise ModelFileError(f"{path / 'config.json'} has no pretrained_config and build_config; is it trtllm-build's?")
    world_size = int((pretrained.get("mapping") or {}).get("world_size") or 1)
    if len(ranks) != world_size:
        raise ModelFileError(f"{path} holds {len(ranks)} rank*.engine files; config.json says {world_size}")
    return {
        "architecture": pretrained.get("architecture"),
        "context_length": int(build.get("max_seq_len") or pretrained.get("max_position_embeddings") or 0),
        "vocab_size": int(pretrained.get("vocab_size") or 0),
        "details": {
            "format": "TensorRT-LLM engine",
            "version": str(config.get("version", "")),
            "ranks": world_size,
            "dtype": pretrained.get("dtype"),
            "max_batch_size": build.get("max_batch_size"),
            "file_size": sum(rank.stat().st_size for rank in ranks),
        },
    }
