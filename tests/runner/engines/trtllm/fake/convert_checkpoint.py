"""Stands in for examples/*/convert_checkpoint.py: the same arguments and kind of output."""

import argparse
import json
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("model_dir", "output_dir", "dtype"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--tp_size", type=int, default=1)
parser.add_argument("--pp_size", type=int, default=1)
args = parser.parse_args()
source = json.loads((Path(args.model_dir) / "config.json").read_text())
out = Path(args.output_dir)
out.mkdir(parents=True)
mapping = {"world_size": args.tp_size, "tp_size": args.tp_size, "pp_size": args.pp_size}
checkpoint = {
    "architecture": source["architectures"][0],
    "dtype": args.dtype,
    "vocab_size": source["vocab_size"],
    "mapping": mapping,
}
(out / "config.json").write_text(json.dumps(checkpoint))
