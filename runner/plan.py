"""The plan of a run: every choice made and every reason, before anything starts. --dry-run prints it.

Owns turning settings and words into a plan, and showing one. Does not start anything.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from model_cards.card import ModelCard
from runner import registry
from runner.chain import Chain, PassedOver, name_chain, split_target
from runner.config_file import Settings
from runner.engines import ENGINES
from runner.engines.base import EngineOptions, EngineSpec
from runner.errors import UsageError
from runner.frontends.base import FrontendSpec
from runner.network_choice import check_network
from runner.options import RunOptions
from runner.selection import (
    EngineChoice,
    FrontendChoice,
    check_fit,
    check_flags,
    choose_frontend,
    engine_for,
)
from runner.words import Words

DEMO_MODEL = "demo"
Resolve: TypeAlias = Callable[[str, RunOptions], ModelCard]
_SECRET = ("api_key",)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `factory` and `level` are of the engine's table row; `why` has one reason for each choice."""

    engine: EngineSpec
    factory: str
    level: str
    frontend: FrontendSpec
    options: RunOptions
    why: dict[str, str]
    sources: dict[str, str]
    """Where each setting that is not a default came from."""
    fallbacks: tuple[Plan, ...] = ()
    """The same run on the engines that are tried if this one does not start, in order (out=A,B)."""
    passed: tuple[PassedOver, ...] = ()
    """Engines of out=A,B that were found unfit before anything was started."""

    @property
    def card(self) -> ModelCard:
        return self.engine.card


def make_options(settings: Settings) -> RunOptions:
    """The run options of merged settings. Raises UsageError where flags contradict each other."""
    names = {field.name for field in msgspec.structs.fields(RunOptions)}
    options = RunOptions(**{key: value for key, value in settings.values.items() if key in names})  # type: ignore[arg-type]
    _check_together(options)
    return options


def make_plan(settings: Settings, words: Words, tail: tuple[str, ...], *, terminal: bool, resolve: Resolve) -> Plan:
    """Choose frontend, model and engine. `resolve(source, options) -> ModelCard` finds the card.

    Everything that needs no model is checked before `resolve` may download one. Raises UsageError and CardError.
    """
    options = make_options(settings)
    source = words.source or _text(settings, "in")
    target = words.target or _text(settings, "out")
    _refuse_two_networks(source, target)
    follower = options.num_nodes > 1 and options.node_rank != 0
    frontend = choose_frontend(source, terminal=terminal, has_prompt=words.prompt is not None, follower=follower)
    _check_prompt(frontend, words.prompt)
    if frontend.name != "http" and settings.sources.get("allow_runtime_lora", "").startswith("--"):
        raise UsageError(f"--allow-runtime-lora opens routes of in=http; got in={frontend.name}; leave it out")
    named = name_chain(target) if target else None
    _check_tail(named, tail)
    check_network(
        frontend, named.choices if named is not None else (), options, settings, has_model=words.model is not None
    )
    extra = read_extra_args(options.extra_engine_args)
    if named is not None:
        named = named.keep(lambda choice: check_flags(choice, settings))
    card, model_why = _find_card(words.model, named, options, resolve)
    chain = named or Chain((engine_for(card),))
    chain = chain.keep(lambda choice: check_fit(choice, card)).keep(lambda choice: check_flags(choice, settings))

    def plan_on(choice: EngineChoice) -> Plan:
        return Plan(
            engine=EngineSpec(
                name=choice.entry.name,
                card=card,
                argument=choice.argument,
                options=engine_options(options, extra),
                tail=tail,
            ),
            factory=choice.entry.factory,
            level=choice.entry.level,
            frontend=FrontendSpec(name=frontend.name, argument=frontend.argument, prompt=words.prompt, options=options),
            options=options,
            why={"model": model_why, "engine": choice.why, "frontend": frontend.why},
            sources=settings.sources,
        )

    first, *others = [plan_on(choice) for choice in chain.choices]
    return msgspec.structs.replace(first, fallbacks=tuple(others), passed=chain.passed)


