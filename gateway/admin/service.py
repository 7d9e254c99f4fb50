"""What the admin listener answers.

`/livez` says that the loop turns; `/readyz` that new streams are welcome; `/metrics` is for Prometheus; `/streams`
lists what runs now. No credential is asked for: the listener is for the operators' network, by default this machine.
"""

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import hdrs, web

from gateway.metrics import CONTENT_TYPE
from gateway.web.state import Gateway

Answer = Callable[[Gateway], web.Response]


class AdminService:
    """Answers requests to the admin listener.

    Args:
        gateway: the process it tells of.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __call__(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """The answer to one request."""
        return self._answer(request)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = _ANSWERS.get(request.path)
        if answer is None:
            return _text(404, f"Nothing here; there is {', '.join(_ANSWERS)}.\n")
        if request.method not in ("GET", "HEAD"):
            return _text(405, "Only GET and HEAD.\n", {hdrs.ALLOW: "GET, HEAD"})
        return answer(self._gateway)


def _metrics(gateway: Gateway) -> web.Response:
    gateway.metrics.log_bytes.set(gateway.registry.budget.used)
    gateway.metrics.log_streams.set(len(gateway.registry))
    _show_breakers(gateway)
    return web.Response(body=gateway.metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})


def _show_breakers(gateway: Gateway) -> None:
    metrics = gateway.metrics
    metrics.breaker_open.clear()  # or a target that a reload took away would stay as it was for ever
    for upstream in gateway.snapshot.upstreams.values():
        for target in sorted(upstream.targets, key=lambda target: target.breaker.is_open):
            # Targets of one host and port share a line, which an open one has the last word on.
            labels = metrics.upstream_label(upstream.name), target.label
            metrics.breaker_open.labels(*labels).set(target.breaker.is_open)


def _live(gateway: Gateway) -> web.Response:
    return _text(200, "ok\n")


def _ready(gateway: Gateway) -> web.Response:
    return _text(503, "draining\n") if gateway.draining else _text(200, "ok\n")


def _streams(gateway: Gateway) -> web.Response:
    streams = [generation.describe() for generation in gateway.engine.running.values()]
    return web.Response(body=msgspec.json.encode(streams), content_type="application/json")


_ANSWERS: dict[str, Answer] = {"/metrics": _metrics, "/livez": _live, "/readyz": _ready, "/streams": _streams}


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)
