"""One of two gloo ranks: `two_ranks STORE RANK FOLDER...`. Each model's greedy ids and logits go into its folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from runner.engines.native.parallel import Parallel
from tests.runner.engines.native.families import Runner, load_folder, tokens


def main(store: str, rank: str, *folders: str) -> None:
    """Run each model; rank 0 writes."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    for folder in folders:
        runner = Runner(load_folder(Path(folder), parallel=Parallel(int(rank), 2)))
        prompt = tokens(runner.model.spec.vocab_size, 9, 3)
        token_ids = prompt + runner.greedy(prompt, 12)
        logits = runner.step((runner.stream(token_ids), len(token_ids)))[0]
        if rank == "0":
            torch.save(token_ids, Path(folder) / "ids.pt")
            torch.save(logits, Path(folder) / "logits.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
