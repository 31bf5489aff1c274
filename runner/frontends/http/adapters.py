"""/v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM's server has them. Open with --allow-runtime-lora only:
who may use them names any folder that this machine can read.
"""

from __future__ import annotations

from typing import Any, cast

from aiohttp import web

from runner.errors import RequestError, UnsupportedField
from runner.frontends.http.errors import NotEnabled
from runner.frontends.http.state import STATE, State
from runner.openai_fields import BOOL, Kind, exactly, integer, string
from runner.openai_requests import decode_body, read_fields
from runner.services import AdapterService

_NAME = string(256, empty=False)
LOAD_FIELDS: dict[str, Kind] = {
    "lora_name": _NAME,
    "lora_path": string(4096, empty=False),
    "load_inplace": BOOL,
    "is_3d_lora_weight": exactly(False, why="adapters of fused experts are not supported; leave it out"),
}
UNLOAD_FIELDS: dict[str, Kind] = {"lora_name": _NAME, "lora_int_id": integer(1)}
"""`lora_int_id` has no effect, neither here nor in vLLM."""
LOAD_REQUIRED, UNLOAD_REQUIRED = ("lora_name", "lora_path"), ("lora_name",)


async def load(request: web.Request) -> web.Response:
    """POST /v1/load_lora_adapter: `lora_name` is a model from now on."""
    state = request.app[STATE]
    state.enter()
    try:
        values = await _read(request, state, LOAD_FIELDS, LOAD_REQUIRED)
        name = values["lora_name"]
        if name in state.catalog.names():
            raise RequestError(f"lora_name: a model named {name!r} is served here; take another", field="lora_name")
        replace = values.get("load_inplace", False)
        await _service(state).load_adapter(name, values["lora_path"], replace=replace)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")
    finally:
        state.leave()


async def unload(request: web.Request) -> web.Response:
    """POST /v1/unload_lora_adapter: the name is free; requests that run with it end as they would have."""
    state = request.app[STATE]
    state.enter()
    try:
        name = (await _read(request, state, UNLOAD_FIELDS, UNLOAD_REQUIRED))["lora_name"]
        await _service(state).unload_adapter(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")
    finally:
        state.leave()


async def _read(request: web.Request, state: State, fields: dict[str, Kind], required: tuple[str, ...]) -> Any:
    """The checked fields of the body. Raises NotEnabled before it is read."""
    if not state.allows_adapters:
        raise NotEnabled(f"{request.path} is closed; start with --allow-runtime-lora to let clients load adapters")
    values, _ = read_fields(decode_body(await request.read()), fields, lenient=state.lenient)
    for name in required:
        if name not in values:
            raise RequestError(f"{name} is missing; give {' and '.join(required)}", field=name)
    return values


def _service(state: State) -> AdapterService:
    """The served model whose engine takes adapters. Raises UnsupportedField."""
    for service in state.services().values():
        if "load_adapter" in service.info.capabilities:
            return cast(AdapterService, service)
    engines = ", ".join(sorted({service.info.name for service in state.services().values()})) or "none yet"
    raise UnsupportedField(f"no engine here loads adapters while it runs (served by: {engines})", field="lora_name")
