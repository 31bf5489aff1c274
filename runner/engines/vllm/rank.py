"""Child side, in every process where vLLM computes on a CPU: two faults of it are mended there.

vLLM imports this by `--worker-extension-cls`, in EngineCore's own process or in those that it starts. Seen working on
0.27 and 0.32.
"""

from __future__ import annotations

from typing import Any


class Rank:
    """What vLLM mixes into its Worker. Importing it mends; it adds nothing."""


def allow_amx() -> None:
    """Ask the kernel for AMX tiles: without it vLLM's eager attention dies with SIGILL on a CPU that has them."""
    import torch

    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if is_supported is not None and is_supported():
        torch.cpu._init_amx()


def mend_seeds() -> None:
    """A seeded prompt that is read in pieces ends EngineCore on the CPU (0.32: "CPU Generator does not use offset").

    vLLM takes back what a generator gave for a token that is thrown away; here, by its seed, as nothing was kept yet.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._bookkeeping_sync

    def bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        generators = batch.generators
        if not generators:
            return original(self, *args, **kwargs)
        for at in self.discard_request_mask.np[: batch.num_reqs].nonzero()[0]:
            generator = generators.get(int(at))
            if generator is not None and not self.requests[batch.req_ids[at]].output_token_ids:
                generator.manual_seed(generator.initial_seed())
        batch.generators = {}
        try:
            return original(self, *args, **kwargs)
        finally:
            batch.generators = generators

    GPUModelRunner._bookkeeping_sync = bookkeeping


allow_amx()
mend_seeds()
