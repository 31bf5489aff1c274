"""A GGUF file's 128k-token vocabulary: metadata read, tokenizer ready; against gguf.GGUFReader.

Each try is a process of its own that times the call itself (imports excluded on both sides) and tells its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.client import median
from benchmarks.models import make_random_llama_gguf
from benchmarks.row import Row
from benchmarks.settings import Settings

VOCABULARY = 128_256
METADATA_BAR_S, TOKENIZER_BAR_S = 0.1, 0.4

_OURS = """
import json, resource, sys, time
from pathlib import Path
from model_cards.gguf import GgufFile
from model_cards.gguf_card import fields_from_gguf
from model_cards.card import ModelCard
from model_cards.tokenizer import load_tokenizer
import tokenizers, model_cards.gguf_tokenizer
start = time.perf_counter()
with GgufFile.open(Path(sys.argv[1])) as gguf:
    num_tokens = len(gguf.metadata["tokenizer.ggml.tokens"])
metadata_s = time.perf_counter() - start
with GgufFile.open(Path(sys.argv[1])) as gguf:
    card = ModelCard(name="x", source="x", kind="gguf", **fields_from_gguf(gguf))
start = time.perf_counter()
tokenizer = load_tokenizer(card)
tokenizer_s = time.perf_counter() - start
assert num_tokens == tokenizer.vocab_size and tokenizer.encode("hello")
print(json.dumps([metadata_s, tokenizer_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
_RIVAL = """
import json, resource, sys, time
import gguf
start = time.perf_counter()
reader = gguf.GGUFReader(sys.argv[1])
metadata_s = time.perf_counter() - start
print(json.dumps([metadata_s, 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def measure(settings: Settings) -> list[Row]:
    """Rows for metadata and tokenizer."""
    model = settings.folder / "vocabulary-128k.gguf"
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        make_random_llama_gguf(model, dim=64, layers=1, ffn=64, vocab=VOCABULARY, heads=1, kv_heads=1, ctx=128)
    ours, theirs = [], []
    for repeat in range(-1, settings.repeats):
        pair = _run(_OURS, model), _run(_RIVAL, model)
        if repeat >= 0:
            ours.append(pair[0])
            theirs.append(pair[1])
    metadata_s, tokenizer_s = median([row[0] for row in ours]), median([row[1] for row in ours])
    rival_s = median([row[0] for row in theirs])
    return [
        Row(
            what=f"metadata of a GGUF file with {VOCABULARY:,} tokens",
            ours=f"{metadata_s * 1e3:.0f} ms",
            rival=f"{rival_s * 1e3:.0f} ms, {median([row[2] for row in theirs]):.0f} MB (gguf.GGUFReader)",
            ratio=f"1/{rival_s / metadata_s:.0f}",
            bar=f"<= {METADATA_BAR_S:g} s",
            is_met=metadata_s <= METADATA_BAR_S,
        ),
        Row(
            what="its tokenizer ready",
            ours=f"{tokenizer_s * 1e3:.0f} ms, {median([row[2] for row in ours]):.0f} MB in all",
            bar=f"<= {TOKENIZER_BAR_S:g} s",
            is_met=tokenizer_s <= TOKENIZER_BAR_S,
        ),
    ]


def _run(program: str, model: Path) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    row: list[float] = json.loads(done.stdout)
    return row
