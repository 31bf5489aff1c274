"""Slash commands: what they change, and what they say to a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.catalog import Catalog
from runner.frontends.text_commands import COMMANDS, Action, SlashCommands, View, unescape
from runner.frontends.text_session import ChatSession
from tests.runner.frontends.text_fakes import ScriptedService


class Desk:
    """A session with its commands; `say` keeps what is said."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        for name in ("first", "second"):
            self.catalog.add(ScriptedService(name=name))
        self.session = ChatSession(self.catalog.default())
        self.view = View(markdown=True, stats=False)
        self.said: list[str] = []
        self.commands = SlashCommands(self.session, self.catalog, self.view, self.said.append)

    def run(self, line: str) -> str:
        """What the command says."""
        self.said.clear()
        assert self.commands.run(line) is Action.NOTHING
        return "\n".join(self.said)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("line", ["/bye", "/exit", "/quit", " /bye "])
def test_leaving(desk: Desk, line: str) -> None:
    assert desk.commands.run(line) is Action.LEAVE


def test_regen_is_the_frontends_work(desk: Desk) -> None:
    assert desk.commands.run("/regen") is Action.REGENERATE


def test_help_lists_every_command(desk: Desk) -> None:
    text = desk.run("/?")
    assert all(command.name in text and command.help in text for command in COMMANDS)


def test_an_unknown_command_is_told_with_the_nearest_one(desk: Desk) -> None:
    assert "unknown command /hlep; did you mean /help?" in desk.run("/hlep")
    assert "send it as a message: //etc/passwd is" in desk.run("/etc/passwd is")


def test_a_doubled_slash_is_a_message() -> None:
    assert unescape("//help") == "/help"
    assert unescape("/help") is None
    assert unescape("what is / for?") == "what is / for?"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/set temperature 0.3", "temperature", 0.3),
        ("/set parameter top_k 40", "top_k", 40),
        ("/set num_predict 12", "max_tokens", 12),
        ("/set temp 0", "temperature", 0),
        ("/set repeat_penalty 1.1", "repetition_penalty", 1.1),
        ('/set stop ["a", "b"]', "stop", ["a", "b"]),
        ("/set stop END OF", "stop", ["END OF"]),
        ("/set ignore_eos true", "ignore_eos", True),
    ],
)
def test_settings_reach_the_request(desk: Desk, line: str, name: str, value: object) -> None:
    assert name in desk.run(line)
    assert desk.session.fields[name] == value
    desk.session.messages = [{"role": "user", "content": "x"}]
    request = desk.session.request()
    found = getattr(request, name) if hasattr(request, name) else getattr(request.sampling, name)
    assert (list(found) if isinstance(found, tuple) else found) == value
    assert desk.run(f"/set {name} default")
    assert name not in desk.session.fields


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", "temperature: got -1, allowed is a number from 0 to 100"),
        ("/set temperature warm", "got 'warm'"),
        ("/set temperature NaN", "NaN"),
        ("/set temperatur 1", "unknown setting temperatur; did you mean temperature?"),
        ("/set n 2", "unknown setting n"),
        ("/set top_p", "needs a value"),
        ("/show nothing", "/show nothing: unknown"),
        ("/save", "needs a file name"),
        ("/load no.json", "cannot read no.json"),
        ("/model third", "no model 'third' is served here; on offer: first, second"),
    ],
)
def test_mistakes_are_told_and_change_nothing(desk: Desk, line: str, message: str) -> None:
    assert message in desk.run(line)
    assert desk.session.fields == {}


def test_view_switches(desk: Desk) -> None:
    desk.run("/set plain")
    desk.run("/set verbose")
    assert (desk.view.markdown, desk.view.stats) == (False, True)


def test_system_prompt(desk: Desk) -> None:
    assert "no system prompt" in desk.run("/system")
    desk.run("/system be brief")
    assert desk.run("/show system") == "be brief"
    desk.run("/set system other words")
    assert desk.session.system == "other words"
    desk.run("/system -")
    assert desk.session.system is None


def test_show_clear_and_model(desk: Desk) -> None:
    desk.session.messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "half"}]
    desk.session.stopped = {1}
    assert desk.run("/show messages") == "user: q\nassistant (stopped): half"
    assert "first" in desk.run("/show")
    assert "no answer yet" in desk.run("/stats")
    assert desk.run("/model second").splitlines() == ["  first", "* second"]
    assert desk.session.service.card.name == "second"
    desk.run("/clear")
    assert desk.session.messages == []


def test_save_and_load(desk: Desk, tmp_path: Path) -> None:
    desk.session.messages = [{"role": "user", "content": "q"}]
    path = tmp_path / "c.json"
    assert desk.run(f"/save {path}") == f"1 messages saved to {path}"
    desk.run("/clear")
    assert "1 messages loaded" in desk.run(f"/load {path}")
    assert desk.session.messages == [{"role": "user", "content": "q"}]
