"""Some of the arguments, by their names in 0.5.23."""

from typing import Any

import msgspec


class ServerArgs(msgspec.Struct):
    model_path: str
    skip_tokenizer_init: bool = False
    context_length: int | None = None
    max_running_requests: int | None = None
    max_total_tokens: int | None = None
    device: str | None = None
    attention_backend: str | None = None
    sampling_backend: str | None = None
    disable_cuda_graph: bool = False
    disable_overlap_schedule: bool = False
    enable_custom_logit_processor: bool = False
    custom_sigquit_handler: Any = None
    random_seed: int | None = None
    log_level: str = "info"
    crash: str = ""
    """Not SGLang's: what shall go wrong in this test."""

    def resolved_dict(self) -> dict[str, Any]:
        return {**msgspec.structs.asdict(self), "max_running_requests": self.max_running_requests or 16}
