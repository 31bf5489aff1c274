"""The one table of flags: spellings, environment variable, config key, kind, range, help.

The command line, the LLMRUN_* variables, the TOML file, the help text and shell completion are all made from it, and
all values pass through `parse_value`. Imports nothing heavy: `llmrun --help` reads this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from runner.errors import UsageError

Kind: TypeAlias = Literal["str", "file", "int", "float", "bool", "count", "list"]
Value: TypeAlias = "str | int | float | bool | tuple[str, ...]"

MODEL, ENGINE, DYN, ANSWERS, HTTP, CHAT, GENERAL = (
    "Model",
    "Engine",
    "Several machines (dyn://)",
    "Answers",
    "HTTP server (in=http)",
    "Chat, stdin and batch",
    "General",
)
PANELS = (MODEL, ENGINE, DYN, ANSWERS, HTTP, CHAT, GENERAL)


class Flag(NamedTuple):
    """One row. `names[0]` is the long flag; the config key is it with underscores, the variable LLMRUN_ in capitals."""

    names: tuple[str, ...]
    help: str
    panel: str
    kind: Kind = "str"
    metavar: str = ""
    low: float | None = None
    high: float | None = None
    default: str = ""
    """For people; the value itself is RunOptions' default."""

    @property
    def key(self) -> str:
        return self.names[0].lstrip("-").replace("-", "_")

    @property
    def env(self) -> str:
        return f"LLMRUN_{self.key.upper()}"


def _row(spellings: str, help: str, panel: str, kind: Kind = "str", metavar: str = "", **more: Any) -> Flag:
    return Flag(tuple(spellings.split()), help, panel, kind, metavar, **more)


_PORT = {"low": 1, "high": 65535}
_COUNT = {"low": 1, "high": 255}

