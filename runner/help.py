"""The help texts: examples first, then flags by panel, made from the table of flags.

Drawn by hand and not with rich, whose help renderer alone takes longer than all else that `llmrun --help` does.
"""

from __future__ import annotations

import shutil
import sys
import textwrap

from runner.console import colours
from runner.flags import FLAGS, OTHER_VARIABLES, PANELS, Flag

INTRO = "Run any language model on any engine behind any frontend."
USAGE = "llmrun [in=FRONTEND] [out=ENGINE] [MODEL] [PROMPT] [flags] [-- ARGUMENTS]"
EXAMPLES = (
    ("llmrun", "chat with the bundled demo model"),
    ('llmrun "What is the capital of South Africa?"', "one answer from it"),
    ("llmrun Model.gguf", "chat with a model file"),
    ("llmrun org/name-GGUF:Q4_K_M", "chat with a model of the Hugging Face Hub"),
    ('llmrun Model.gguf "Explain mmap"', "one answer; also: cat notes.txt | llmrun Model.gguf"),
    ("llmrun in=http Model.gguf", "serve the OpenAI API on port 8080"),
    ("llmrun in=batch:prompts.jsonl Model.gguf", "answer every line of a file"),
    ("llmrun out=echo_full", "try a frontend without any model"),
)
FRONTEND_HELP = (
    ("text", "chat in the terminal (default on a terminal)"),
    ("stdin", "all of stdin is one prompt (default in a pipe)"),
    ("http", "OpenAI-compatible server"),
    ("batch:FILE.jsonl", "one answer for each line"),
    ("none", "start the engine and wait"),
    ("dyn://NAMESPACE.COMPONENT.ENDPOINT", "serve this engine to out=dyn:// of other machines"),
)
ENGINE_HELP = (
    ("llamacpp", "llama.cpp: GGUF files (default for them)"),
    ("native", "our own engine on PyTorch: Hugging Face folders (default for them), GGUF files"),
    ("echo_full, echo_core", "repeat the prompt: text, token ids"),
    ("pystr:FILE.py, pytok:FILE.py", "your own Python: text, token ids"),
    ("mocker", "simulated timing of a GPU engine"),
    ("vllm", "vLLM's EngineCore in its own environment: Hugging Face folders"),
    ("sglang", "SGLang in its own environment, one machine or several: Hugging Face folders"),
    ("mistralrs", "mistral.rs in its own environment: GGUF files, Hugging Face folders"),
    ("trtllm", "TensorRT-LLM in its own environment: compiled engines, Hugging Face folders (not run yet)"),
    ("dyn://NAMESPACE.COMPONENT.ENDPOINT", "workers found by discovery"),
    ("triton", "known; not built yet"),
)
COMMANDS = (
    ("show MODEL", "what a model is: its card"),
    ("ls, pull, rm", "models in the Hugging Face cache"),
    ("engines", "which engines are usable here; install, remove, check"),
    ("build-engine", "make a TensorRT-LLM engine of a Hugging Face folder"),
    ("bench", "measure an engine or a server"),
    ("up", "run etcd and nats-server here, for a first try of dyn://"),
    ("workers", "the workers of dyn:// that discovery sees"),
    ("doctor", "look for what is missing on this machine"),
    ("version", "version numbers"),
)
NOTES = (
    "MODEL is a file, a folder, a preset's alias or a Hub id. A word alone that is none of these is a PROMPT for the "
    "demo model. A model that is named like a command is reached as ./show.",
    "out=A,B tries engines in order, such as out=vllm,llamacpp, and says why it moves on.",
    "Every flag is also a variable (LLMRUN_HTTP_PORT) and a key of --config FILE.toml (http_port). A flag beats the "
    "variable, the variable beats the file.",
)


def command_names() -> tuple[str, ...]:
    """First words that are commands."""
    return ("show", "ls", "pull", "rm", "engines", "build-engine", "bench", "up", "workers", "doctor", "version")


def full_help() -> str:
    """All of `llmrun --help`, as wide as the terminal, in colour where that is wanted."""
    page = _Page(min(shutil.get_terminal_size((100, 24)).columns, 120), colours(sys.stdout))
    page.text(INTRO)
    page.heading("Usage")
    page.text(f"  {USAGE}")
    page.text("  llmrun COMMAND --help")
    for title, rows in (
        ("Examples", EXAMPLES),
        ("Frontends, in=", FRONTEND_HELP),
        ("Engines, out=", ENGINE_HELP),
        ("Commands", COMMANDS),
    ):
        page.heading(title)
        page.rows(rows)
    for panel in PANELS:
        page.heading(panel)
        page.rows([(_spelling(flag), _about(flag)) for flag in FLAGS if flag.panel == panel])
    page.rows([("--help -h", "This text"), ("--version", "Version"), ("--install-completion", "Tab completion")])
    page.heading("Other variables")
    page.rows(tuple(OTHER_VARIABLES.items()))
    page.heading("Notes")
    for note in NOTES:
        page.paragraph(note)
    return page.finish()


def _spelling(flag: Flag) -> str:
    return " ".join((*flag.names, flag.metavar)).rstrip()


def _about(flag: Flag) -> str:
    return f"{flag.help} [{flag.default}]" if flag.default else flag.help


class _Page:
    """Lines of help; knows the width and whether to colour."""

    def __init__(self, width: int, coloured: bool) -> None:
        self._width = max(width, 40)
        self._coloured = coloured
        self._lines: list[str] = []

    def _style(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text

    def text(self, line: str) -> None:
        self._lines.append(line)

    def heading(self, title: str) -> None:
        self._lines += ["", self._style(title, "1")]

    def paragraph(self, text: str) -> None:
        self._lines += textwrap.wrap(text, self._width - 2, initial_indent="  ", subsequent_indent="  ")

    def rows(self, rows: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> None:
        """Two columns; a left side that is too long gets a line of its own."""
        column = min(max(len(left) for left, _ in rows), max(self._width // 2 - 4, 16))
        for left, right in rows:
            wrapped = textwrap.wrap(right, max(self._width - column - 4, 20)) or [""]
            pad = " " * (column + 4)
            if len(left) > column:
                self._lines.append(f"  {self._style(left, '36')}")
                self._lines += [pad + part for part in wrapped]
                continue
            self._lines.append(f"  {self._style(left, '36')}{' ' * (column - len(left) + 2)}{wrapped[0]}")
            self._lines += [pad + part for part in wrapped[1:]]

    def finish(self) -> str:
        return "\n".join(self._lines) + "\n"
