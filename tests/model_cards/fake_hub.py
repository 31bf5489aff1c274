"""A small Hugging Face Hub on loopback: trees, files with ETag and Range, and the ways in which they fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`repos`: repo -> {path: content}. `log`: (method, path, Range) of every request."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.token = "hf_right"
        self.break_after: int | None = None
        """Close the connection after this many bytes of a file, and answer 503 from then on."""
        self.status: int | None = None
        """Answer every request with this status."""
        self.log: list[tuple[str, str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def downloads(self) -> list[tuple[str, str | None]]:
        """Files that were asked for with GET, with their Range."""
        return [
            (p.split("/resolve/")[1].split("/", 1)[1], r) for m, p, r in self.log if m == "GET" and "/resolve/" in p
        ]


def _make_handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve(with_body=True)

        def do_HEAD(self) -> None:
            self._serve(with_body=False)

        def _serve(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.log.append((self.command, path, self.headers.get("Range")))
            if hub.status is not None:
                return self._fail(hub.status, "")
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                return self._tree(match[1], match[2])
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._file(match[1], match[3], with_body)
            return self._fail(404, "")

        def _refusal(self, repo: str) -> tuple[int, str] | None:
            has_token = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if repo not in hub.repos or (repo in hub.private and not has_token):
                return 401, "RepoNotFound"
            if repo in hub.gated and not has_token:
                return 401, "GatedRepo"
            return None

        def _tree(self, repo: str, revision: str) -> None:
            if refusal := self._refusal(repo):
                return self._fail(*refusal)
            if revision != "main":
                return self._fail(404, "RevisionNotFound")
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in hub.repos[repo].items()
            ]
            return self._answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, True)

        def _file(self, repo: str, path: str, with_body: bool) -> None:
            if refusal := self._refusal(repo):
                return self._fail(*refusal)
            data = hub.repos[repo].get(path)
            if data is None:
                return self._fail(404, "EntryNotFound")
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            headers["Accept-Ranges"] = "bytes"
            status, body = 200, data
            if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                start = int(match[1])
                status, body = 206, data[start:]
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._answer(status, body, headers, with_body)

        def _answer(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not with_body:
                return
            if hub.break_after is not None and len(body) > hub.break_after:
                self.wfile.write(body[: hub.break_after])
                hub.break_after, hub.status = None, 503
                self.close_connection = True
                return
            self.wfile.write(body)

        def _fail(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
