"""The slash commands of in=text. They act on the session and answer with text; the terminal is not known here."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from runner.catalog import Catalog
from runner.config_file import did_you_mean
from runner.errors import LlmrunError, RequestError, UsageError
from runner.frontends.text_session import ChatSession
from runner.openai_requests import read_fields
from runner.openai_tables import ALIASES, CHAT_FIELDS, SAMPLING_FIELDS


class Action(enum.Enum):
    """What the frontend has to do after a command."""

    NOTHING = enum.auto()
    LEAVE = enum.auto()
    REGENERATE = enum.auto()


class View:
    """How answers are shown; /set switches it."""

    def __init__(self, *, markdown: bool, stats: bool) -> None:
        self.markdown = markdown
        self.stats = stats


class _Command(NamedTuple):
    name: str
    arguments: str
    help: str
    others: tuple[str, ...] = ()


COMMANDS = (
    _Command("/help", "", "this list", ("/?",)),
    _Command("/bye", "", "leave; so does Ctrl-D", ("/exit", "/quit")),
    _Command("/clear", "", "forget the conversation; settings stay"),
    _Command("/system", "[TEXT]", "show or set the system prompt; /system - removes it"),
    _Command("/set", "[NAME VALUE]", "show or set: temperature, max_tokens, stop, …; markdown|plain, verbose|quiet"),
    _Command("/show", "[WHAT]", "info, system, parameters, messages, template"),
    _Command("/save", "FILE", "write the conversation (OpenAI messages, JSON)"),
    _Command("/load", "FILE", "go on with a saved conversation"),
    _Command("/regen", "", "answer the last message again"),
    _Command("/stats", "", "how fast the last answer was"),
    _Command("/model", "[NAME]", "show or switch the model"),
)
KEYS = (
    ('"""', "begins and ends a message of several lines; Alt-Enter also breaks a line"),
    ("Ctrl-C", "stops the answer; clears the line"),
    ("Ctrl-G", "edits the message in $EDITOR"),
    ("//text", "sends a message that begins with /"),
)
SETTABLE = (*(name for name in SAMPLING_FIELDS if name != "n"), "max_tokens", "min_tokens", "stop", "ignore_eos")
_OTHER_NAMES = {**ALIASES, "num_predict": "max_tokens", "n_predict": "max_tokens", "temp": "temperature"}
_RESET = ("default", "none", "off", "null")
_SWITCHES = {
    "markdown": ("markdown", True),
    "plain": ("markdown", False),
    "verbose": ("stats", True),
    "quiet": ("stats", False),
}