FLAGS: tuple[Flag, ...] = (
    _row("--in", "Where prompts come from; the same as in=…", GENERAL, metavar="FRONTEND"),
    _row("--out", "What answers; the same as out=…", GENERAL, metavar="ENGINE"),
    # model
    _row("--model-path -m --model", "The model; the same as the word MODEL", MODEL, metavar="MODEL"),
    _row("--model-name --served-model-name --alias", "Name that it is served under", MODEL, metavar="NAME"),
    _row("--model-config", "Folder with tokenizer and config, where the weights lack them", MODEL, "file", "DIR"),
    _row(
        "--chat-template --chat-template-file", "Jinja template: a file or the text itself", MODEL, metavar="FILE|TEXT"
    ),
    _row("--lora", "LoRA adapter, PATH or NAME=PATH; repeatable", MODEL, "list", "PATH"),
    _row("--allow-runtime-lora", "Let clients load adapters (any folder of this machine)", MODEL, "bool"),
    # engine
    _row(
        "--context-length -c --ctx-size --max-model-len",
        "Tokens of prompt and answer together",
        ENGINE,
        "int",
        "TOKENS",
        low=8,
        high=2**31 - 1,
        default="the model's",
    ),
    _row(
        "--max-running --parallel -np --max-num-seqs",
        "Requests that run at once",
        ENGINE,
        "int",
        "N",
        low=1,
        high=65536,
        default="the engine's",
    ),
    _row("--max-queue", "Requests that may wait; one more is refused", ENGINE, "int", "N", low=0, default="no limit"),
    _row("--threads -t", "CPU threads", ENGINE, "int", "N", low=1, high=4096, default="free cores"),
    _row(
        "--gpu-layers -ngl --n-gpu-layers",
        "Layers on the GPU; -1 is all",
        ENGINE,
        "int",
        "N",
        low=-1,
        high=100_000,
        default="all that fit",
    ),
    _row("--kv-cache-block-size", "Tokens in a KV cache block", ENGINE, "int", "TOKENS", low=1, high=65536),
    _row("--tensor-parallel-size -tp", "GPUs, over all nodes", ENGINE, "int", "N", **_COUNT, default="1"),
    _row("--data-parallel-size -dp", "Equal engines side by side", ENGINE, "int", "N", **_COUNT, default="1"),
    _row(
        "--vllm-mode",
        "worker, or headless for vLLM's own",
        ENGINE,
        metavar="MODE",
        default="worker",
    ),
    _row("--base-gpu-id", "First GPU to use", ENGINE, "int", "N", low=0, high=1023, default="0"),
    _row("--num-nodes", "Machines that share the model", ENGINE, "int", "N", **_COUNT, default="1"),
    _row("--node-rank", "Which of them this is", ENGINE, "int", "N", low=0, high=254, default="0"),
    _row("--leader-addr --dist-init-addr", "host:port of node 0", ENGINE, metavar="ADDR"),
    _row("--engine-python", "Python of the engine's environment", ENGINE, "file", "PATH", default="found by itself"),
    _row("--device", "auto, cpu or cuda", ENGINE, metavar="DEVICE", default="cuda where there is one"),
    _row("--dtype", "auto, float32, bfloat16 or float16", ENGINE, metavar="DTYPE", default="the checkpoint's"),
    _row("--quantize --quantization", "int8 or int4: weights made smaller at load", ENGINE, metavar="METHOD"),
    _row("--kv-cache-dtype", "auto, int8, fp8 or a float type", ENGINE, metavar="DTYPE", default="the model's"),
    _row(
        "--gpu-memory-utilization",
        "Share of the GPU's memory to use",
        ENGINE,
        "float",
        "SHARE",
        low=0.05,
        high=1,
        default="0.9",
    ),
    _row(
        "--max-batched-tokens --max-num-batched-tokens",
        "Tokens of one engine step",
        ENGINE,
        "int",
        "TOKENS",
        low=1,
        high=2**20,
        default="the engine's",
    ),
    _row("--extra-engine-args", "JSON, YAML or TOML file of engine options; wins over flags", ENGINE, "file", "FILE"),
    _row(
        "--start-timeout-s --start-timeout",
        "How long the engine may take to start",
        ENGINE,
        "float",
        "SECONDS",
        low=0.1,
        high=86_400,
        default="600",
    ),
    _row("--no-restart", "Do not start a dead engine again", ENGINE, "bool"),
    # dyn://
    _row("--store", "Where workers are found: etcd or file", DYN, metavar="STORE", default="etcd if ETCD_ENDPOINTS"),
    _row("--store-path", "Folder of --store file, shared by all", DYN, "file", "DIR", default="a folder of this user"),
    _row("--request-plane", "How requests reach this worker: tcp or nats", DYN, metavar="PLANE", default="tcp"),
    _row("--dyn-host", "Address of this machine that the others can reach", DYN, metavar="ADDR", default="127.0.0.1"),
    _row("--router-mode", "round-robin, random, least-loaded or kv", DYN, metavar="MODE", default="round-robin"),
    _row("--router-temperature", "kv: 0 takes the best worker", DYN, "float", "T", low=0, high=100, default="0"),
    _row(
        "--kv-overlap-score-weight", "kv: what a cached block is worth", DYN, "float", "W", low=0, high=1e6, default="1"
    ),
    _row("--no-kv-events", "Neither tell nor hear over NATS what is in the workers' prefix caches", DYN, "bool"),
    _row(
        "--migration-limit",
        "Workers that one answer may outlive",
        DYN,
        "int",
        "N",
        low=0,
        high=1024,
        default="the model's, 0",
    ),
    # answers
    _row("--system -s", "System prompt", ANSWERS, metavar="TEXT"),
    _row("--temperature --temp", "0 is greedy", ANSWERS, "float", "T", low=0, high=100, default="the model's"),
    _row("--top-k", "Keep the K likeliest tokens; 0 is off", ANSWERS, "int", "K", low=0, high=2**31 - 1),
    _row("--top-p", "Keep the likeliest tokens up to probability P", ANSWERS, "float", "P", low=0, high=1),
    _row("--seed", "Same seed, same answer", ANSWERS, "int", "N", low=0, high=2**63 - 1),
    _row(
        "--max-tokens -n --n-predict",
        "Longest answer",
        ANSWERS,
        "int",
        "TOKENS",
        low=1,
        high=2**31 - 1,
        default="what the context leaves",
    ),
    _row("--request-template", "JSON file of request defaults (model, temperature, …)", ANSWERS, "file", "FILE"),
    _row("--lenient", "Warn instead of refusing what an engine cannot honour", ANSWERS, "bool"),
    # http
    _row("--http-host --host", "Address to listen on", HTTP, metavar="ADDR", default="127.0.0.1"),
    _row("--http-port --port", "Port to listen on", HTTP, "int", "PORT", **_PORT, default="8080"),
    _row("--http-workers", "Processes that share the port and the engine", HTTP, "int", "N", **_COUNT, default="1"),
    _row("--api-key", "Key that clients must send; repeatable", HTTP, "list", "KEY"),
    _row("--api-key-file", "File with one key a line", HTTP, "file", "FILE"),
    _row("--cors-origins --allowed-origins", "Origins that browsers may call from", HTTP, "list", "URL", default="*"),
    _row("--tls-cert-path --ssl-certfile", "Certificate (PEM); serves HTTPS", HTTP, "file", "FILE"),
    _row("--tls-key-path --ssl-keyfile", "Its private key (PEM)", HTTP, "file", "FILE"),
    _row("--insecure", "Allow a public address without a key", HTTP, "bool"),
    _row("--body-limit-mb", "Largest request body", HTTP, "int", "MB", low=1, high=65536, default="45"),
    _row(
        "--drain-timeout-s",
        "How long open requests may finish at the end",
        HTTP,
        "float",
        "SECONDS",
        low=0,
        high=86_400,
        default="30",
    ),
    # text and batch
    _row("--plain", "No colours and no markdown", CHAT, "bool"),
    _row("--output -o", "Where in=batch writes", CHAT, "file", "FILE", default="beside the input"),
    _row("--resume", "Go on with a batch that was interrupted", CHAT, "bool"),
    _row("--concurrency", "Batch lines at once", CHAT, "int", "N", low=1, high=65536, default="what the engine runs"),
    # all
    _row("--config", "TOML file; keys are the long flags with underscores", GENERAL, "file", "FILE"),
    _row("--dry-run", "Print what would run, and why, and stop", GENERAL, "bool"),
    _row("--json", "With --dry-run: as JSON", GENERAL, "bool"),
    _row("--verbose -v", "More messages and timings; -vv also traces", GENERAL, "count"),
)

