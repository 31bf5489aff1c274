"""A toy library on a toy index, a recipe for it under the name vllm, and `llmrun` that knows this recipe.

Everything else is real: the virtual environment, pip (or uv), the wheel, the processes.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

from runner.engines import environments
from runner.engines.environments import Wish
from runner.engines.python_environment import PythonEnvironment
from runner.engines.python_recipe import PythonRecipe

ENVIRONMENT = PythonEnvironment(engine="vllm", library="Toy", packages=("toylib",))


class ToyRecipe(PythonRecipe):
    """As the real ones."""

    environment = ENVIRONMENT
    check_code = "import toylib; print('LLMRUN toylib', toylib.VERSION, 'imports')"
    note = "a second"

    def requirements(self, wish: Wish) -> list[str]:
        return [f"toylib=={wish.version or '1.0'}"]


RECIPE = ToyRecipe()


def write_wheel(folder: Path, version: str, code: str, *, num_bulk_bytes: int = 0) -> Path:
    """A wheel of toylib with a console script."""
    files = {
        "toylib/__init__.py": f"VERSION = {version!r}\n{code}\ndef main(): print('toy', VERSION)\n".encode(),
        f"toylib-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: toylib\nVersion: {version}\n".encode(),
        f"toylib-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"toylib-{version}.dist-info/entry_points.txt": b"[console_scripts]\ntoy = toylib:main\n",
    }
    if num_bulk_bytes:
        files["toylib/bulk.bin"] = os.urandom(num_bulk_bytes)
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    record = f"toylib-{version}.dist-info/RECORD"
    files[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    path = folder / f"toylib-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class HangingIndex:
    """An index on loopback whose download of toylib begins and never ends."""

    def __init__(self, wheel: Path) -> None:
        self.is_asked = threading.Event()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                if self.path.endswith(".whl"):
                    self.send_header("Content-Length", str(wheel.stat().st_size))
                    self.end_headers()
                    self.wfile.write(wheel.read_bytes()[:100])
                    self.wfile.flush()
                    index.is_asked.set()
                    index._is_over.wait(120)
                    return
                page = f'<html><body><a href="/files/{wheel.name}">{wheel.name}</a></body></html>'.encode()
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_: Any) -> None:
                pass

        self._is_over = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def close(self) -> None:
        self._is_over.set()
        self._server.shutdown()
        self._server.server_close()


def main() -> int:
    """`python -m tests.runner.engines.toy_package engines install vllm`."""
    from runner.cli import main

    environments.RECIPES["vllm"] = (
        f"{__name__ if __name__ != '__main__' else 'tests.runner.engines.toy_package'}:RECIPE"
    )
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
