"""The table of frontends: name -> class. Nothing is imported until used."""

from __future__ import annotations

FRONTENDS: dict[str, str] = {
    "text": "runner.frontends.text:TextFrontend",
    "stdin": "runner.frontends.stdin:StdinFrontend",
    "batch": "runner.frontends.batch:BatchFrontend",
    "http": "runner.frontends.http:HttpFrontend",
    "none": "runner.frontends.none:NoneFrontend",
    "dyn": "runner.frontends.endpoint:EndpointFrontend",
}
NOT_BUILT: dict[str, str] = {
    "grpc": "in=http serves the same model over HTTP",
}
"""Known words that are not built yet, and what can be used instead."""
