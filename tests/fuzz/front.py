# ruff: noqa: E501 - inputs are best read whole
"""Raw requests to a running gateway: it answers or closes, in time; it logs no error; and nothing is left of them."""

import asyncio
import random
from typing import Any, Final

from tests.fuzz.mutate import mutated
from tests.kit.program import Gateway
from tests.kit.sse_client import request
from tests.web.stage import setting

PATIENCE: Final = 15.0
"""Seconds in which a client that has sent a FIN is answered, or its connection closed."""
BODY: Final = b'{"message":"hi","messages":[{"role":"user","content":"hi"}]}'
ROUTES: Final = ({"path": "/chat"}, {"path": "/openai", "api": "openai"}, {"path": "/proxy/{path}", "api": "proxy"})
REQUESTS: Final = (
    b"GET /chat?message=hi HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
    b"POST /openai HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(BODY), BODY),
    b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (len(BODY), BODY),
    b"GET /streams/abcdefghijklmnopqrstuv HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: abcdefghijklmnopqrstuv.1.2\r\n\r\n",
    b"PUT /proxy/a%20b?c=d HTTP/1.1\r\nHost: localhost\r\nCookie: a=b; c=d\r\nX-Forwarded-For: ::1, 1.2.3.4\r\n\r\n",
    b"OPTIONS /chat HTTP/1.1\r\nHost: localhost\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n\r\n",
    b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 10\r\n\r\nmessage=hi",
    b"HEAD / HTTP/1.0\r\nExpect: 100-continue\r\nAuthorization: Bearer x\r\n\r\n",
)


def configuration() -> dict[str, Any]:
    """A gateway whose upstreams refuse every connection, so that an answer costs nothing."""
    return setting("http://127.0.0.1:9", ROUTES, stream={"commit_after": "0s"})


async def attack(gateway: Gateway, count: int, rng: random.Random, at_once: int = 16) -> int:
    """Sends so many mutated requests.

    Returns:
        How many connections were answered with bytes.

    Raises:
        AssertionError: one was neither answered nor closed; the message has its bytes.
    """
    answered = 0
    for _ in range(0, count, at_once):
        datas = [mutated(rng.choice(REQUESTS), REQUESTS, rng) for _ in range(at_once)]
        answered += sum(await asyncio.gather(*(converse(gateway, data) for data in datas)))
    return answered


async def assert_nothing_left(gateway: Gateway) -> None:
    """No stream runs, nothing is held, no error was logged, and it still answers."""
    async with await request(gateway.admin + "/streams") as answer:
        assert await answer.json() == []
    errors = [line for line in gateway.log_lines() if line["level"] == "error"]
    assert not errors, errors[:3]


async def converse(gateway: Gateway, data: bytes) -> bool:
    """Whether these bytes, with a FIN behind them, are answered with any. Raises as `attack`."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    got = b""
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            while part := await reader.read(1 << 16):
                got = got or part
    except TimeoutError:
        raise AssertionError(f"neither answered nor closed: {data!r}") from None
    except ConnectionError:
        return bool(got)
    finally:
        writer.close()
    assert not got or got.startswith(b"HTTP/"), (data, got[:200])
    return bool(got)
