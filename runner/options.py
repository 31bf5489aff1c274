"""RunOptions: all that one run was asked for, resolved (flag beats environment beats config file beats default).

Plain data. The command line (cli.py) makes it; launch.py and the frontends read it.
"""

from __future__ import annotations

import msgspec


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Field names are the long flags with underscores; the TOML file and LLMRUN_* variables use them too."""

    model_path: str | None = None
    model_name: str | None = None
    model_config: str | None = None
    chat_template: str | None = None
    """A file, or the template itself."""
    # engine
    context_length: int | None = None
    max_running: int | None = None
    max_queue: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    kv_cache_block_size: int | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    vllm_mode: str | None = None
    base_gpu_id: int = 0
    num_nodes: int = 1
    node_rank: int = 0
    leader_addr: str | None = None
    engine_python: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    max_batched_tokens: int | None = None
    extra_engine_args: str | None = None
    lora: tuple[str, ...] = ()
    allow_runtime_lora: bool = False
    start_timeout_s: float = 600.0
    no_restart: bool = False
    # dyn://
    store: str | None = None
    """None: etcd if ETCD_ENDPOINTS is set, else file."""
    store_path: str | None = None
    request_plane: str | None = None
    dyn_host: str = "127.0.0.1"
    router_mode: str = "round-robin"
    router_temperature: float = 0.0
    kv_overlap_score_weight: float = 1.0
    no_kv_events: bool = False
    migration_limit: int | None = None
    """None: what the model's card says."""
    # requests
    request_template: str | None = None
    system: str | None = None
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    lenient: bool = False
    # http
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    http_workers: int = 1
    api_key: tuple[str, ...] = ()
    api_key_file: str | None = None
    cors_origins: tuple[str, ...] = ("*",)
    tls_cert_path: str | None = None
    tls_key_path: str | None = None
    insecure: bool = False
    """Allow a public address without a key."""
    body_limit_mb: int = 45
    drain_timeout_s: float = 30.0
    # text and batch
    plain: bool = False
    output: str | None = None
    resume: bool = False
    concurrency: int | None = None
    # all
    verbose: int = 0
