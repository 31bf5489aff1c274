"""/v1/load_lora_adapter and /v1/unload_lora_adapter: who may, names, statuses; engines are scripted here."""

from __future__ import annotations

from typing import Any

import pytest

from runner.errors import EngineDied, RequestError, UnknownAdapter, UsageError
from runner.types import EngineInfo
from tests.runner.frontends.http_server import CHAT, RunningServer, running
from tests.runner.frontends.scripted import ScriptedService

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
MINE = {"lora_name": "mine", "lora_path": "/somewhere"}


class Adaptable(ScriptedService):
    """Takes adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.info = EngineInfo(name="scripted", capabilities=("load_adapter",))
        self.adapters: dict[str, str] = {}
        self.replaced: list[str] = []
        self.error: Exception | None = None

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> None:
        if self.error is not None:
            raise self.error
        if name in self.adapters and not replace:
            raise RequestError(f"the adapter {name!r} is loaded already", field="lora_name")
        self.replaced += [name] * (name in self.adapters)
        self.adapters[name] = path
        self.info = self.info.with_adapters(self.adapters)

    async def unload_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise UnknownAdapter(f"there is no adapter {name!r}", field="lora_name")
        del self.adapters[name]
        self.info = self.info.with_adapters(self.adapters)


async def post(server: RunningServer, path: str, body: Any, **options: Any) -> tuple[int, str]:
    async with server.client.post(server.url + path, json=body, **options) as response:
        return response.status, await response.text()


async def models(server: RunningServer) -> list[tuple[str, str | None]]:
    return [(one["id"], one["parent"]) for one in (await server.get("/v1/models"))[1]["data"]]


async def test_a_loaded_adapter_is_a_model_until_it_is_unloaded() -> None:
    service = Adaptable()
    async with running(service, allow_runtime_lora=True) as server:
        assert await post(server, LOAD, MINE) == (200, "Success: LoRA adapter 'mine' added successfully.")
        assert service.adapters == {"mine": "/somewhere"}
        assert await models(server) == [("toy", None), ("mine", "toy")]
        status, answer = await server.post("/v1/chat/completions", {**CHAT, "model": "mine"})
        assert (status, answer["model"], service.requests[-1].adapter) == (200, "mine", "mine")
        assert await post(server, UNLOAD, {"lora_name": "mine"}) == (
            200,
            "Success: LoRA adapter 'mine' removed successfully.",
        )
        assert await models(server) == [("toy", None)]
        assert (await server.post("/v1/chat/completions", {**CHAT, "model": "mine"}))[0] == 404


async def test_the_statuses_are_those_of_vllm() -> None:
    async with running(Adaptable(), allow_runtime_lora=True) as server:
        assert (await post(server, LOAD, MINE))[0] == 200
        for path, body, status, words in (
            (LOAD, MINE, 400, "loaded already"),
            (LOAD, {**MINE, "lora_name": "toy"}, 400, "a model named 'toy' is served here"),
            (LOAD, {"lora_name": "x"}, 400, "lora_path is missing; give lora_name and lora_path"),
            (LOAD, {**MINE, "lora_name": ""}, 400, "not empty"),
            (LOAD, {**MINE, "lora_name": 5}, 400, "lora_name: got 5"),
            (LOAD, {**MINE, "extra": 1}, 400, "extra"),
            (LOAD, {**MINE, "is_3d_lora_weight": True}, 400, "fused experts"),
            (LOAD, [], 400, "object"),
            (UNLOAD, {}, 400, "lora_name is missing"),
            (UNLOAD, {"lora_name": "other"}, 404, "there is no adapter 'other'"),
        ):
            got, text = await post(server, path, body)
            assert got == status and words in text, (path, body, got, text)
        assert (await post(server, LOAD, {**MINE, "load_inplace": True, "is_3d_lora_weight": False}))[0] == 200
        assert (await post(server, UNLOAD, {"lora_name": "mine", "lora_int_id": 1}))[0] == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownAdapter("nothing there", field="lora_path"), 404, "adapter_not_found"),
        (RequestError("rank 64", field="lora_path"), 400, None),
        (EngineDied("gone"), 503, "engine_died"),
    ],
    ids=["path", "rank", "death"],
)
async def test_what_the_engine_says_is_the_clients_answer(error: Exception, status: int, code: str | None) -> None:
    service = Adaptable()
    service.error = error
    async with running(service, allow_runtime_lora=True) as server:
        got, body = await server.post(LOAD, MINE)
        assert (got, body["error"]["code"], body["error"]["message"]) == (status, code, str(error))
        assert await models(server) == [("toy", None)]


async def test_the_routes_are_closed_unless_the_owner_opens_them() -> None:
    service = Adaptable()
    async with running(service) as server:
        for path in (LOAD, UNLOAD):
            status, text = await post(server, path, MINE)
            assert status == 404 and "--allow-runtime-lora" in text
    async with running(service, allow_runtime_lora=True, api_key=("secret",)) as server:
        assert (await post(server, LOAD, MINE))[0] == 401
        assert (await post(server, LOAD, MINE, headers={"Authorization": "Bearer secret"}))[0] == 200


async def test_an_engine_that_loads_none_says_so() -> None:
    async with running(allow_runtime_lora=True) as server:
        status, text = await post(server, LOAD, MINE)
        assert status == 400 and "no engine here loads adapters while it runs (served by: scripted)" in text


def test_the_flag_goes_with_an_engine_that_can_and_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    from runner.cli import main
    from runner.config_file import Settings
    from runner.plan import make_options

    assert main(["--dry-run", "in=http", "out=llamacpp", "--allow-runtime-lora"]) == 2
    assert (
        "out=llamacpp does not know --allow-runtime-lora; leave it out (it is for out=vllm)" in capsys.readouterr().err
    )
    assert main(["--dry-run", "in=stdin", "out=vllm", "demo-hf", "--allow-runtime-lora"]) == 2
    assert "--allow-runtime-lora opens routes of in=http; got in=stdin" in capsys.readouterr().err
    with pytest.raises(UsageError, match="leave --http-workers out"):
        make_options(Settings({"allow_runtime_lora": True, "http_workers": 2}, {}))
    assert main(["--dry-run", "in=http", "out=vllm", "demo-hf", "--allow-runtime-lora"]) == 0
    assert "--enable-lora --max-loras 9 --max-lora-rank 16" in capsys.readouterr().out