def engine_options(options: RunOptions, extra: dict[str, Any]) -> EngineOptions:
    """What of the run options is the engine's."""
    return EngineOptions(
        context_length=options.context_length,
        max_running=options.max_running,
        max_queue=options.max_queue,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        kv_cache_block_size=options.kv_cache_block_size,
        tensor_parallel_size=options.tensor_parallel_size,
        data_parallel_size=options.data_parallel_size,
        vllm_mode=options.vllm_mode,
        num_frontends=options.http_workers + 1 if options.http_workers > 1 else 1,
        base_gpu_id=options.base_gpu_id,
        num_nodes=options.num_nodes,
        node_rank=options.node_rank,
        leader_addr=options.leader_addr,
        engine_python=options.engine_python,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        kv_cache_dtype=options.kv_cache_dtype,
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_batched_tokens=options.max_batched_tokens,
        seed=options.seed,
        adapters=options.lora,
        allow_runtime_lora=options.allow_runtime_lora,
        start_timeout_s=options.start_timeout_s,
        max_restarts=0 if options.no_restart else 3,
        extra=extra,
    )


def read_extra_args(path: str | None) -> dict[str, Any]:
    """The dictionary in an --extra-engine-args file, JSON, TOML or YAML (by its ending). Raises UsageError."""
    if path is None:
        return {}
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        data = _parse(path, text)
    except OSError as error:
        raise UsageError(f"--extra-engine-args: cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"--extra-engine-args: {path} cannot be read as {_language(path)}: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"--extra-engine-args: {path} must hold one JSON object; got a {type(data).__name__}")
    return data


