"""A stand-in for sglang 0.5.23 in tests: its names, signatures and manners, and a model of sixteen lines.

Real: the signature of Engine.async_generate, cumulative chunks with the stop token among the ids, `ignore_eos` over all
stop ids, end tokens of the config, aborts by the beginning of an id, processes of its own, handlers that it sets.
"""

__version__ = "0.5.23"

from sglang.engine import Engine  # noqa: F401
