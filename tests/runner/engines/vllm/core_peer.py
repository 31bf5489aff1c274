"""A stand-in for the worker: the same command line and the same ZeroMQ protocol as EngineCore, without vllm.

The next token is the last one plus one, or plus the `step` in the adapter_config.json of the request's adapter; one
whose config says `fault` does not load. `LLMRUN_PEER` (comma-separated) changes what it does: `old` (fields of 0.17),
`strange` (no sampling_params field), `exit` (dies while loading), `hang`, `garbage`, `dead` (ENGINE_CORE_DEAD at the
first request), `pooling`, `ancient` (0.9.2).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from runner.engines.nodes import Place
from runner.engines.vllm.sharing import Sharing
from runner.engines.vllm.worker import join_nodes

_REQUEST = (
    "request_id prompt_token_ids mm_features sampling_params pooling_params arrival_time lora_request cache_salt "
    "data_parallel_rank prompt_embeds prompt_is_token_ids client_index"
)
_OUTPUT = (
    "request_id new_token_ids new_logprobs new_prompt_logprobs_tensors pooling_output finish_reason stop_reason events "
    "kv_transfer_params prefill_stats"
)
STRUCTS = {
    "EngineCoreRequest": _REQUEST.split(),
    "EngineCoreOutputs": ["engine_index", "outputs", "scheduler_stats", "timestamp", "utility_output"],
    "EngineCoreOutput": _OUTPUT.split(),
    "LoRARequest": ["lora_name", "lora_int_id", "lora_path", "base_model_name"],
    "PoolingParams": ["use_activation", "dimensions", "step_tag_id", "returned_token_ids", "task"],
}
OLD = {
    **STRUCTS,
    "EngineCoreRequest": _REQUEST.replace("pooling_params", "pooling_params eos_token_id").split()[:10],
    "EngineCoreOutput": _OUTPUT.replace("events kv_transfer_params ", "").split(),
}
MODES = os.environ.get("LLMRUN_PEER", "").split(",")
STEP_S = 0.002


class Peer:
    """One EngineCore."""

    def __init__(self, own: argparse.Namespace, structs: dict[str, list[str]]) -> None:
        self._structs = structs
        context = zmq.Context()
        self._handshake = self._dealer(context, own.llmrun_handshake)
        self._handshake.send(msgspec.msgpack.encode({"status": "HELLO", "local": True, "headless": False}))
        addresses = msgspec.msgpack.decode(self._handshake.recv())["addresses"]
        if "exit" in MODES:
            sys.stderr.write("RuntimeError: CUDA out of memory\n")
            sys.exit(3)
        if "hang" in MODES:
            time.sleep(600)
        self._inputs = [self._dealer(context, address) for address in addresses["inputs"]]
        self._outputs = [self._pusher(context, address) for address in addresses["outputs"]]
        self._output = self._outputs[0]
        self._max_seqs = own.max_num_seqs
        for one in self._inputs:
            one.send(msgspec.msgpack.encode({"max_model_len": 512, "max_num_seqs": self._max_seqs}))
        self._poller = zmq.Poller()
        for one in self._inputs:
            self._poller.register(one, zmq.POLLIN)
        self._handshake.send(msgspec.msgpack.encode({"status": "READY"}))
        self._open: dict[str, dict[str, Any]] = {}
        self._loras: dict[int, dict[str, Any]] = {}

    @staticmethod
    def _dealer(context: zmq.Context[Any], address: str) -> zmq.Socket[bytes]:
        made = context.socket(zmq.DEALER)
        made.setsockopt(zmq.IDENTITY, b"\0\0")
        made.connect(address)
        return made

    @staticmethod
    def _pusher(context: zmq.Context[Any], address: str) -> zmq.Socket[bytes]:
        made = context.socket(zmq.PUSH)
        made.connect(address)
        return made

    def abort(self, client: int) -> None:
        """As the guard's abort_client."""
        for key in [key for key, one in list(self._open.items()) if one["client"] == client]:
            self._open.pop(key, None)

    def run(self) -> None:
        while True:
            while ready := self._poller.poll(0 if self._open else None):
                for one, _ in ready:
                    kind, body = one.recv_multipart()[:2]
                    self._output = self._outputs[self._inputs.index(one)]
                    self._take(kind, msgspec.msgpack.decode(body))
            if self._open:
                time.sleep(STEP_S)
                running = list(self._open.items())[: self._max_seqs]
                for client in {one["client"] for _, one in running}:
                    mine = [(key, one) for key, one in running if one["client"] == client]
                    self._output = self._outputs[client]
                    self._send(outputs=[output for key, one in mine if (output := self._step(key, one)) is not None])

    def _take(self, kind: bytes, body: Any) -> None:
        if kind == b"\x00":
            fields = dict(zip(self._structs["EngineCoreRequest"], body, strict=False))
            self._add(fields)
        elif kind == b"\x01":
            for key in body:
                self._open.pop(key, None)
        elif kind == b"\x03":
            self._utility(*body[1:])

    def _utility(self, call_id: int, method: str, arguments: list[Any]) -> None:
        answers: dict[str, Any] = {
            "llmrun_stats": {"num_running": len(self._open), "num_waiting": 0, "num_adapters": len(self._loras)},
            "get_supported_tasks": ["embed"] if "pooling" in MODES else ["generate"],
        }
        failure = None
        if method == "add_lora":
            failure = self._add_lora(*arguments[0][:3])
        elif method == "remove_lora":
            self._loras.pop(arguments[0], None)
        elif method not in answers:
            failure = f"no method {method}"
        self._send(utility_output=[call_id, failure, [None, answers.get(method, True)]])

    def _add_lora(self, name: str, number: int, path: str) -> str | None:
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        if any(one["name"] == name for one in self._loras.values()):
            return f"two adapters are named {name}: vLLM would mix them up"
        self._loras[number] = {**config, "name": name}
        return config.get("fault")

    def _add(self, fields: dict[str, Any]) -> None:
        key, ids = fields["request_id"], fields["prompt_token_ids"]
        if "dead" in MODES:
            self._output.send(b"ENGINE_CORE_DEAD")
            time.sleep(600)
        if "garbage" in MODES:
            self._output.send(b"\xc1 this is no message")
            return
        if fields["pooling_params"] is not None:
            vector = ["float32", [2], msgspec.msgpack.Ext(3, struct.pack("<2f", 3.0, 4.0))]
            self._send(
                outputs=[self._output_of(request_id=key, new_token_ids=[], pooling_output=vector, finish_reason=0)]
            )
        elif not 0 < len(ids) < 512:
            self._send(
                outputs=[self._output_of(request_id=key, new_token_ids=[], finish_reason=3, stop_reason="length")]
            )
        elif ids[0] == 666:  # an error without words
            self._finish(key, finish_reason=3)
        else:
            self._open[key] = {"last": ids[-1], "made": 0, "num_prompt": len(ids), **fields["sampling_params"]}
            self._open[key]["lora"] = (fields.get("lora_request") or [None, 0])[1]
            self._open[key]["client"] = fields.get("client_index") or 0

    def _finish(self, key: str, **fields: Any) -> None:
        self._send(outputs=[self._output_of(request_id=key, new_token_ids=[], **fields)])

    def _step(self, key: str, one: dict[str, Any]) -> list[Any] | None:
        if one["lora"] and one["lora"] not in self._loras:
            sys.exit("a request runs with an adapter that was taken away")
        token = one["last"] = (one["last"] + self._loras.get(one["lora"], {}).get("step", 1)) % 1000
        one["made"] += 1
        fields: dict[str, Any] = {"request_id": key, "new_token_ids": [token]}
        stops = one.get("stop_token_ids", []) if one["made"] > one.get("min_tokens", 0) else []
        if one["made"] == 1:
            fields["prefill_stats"] = {"num_prompt_tokens": one["num_prompt"], "num_cached_tokens": 3}
        if one.get("logprobs") is not None:
            ids = struct.pack("<2i", token, 7)
            values = struct.pack("<2f", -0.5, -1.5)
            raw = msgspec.msgpack.Ext
            fields["new_logprobs"] = [["<i4", [1, 2], raw(3, ids)], ["<f4", [1, 2], raw(3, values)], None]
        if token in stops:
            fields |= {"finish_reason": 0, "stop_reason": token}
        elif one["made"] >= one["max_tokens"]:
            fields["finish_reason"] = 1
        if "finish_reason" in fields:
            del self._open[key]
        return self._output_of(**fields)

    def _output_of(self, **fields: Any) -> list[Any]:
        return [fields.get(name) for name in self._structs["EngineCoreOutput"]]

    def _send(self, **fields: Any) -> None:
        values = {"engine_index": 0, "outputs": [], "timestamp": time.monotonic(), **fields}
        self._output.send(msgspec.msgpack.encode([values.get(name) for name in self._structs["EngineCoreOutputs"]]))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--llmrun-handshake", "--llmrun-folder", "--llmrun-fd", "--llmrun-parent"):
        parser.add_argument(name)
    parser.add_argument("--llmrun-clients", type=int, default=1)
    parser.add_argument("--llmrun-place", default="")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    own, _ = parser.parse_known_args()
    launcher = socket.socket(fileno=int(own.llmrun_fd))
    structs = OLD if "old" in MODES else STRUCTS
    if "strange" in MODES:
        structs = {**structs, "EngineCoreRequest": ["request_id", "prompt_token_ids"]}
    if own.llmrun_place:
        join_nodes(msgspec.json.decode(own.llmrun_place, type=Place), launcher)
    report = {
        "type": "report",
        "version": "0.9.2" if "ancient" in MODES else "0.32.0",
        "structs": structs,
        "vocab_size": 1000,
        "max_logprobs": 20,
        "is_pooling": "pooling" in MODES,
        "platform": "none",
        "sampling_fields": [],
    }
    launcher.sendall(json.dumps(report).encode() + b"\n")

    sharing = Sharing(own.llmrun_folder, own.llmrun_clients)

    def leave() -> None:
        for line in launcher.makefile("rb"):
            sharing.begin(line)
        os._exit(0)

    threading.Thread(target=leave, daemon=True).start()
    peer = Peer(own, structs)
    sharing.abort = peer.abort
    peer.run()


if __name__ == "__main__":
    main()
