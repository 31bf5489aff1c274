"""CORS (the fetch standard): which origins of web pages may read answers, and the answer to a preflight."""

from __future__ import annotations

from aiohttp import hdrs, web

_MAX_AGE_S = "86400"
_EXPOSED = "X-Request-Id, Retry-After"


class Cors:
    """Allowed origins; `*` is any. No origins: no web page of another origin may read anything."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.strip().rstrip("/") for origin in origins)

    def headers(self, request: web.BaseRequest) -> dict[str, str]:
        """Headers for a response to this request."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return {} if self._any or not self._origins else {hdrs.VARY: hdrs.ORIGIN}
        if self._any:
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*", hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _EXPOSED}
        if origin not in self._origins:
            return {hdrs.VARY: hdrs.ORIGIN}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _EXPOSED,
            hdrs.VARY: hdrs.ORIGIN,
        }

    def preflight(self, request: web.BaseRequest) -> web.Response | None:
        """The answer, if the request is a preflight. Needs no key: browsers send none with it."""
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or asked is None or hdrs.ORIGIN not in request.headers:
            return None
        response = web.Response(status=204)
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in self.headers(request):
            return response
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST, OPTIONS"
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _MAX_AGE_S
        # `*` would not cover Authorization: what was asked for is named.
        named = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        if named:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = named
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            response.headers["Access-Control-Allow-Private-Network"] = "true"
        return response
