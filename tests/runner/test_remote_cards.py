"""Dynamo's cards as an ingress reads them: a template that is not the model's own, and cards with nonsense in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import model_cards
from runner.net.records import RecordError
from runner.remote_cards import read_card

MODEL = Path(model_cards.__file__).parent / "presets" / "demo" / "hf"


def _card(template: Any) -> dict[str, Any]:
    config = {"hf_config_json": {"path": str(MODEL / "config.json")}}
    return {"display_name": "x", "model_info": config, "context_length": 512, "chat_template_file": template}


async def test_a_template_of_the_workers_own_is_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("mine {{ messages[0].content }}")
    own = {"hf_chat_template": {"is_custom": True, "file": {"path": str(file)}}}
    assert (await read_card(_card(own), None, tmp_path)).card.chat_template == file.read_text()
    models = {"hf_chat_template": {"is_custom": False, "file": {"path": str(MODEL / "chat_template.jinja")}}}
    expected = (MODEL / "chat_template.jinja").read_text()
    assert (await read_card(_card(models), None, tmp_path)).card.chat_template == expected


@pytest.mark.parametrize("file", [{"path": "/nonexistent/t.jinja"}, {"path": 5}, None, [], {}])
async def test_a_template_that_is_not_here_is_not_replaced_by_another(file: Any, tmp_path: Path) -> None:
    own = {"hf_chat_template": {"is_custom": True, "file": file}}
    with pytest.raises(RecordError, match="a chat template of its own at"):
        await read_card(_card(own), None, tmp_path)


@pytest.mark.parametrize("template", [None, 5, [], {}, {"hf_chat_template": []}, {"hf_chat_template_jinja": {}}])
async def test_what_names_no_template_leaves_the_models(template: Any, tmp_path: Path) -> None:
    assert (await read_card(_card(template), None, tmp_path)).card.chat_template