BY_KEY: dict[str, Flag] = {flag.key: flag for flag in FLAGS}
OTHER_VARIABLES: dict[str, str] = {
    "ETCD_ENDPOINTS": "etcd servers for dyn://, with commas between",
    "NATS_SERVER": "the NATS server for dyn:// with --request-plane nats",
    "LLMRUN_HOME": "folder for everything that llmrun keeps",
    "LLMRUN_LLAMACPP_LIB": "the llama.cpp library to use",
    "LLMRUN_NATIVE_PYTHON": "the Python with torch that runs out=native",
    "LLMRUN_VLLM_PYTHON": "the Python with vllm that runs out=vllm",
    "LLMRUN_MISTRALRS_PYTHON": "the Python with mistralrs that runs out=mistralrs",
    "LLMRUN_TRTLLM_PYTHON": "the Python with tensorrt_llm that runs out=trtllm and llmrun build-engine",
    "LLMRUN_SGLANG_PYTHON": "the Python with sglang that runs out=sglang",
    "LLMRUN_NATIVE_KERNELS": "folder for the kernels that out=native compiles for this CPU",
    "LLMRUN_NOHISTORY": "1: in=text keeps no history file",
    "LLMRUN_TOKEN_ECHO_DELAY_MS": "pause of the echo engines between tokens",
}
"""Variables that belong to no flag, and what they are for."""

NEVER_IN_FILE = ("config",)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def parse_value(flag: Flag, raw: Any, origin: str) -> Value:
    """The typed value of one flag. `raw` is text (command line, environment) or TOML data; `origin` names it.

    Raises UsageError naming origin, what was got and what is allowed.
    """
    parsers: dict[str, Callable[[Flag, Any, str], Value]]
    parsers = {"int": _whole, "float": _number, "bool": _truth, "count": _whole, "list": _several}
    if flag.kind == "count":
        flag = flag._replace(low=0, high=2)
        origin = f"{origin} (-v, -vv)"
    return parsers.get(flag.kind, _text)(flag, raw, origin)


def allowed_text(flag: Flag) -> str:
    """What values a flag takes, for messages."""
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "text", "count": "0, 1 or 2"}
    text = kind.get(flag.kind, "text")
    if flag.kind in ("int", "float") and flag.low is not None:
        text += f" from {flag.low:,}" if flag.high is None else f" from {flag.low:,} to {flag.high:,}"
    return text


def _refuse(flag: Flag, raw: Any, origin: str) -> UsageError:
    return UsageError(f"{origin}: got {raw!r}; allowed: {allowed_text(flag)}")


def _whole(flag: Flag, raw: Any, origin: str) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise _refuse(flag, raw, origin)
    try:
        value = int(raw)
    except ValueError:
        raise _refuse(flag, raw, origin) from None
    return int(_in_range(flag, value, raw, origin))


def _number(flag: Flag, raw: Any, origin: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise _refuse(flag, raw, origin)
    try:
        value = float(raw)
    except ValueError:
        raise _refuse(flag, raw, origin) from None
    return float(_in_range(flag, value, raw, origin))


def _in_range(flag: Flag, value: float, raw: Any, origin: str) -> float:
    # Written so that NaN fails too.
    above = flag.low is None or value >= flag.low
    below = flag.high is None or value <= flag.high
    if above and below and value not in (float("inf"), float("-inf")) and value == value:
        return value
    raise _refuse(flag, raw, origin)


def _truth(flag: Flag, raw: Any, origin: str) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.strip().lower() in _TRUE + _FALSE:
        return raw.strip().lower() in _TRUE
    raise _refuse(flag, raw, origin)


def _several(flag: Flag, raw: Any, origin: str) -> tuple[str, ...]:
    parts = [raw] if isinstance(raw, str) else list(raw) if isinstance(raw, list | tuple) else None
    if parts is None or not all(isinstance(part, str) for part in parts):
        raise _refuse(flag, raw, origin)
    # `--api-key "$KEY"` with nothing in KEY must not serve everybody
    for blank in (part for part in parts if not part.strip(" ,")):
        raise UsageError(f"{origin}: got {blank!r}; allowed: text that is not empty; leave {origin} out for none")
    return tuple(stripped for part in parts for item in part.split(",") if (stripped := item.strip()))


def _text(flag: Flag, raw: Any, origin: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise _refuse(flag, raw, origin)
    if "\0" in raw:
        raise _refuse(flag, raw, origin)
    return raw