def _language(path: str) -> str:
    """By the ending; JSON where there is none that we know."""
    return {".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}.get(Path(path).suffix.lower(), "JSON")


def _parse(path: str, text: str) -> Any:
    """Raises ValueError."""
    if _language(path) == "TOML":
        return tomllib.loads(text)
    if _language(path) == "JSON":
        return json.loads(text)
    import yaml  # only this pays for it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as plain data for --json; secrets are masked."""
    data = {
        "frontend": {"in": plan.frontend.name, "argument": plan.frontend.argument, "prompt": plan.frontend.prompt},
        "engine": {
            "out": plan.engine.name,
            "argument": plan.engine.argument,
            "factory": plan.factory,
            "options": msgspec.to_builtins(plan.engine.options),
            "tail": list(plan.engine.tail),
            "command": _command(plan),
            "fallbacks": [_engine_data(fallback) for fallback in plan.fallbacks],
            "passed_over": msgspec.to_builtins(plan.passed),
        },
        "card": _without_bulk(msgspec.to_builtins(plan.card)),
        "why": plan.why,
        "settings": {
            key: {"value": _shown(key, getattr(plan.options, key, None)), "from": origin}
            for key, origin in sorted(plan.sources.items())
            if hasattr(plan.options, key)
        },
    }
    return data


def as_text(plan: Plan) -> str:
    """The plan for people: one line a fact, `name  value  (why)`."""
    card, engine = plan.card, plan.engine
    about = [card.kind, card.architecture or "", f"context {card.context_length:,}" if card.context_length else ""]
    rows = [
        ("model", f"{card.name} ({', '.join(filter(None, about))})", plan.why["model"]),
        *([("", card.path or card.source, "")] if card.path or card.source else []),
        ("engine", _with_argument("out", engine.name, engine.argument), plan.why["engine"]),
    ]
    rows += [("", f"{key} = {value}", "") for key, value in msgspec.to_builtins(engine.options).items()]
    rows += [("", f"-- {' '.join(engine.tail)}", "")] if engine.tail else []
    rows += _command_rows(plan)
    rows += [("passed", f"out={row.name}", row.why) for row in plan.passed]
    for fallback in plan.fallbacks:
        told = _with_argument("out", fallback.engine.name, fallback.engine.argument)
        rows += [("then", told, "if that does not start"), *_command_rows(fallback)]
    rows.append(("frontend", _with_argument("in", plan.frontend.name, plan.frontend.argument), plan.why["frontend"]))
    if plan.frontend.name == "http":
        rows.append(("", f"http://{plan.options.http_host}:{plan.options.http_port}", ""))
    rows += [
        ("setting", f"{key} = {_shown(key, getattr(plan.options, key))}", origin)
        for key, origin in sorted(plan.sources.items())
        if hasattr(plan.options, key)
    ]
    return "\n".join(f"{name:<9} {value}" + (f"  ({why})" if why else "") for name, value, why in rows)


def _engine_data(plan: Plan) -> dict[str, Any]:
    return {"out": plan.engine.name, "argument": plan.engine.argument, "command": _command(plan)}


def _command_rows(plan: Plan) -> list[tuple[str, str, str]]:
    command = _command(plan)
    return [("command", shlex.join(command), "the engine's own")] if command else []


def _command(plan: Plan) -> list[str]:
    """The engine's own command and arguments, where it has one."""
    entry = ENGINES.get(plan.engine.name)
    if entry is None or not entry.command:
        return []
    command: list[str] = registry.load(entry.command)(plan.engine)
    return command


def _with_argument(side: str, name: str, argument: str) -> str:
    return f"{side}={name}:{argument}" if argument else f"{side}={name}"


def _shown(key: str, value: Any) -> Any:
    if key in _SECRET:
        return "***"
    return list(value) if isinstance(value, tuple) else value


def _without_bulk(card: dict[str, Any]) -> dict[str, Any]:
    """Templates fill screens; `llmrun show` prints them."""
    for key in ("chat_template", "named_templates"):
        if card.get(key):
            card[key] = f"({len(str(card[key])):,} characters; see llmrun show)"
    return card


def _text(settings: Settings, key: str) -> str | None:
    value = settings.values.get(key)
    return value if isinstance(value, str) else None


def _refuse_two_networks(source: str | None, target: str | None) -> None:
    targets = {word.partition(":")[0] for word in split_target(target or "")}
    if (source or "").partition(":")[0] == "dyn" and targets & {"dyn", "auto"}:
        raise UsageError("Cannot use endpoint for both in and out: in=dyn serves an engine of this machine; drop one")


def _check_prompt(frontend: FrontendChoice, prompt: str | None) -> None:
    if prompt is not None and frontend.name not in ("stdin", "text"):
        raise UsageError(
            f"in={frontend.name} takes no PROMPT, and {prompt!r} is no model: not a file, preset or Hub id (org/name)"
        )


def _check_tail(chain: Chain | None, tail: tuple[str, ...]) -> None:
    names = {choice.entry.name for choice in chain.choices} if chain else set()
    if tail and not names & {"pystr", "pytok"}:
        raise UsageError(f"what follows -- goes to out=pystr: or out=pytok: only; got {' '.join(tail)!r}")


def _check_together(options: RunOptions) -> None:
    if (options.tls_cert_path is None) != (options.tls_key_path is None):
        raise UsageError("--tls-cert-path and --tls-key-path go together; got only one of them")
    if options.node_rank >= options.num_nodes:
        raise UsageError(
            f"--node-rank: got {options.node_rank}; allowed: 0 to {options.num_nodes - 1} (--num-nodes - 1)"
        )
    if options.allow_runtime_lora and options.http_workers > 1:
        raise UsageError("--allow-runtime-lora needs one process that knows all adapters; leave --http-workers out")
    if options.num_nodes > 1 and not options.leader_addr:
        raise UsageError("--num-nodes above 1 needs --leader-addr HOST:PORT of node 0")


def _find_card(model: str | None, chain: Chain | None, options: RunOptions, resolve: Resolve) -> tuple[ModelCard, str]:
    if model is not None:
        return resolve(model, options), "asked for"
    engine = chain.choices[0] if chain is not None else None
    if engine is not None and "none" in engine.entry.models:
        name = options.model_name or Path(engine.argument).stem or engine.entry.name
        card = ModelCard(name=name, source="", context_length=options.context_length or 0)
        return card, f"out={engine.entry.name} needs none"
    return resolve(DEMO_MODEL, options), "no model is given: the bundled demo model"
