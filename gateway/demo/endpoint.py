"""The stand-in as a server: `POST /v1/chat/completions` and `GET /v1/models`, as slow as a model.

When a client goes away, its answer ends at once. No credential is needed and none is read; the port is bound on
127.0.0.1 only. This file does not know what the answers say.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from gateway.demo import protocol
from gateway.demo.answers import Script, answer, prompt_tokens

FIRST_TOKEN: Final = 0.3
MAX_BODY: Final = 16 * 1024 * 1024
CLOSE_TIMEOUT: Final = 0.5
RETRY_AFTER: Final = "3"

_SPEED: Final = web.AppKey("speed", float)
_IDS: Final = web.AppKey("ids", Iterator[int])


def make_demo_app(speed: float = 1.0) -> web.Application:
    """The stand-in as an application.

    Args:
        speed: multiplies every speed, above 0; with `math.inf` answers come without any pause.
    """
    app = web.Application(client_max_size=MAX_BODY)
    app[_SPEED] = speed
    app[_IDS] = itertools.count(1)
    app.add_routes([web.post("/v1/chat/completions", _complete), web.get("/v1/models", _models)])
    return app


class Demo(NamedTuple):
    """A stand-in that listens.

    Attributes:
        url: the base URL for an OpenAI client, ending in `/v1`.
    """

    url: str
    runner: web.AppRunner

    async def close(self) -> None:
        """Stops listening and ends the answers under way, within about a second."""
        await self.runner.cleanup()


async def start_demo(speed: float = 1.0) -> Demo:
    """A stand-in on a free port of 127.0.0.1; it listens when this returns.

    Args:
        speed: as in `make_demo_app`.

    Raises:
        OSError: no port could be bound.
    """
    runner = web.AppRunner(
        make_demo_app(speed), handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_TIMEOUT
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return Demo(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", runner)


async def _models(_: web.Request) -> web.Response:
    model = {"id": "demo", "object": "model", "created": 0, "owned_by": "gateway"}
    return _json(msgspec.json.encode({"object": "list", "data": [model]}))


async def _complete(request: web.Request) -> web.StreamResponse:
    try:
        chat = msgspec.json.decode(await request.read(), type=protocol.ChatRequest)
    except msgspec.DecodeError as wrong:
        return _json(protocol.error(str(wrong), "invalid_request_error"), status=400)
    script = answer(chat)
    await asyncio.sleep(FIRST_TOKEN / request.app[_SPEED])
    if script.fault in ("error", "busy"):  # before the status; the other faults strike in the middle
        return _refusal(script.fault)
    ids = request.app[_IDS]
    reply = protocol.Reply(
        id=f"chatcmpl-demo-{next(ids)}",
        created=int(time.time()),
        model=chat.model,
        deltas=script.deltas,
        finish_reason=script.finish_reason,
        prompt_tokens=prompt_tokens(chat.messages),
    )
    if chat.stream:
        return await _stream(request, chat, script, reply)
    await _broken(request, script)
    return _json(protocol.completion(reply))


def _refusal(fault: str) -> web.Response:
    if fault == "busy":
        body = protocol.error("Too many requests; you asked for this with /busy.", "requests", "rate_limit_exceeded")
        return _json(body, status=429, headers={"Retry-After": RETRY_AFTER})
    return _json(protocol.error("The model failed; you asked for this with /error.", "server_error"), status=500)


async def _stream(
    request: web.Request, chat: protocol.ChatRequest, script: Script, reply: protocol.Reply
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    clock, half = asyncio.get_running_loop().time, len(script.deltas) // 2
    begun, pause = clock(), 1 / script.rate / request.app[_SPEED]
    with contextlib.suppress(ConnectionError):  # whoever asked has left
        for index, frame in enumerate(protocol.frames(reply, chat.wants_usage)):
            await asyncio.sleep(begun + index * pause - clock())  # from the beginning, so that delays do not add up
            await response.write(frame)
            if index == half and await _broken(request, script):
                return response
        await response.write(protocol.DONE)
    return response


async def _broken(request: web.Request, script: Script) -> bool:
    """Lets the script's fault happen: silence without end, or the connection is closed, which returns True."""
    if script.fault == "stall":
        await asyncio.Event().wait()
    if script.fault == "cut" and request.transport is not None:
        request.transport.close()
    return script.fault == "cut"


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")
