"""Logging of the launcher: to stderr, quiet by default; -v says more, -vv everything. stdout is for answers only."""

from __future__ import annotations

import logging

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_NOISY = ("asyncio", "aiohttp", "filelock", "httpx", "httpcore", "huggingface_hub", "markdown_it", "urllib3")


def set_up(verbose: int) -> None:
    """Log to stderr at the level of -v. Libraries stay one level quieter than we are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[min(verbose, 2)])
    # said of every TLS connection of asyncio's streams (NATS) that the other side ends; nothing follows from it
    logging.getLogger("asyncio").addFilter(lambda record: "eof_received() has no effect" not in record.getMessage())
    # huggingface_hub has a handler of its own, put there on import: each of its lines would come twice
    logging.getLogger("huggingface_hub").propagate = False
    for name in _NOISY:
        logging.getLogger(name).setLevel(_LEVELS[max(min(verbose, 2) - 1, 0)])
