"""Stands in for trtllm-build: its arguments (0.8 to 1.2) and what it writes."""

import argparse
import json
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("checkpoint_dir", "output_dir"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--gemm_plugin", default="auto")
for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_output_len", "max_num_tokens", "max_beam_width"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--workers", type=int, default=1)
args = parser.parse_args()
if args.max_batch_size == 666:
    sys.exit("RuntimeError: CUDA out of memory. Tried to allocate 99 GiB")
checkpoint = json.loads((Path(args.checkpoint_dir) / "config.json").read_text())
seq_len = args.max_seq_len or (args.max_input_len or 1024) + (args.max_output_len or 1024)
build = {"max_seq_len": seq_len, "max_batch_size": args.max_batch_size or 8, "max_input_len": args.max_input_len}
out = Path(args.output_dir)
out.mkdir(parents=True)
version = (Path(__file__).parent / "VERSION").read_text().strip()
config = {"version": version, "pretrained_config": checkpoint, "build_config": build}
(out / "config.json").write_text(json.dumps(config))
for rank in range(checkpoint["mapping"]["world_size"]):
    (out / f"rank{rank}.engine").write_bytes(b"toy")
