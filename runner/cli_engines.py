"""The command line of `llmrun engines` (typer); commands_engines.py does the work."""

from __future__ import annotations

from typing import Annotated

import typer

engines = typer.Typer(help="Which engines are usable here; install, remove, check.", rich_markup_mode=None)


@engines.callback()
def _engines(ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    if ctx.invoked_subcommand is None:
        from runner import commands_engines

        _end(commands_engines.list_engines(as_json=as_json))


@engines.command("list")
def _engines_list(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Every engine, whether it is usable here, and if not, what makes it so."""
    from runner import commands_engines

    _end(commands_engines.list_engines(as_json=as_json))


@engines.command("install")
def _engines_install(
    name: Annotated[str, typer.Argument(metavar="ENGINE")],
    prebuilt: Annotated[bool, typer.Option("--prebuilt", help="Take a prebuilt library; compile nothing.")] = False,
    cuda: Annotated[bool, typer.Option("--cuda", help="For NVIDIA GPUs.")] = False,
    metal: Annotated[bool, typer.Option("--metal", help="For Apple GPUs.")] = False,
    vulkan: Annotated[bool, typer.Option("--vulkan", help="For Vulkan GPUs.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="For the CPU only (vllm, sglang).")] = False,
    python: Annotated[str | None, typer.Option("--python", help="Base Python of its environment.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="This version of it.")] = None,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing if it is usable.")] = False,
) -> None:
    """Install an engine's library into its own place."""
    from runner import commands_engines

    chosen = [name for name, on in (("cuda", cuda), ("metal", metal), ("vulkan", vulkan)) if on]
    _end(
        commands_engines.install(
            name,
            prebuilt=prebuilt,
            accelerators=chosen,
            version=version,
            if_missing=if_missing,
            cpu=cpu,
            python=python,
        )
    )


@engines.command("remove")
def _engines_remove(name: Annotated[str, typer.Argument(metavar="ENGINE")]) -> None:
    """Remove what install made."""
    from runner import commands_engines

    _end(commands_engines.remove(name))


@engines.command("check")
def _engines_check(
    name: Annotated[str, typer.Argument(metavar="ENGINE")],
    python: Annotated[
        str | None, typer.Option("--engine-python", metavar="PATH", help="A Python or environment of your own.")
    ] = None,
) -> None:
    """Start the engine on the demo model and ask it what is known."""
    from runner import commands_engines

    _end(commands_engines.check(name, python=python))


def _end(code: int | None) -> None:
    raise typer.Exit(code or 0)
