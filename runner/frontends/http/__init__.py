"""in=http: the OpenAI API over aiohttp."""

from runner.frontends.http.frontend import HttpFrontend

__all__ = ["HttpFrontend"]