class SlashCommands:
    """Commands of one session. `say` takes text for the user."""

    def __init__(self, session: ChatSession, catalog: Catalog, view: View, say: Callable[[str], None]) -> None:
        self._session = session
        self._catalog = catalog
        self._view = view
        self._say = say

    def names(self) -> list[str]:
        """All spellings, for completion."""
        return [name for command in COMMANDS for name in (command.name, *command.others)]

    def run(self, line: str) -> Action:
        """Carry out one line that begins with a slash. A mistake is told, not raised."""
        word, _, rest = line.strip().partition(" ")
        command = next((c for c in COMMANDS if word in (c.name, *c.others)), None)
        if command is None:
            hint = did_you_mean(word, self.names())
            self._say(f"unknown command {word}{hint}; /help lists them. To send it as a message: /{line.strip()}")
            return Action.NOTHING
        try:
            action: Action | None = getattr(self, f"_{command.name[1:]}")(rest.strip())
        except LlmrunError as error:
            self._say(f"error: {error}")
            return Action.NOTHING
        return action or Action.NOTHING

    def _help(self, rest: str) -> None:
        rows = [(" ".join((" ".join((c.name, *c.others)), c.arguments)).rstrip(), c.help) for c in COMMANDS]
        self._say("\n".join(f"  {left:<22} {right}" for left, right in (*rows, *KEYS)))

    def _bye(self, rest: str) -> Action:
        return Action.LEAVE

    def _regen(self, rest: str) -> Action:
        return Action.REGENERATE

    def _clear(self, rest: str) -> None:
        self._session.clear()
        self._say("the conversation is forgotten")

    def _system(self, rest: str) -> None:
        if not rest:
            self._say(self._session.system or "no system prompt; /system TEXT sets one")
            return
        self._session.system = None if rest == "-" else rest
        self._say("system prompt removed" if rest == "-" else "system prompt set; it holds from the next message on")

    def _set(self, rest: str) -> None:
        words = rest.split(maxsplit=1)
        if words and words[0] in ("parameter", "param"):
            words = words[1].split(maxsplit=1) if len(words) > 1 else []
        if not words:
            self._say(self._parameters())
        elif words[0] in _SWITCHES and len(words) == 1:
            attribute, value = _SWITCHES[words[0]]
            setattr(self._view, attribute, value)
            self._say(f"{words[0]} from now on")
        elif words[0] == "system":
            self._system(words[1] if len(words) > 1 else "")
        elif len(words) == 1:
            raise UsageError(f"/set {words[0]} needs a value, or `default`")
        else:
            self._set_field(*words)

    def _set_field(self, word: str, text: str) -> None:
        name = _OTHER_NAMES.get(word, word)
        if name not in SETTABLE:
            choice = [*SETTABLE, *_SWITCHES, "system"]
            raise UsageError(f"unknown setting {word}{did_you_mean(name, choice)}; there are: {', '.join(choice)}")
        if text.lower() in _RESET:
            self._session.fields.pop(name, None)
            self._say(f"{name} is the model's default again")
            return
        values, _ = read_fields({name: _typed(text)}, CHAT_FIELDS)
        self._session.fields[name] = _plain(values[name])
        self._say(f"{name} = {_shown(self._session.fields[name])}")

    def _show(self, rest: str) -> None:
        card, info = self._session.service.card, self._session.service.info
        if rest in ("", "info"):
            about = [card.architecture or "", str(card.details.get("quantization", ""))]
            self._say(
                f"model       {card.name} {' '.join(filter(None, about))}".rstrip()
                + f"\nengine      {info.name} {info.version}".rstrip()
                + f"\ncontext     {self._session.fill()}\nmessages    {len(self._session.messages)}"
                + f"\nsystem      {self._session.system or '-'}\n{self._parameters()}"
            )
        elif rest in ("parameters", "system", "messages", "template"):
            self._say(getattr(self, f"_show_{rest}")())
        else:
            what = ("info", "system", "parameters", "messages", "template")
            raise UsageError(f"/show {rest}: unknown{did_you_mean(rest, what)}; there are: {', '.join(what)}")

    def _show_parameters(self) -> str:
        return self._parameters()

    def _show_system(self) -> str:
        return self._session.system or "no system prompt"

    def _show_template(self) -> str:
        return self._session.service.card.chat_template or "the model has no chat template"

    def _show_messages(self) -> str:
        rows = []
        for place, message in enumerate(self._session.messages):
            mark = " (stopped)" if place in self._session.stopped else ""
            rows.append(f"{message['role']}{mark}: {message['content']}")
        return "\n".join(rows) or "no messages yet"

    def _parameters(self) -> str:
        rows = [f"{name:<22}{_shown(value)}" for name, value in sorted(self._session.fields.items()) if name != "model"]
        return "\n".join(rows) or "parameters  all at the model's defaults"

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        self._say(f"{self._session.save(path)} messages saved to {path}")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        self._say(f"{self._session.load(path)} messages loaded from {path}; go on, or /show messages")

    def _stats(self, rest: str) -> None:
        timer = self._session.last_timer
        self._say(f"{timer.summary()}; {self._session.fill()}" if timer else "no answer yet")

    def _model(self, rest: str) -> None:
        if rest:
            self._session.service = self._catalog.get(rest)
            self._session.used_tokens = 0
        current = self._session.service.card.name
        rows = [f"{'*' if name == current else ' '} {name}" for name in self._catalog.names()]
        self._say("\n".join(rows))


def unescape(line: str) -> str | None:
    """The message of a line that is none or an escaped command (`//x`); None for a command."""
    if line.startswith("//"):
        return line[1:]
    return None if line.startswith("/") else line


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise UsageError(f"{command} needs a file name, such as {command} chat.json")
    return Path(rest.strip("\"'")).expanduser()


def _typed(text: str) -> Any:
    """Numbers, lists and true/false as JSON writes them; everything else is text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, float) and value != value:
        raise RequestError("NaN is not a number here")
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
