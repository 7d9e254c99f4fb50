# ruff: noqa: E501 - inputs are best read whole
"""Raw requests to both listeners of a running gateway, whose provider answers as raw: each is answered with good HTTP,
or its connection closed, in time; no error is logged; and nothing is left of them.

Several inputs go over one connection, each behind the answer to the one before it. An input counts when it was sent:
what would come behind one that ended its connection does not.
"""

import asyncio
import contextlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Self

from tests.fuzz.answers import CHUNK, REFUSALS, STOP, WHOLE
from tests.fuzz.mutate import mutated
from tests.fuzz.requests import CHATS
from tests.kit.program import Gateway
from tests.kit.sse_client import request
from tests.web.stage import setting

PATIENCE: Final = 20.0
"""Seconds in which a client that has sent a FIN is answered, or its connection closed."""
QUIET: Final = 0.3
"""Seconds after which a client that got no answer sends a FIN: its input may be a part of a request."""
AT_ONCE: Final = 48
"""Connections."""
A_CONNECTION: Final = 8
"""Inputs that are sent over one connection, at most."""
BODY: Final = b'{"message":"hi","messages":[{"role":"user","content":"hi"}]}'
ROUTES: Final = (
    {"path": "/chat"},
    {"path": "/openai", "api": "openai"},
    {"path": "/proxy/{path}", "api": "proxy"},
    {"path": "/ui", "format": "ui"},
)
_CHATS: Final = (
    *CHATS,
    b'{"message":"hi","session_id":"s","last_event_id":"abcdefghijklmnopqrstuv.1.2"}',
    b'{"id":"c","trigger":"submit-message","message":{"role":"user","parts":[{"type":"text","text":"hi"}]}}',
)
KEY: Final = "Zk39vTq81LmX0aBcDw72uYh5Rj60sNf4"
"""A client's; so long that a path with it is told without it."""
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
    b"POST /tickets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{}"
    % KEY.encode(),
    b"GET /chat?message=hi&ticket=abcdefghijklmnopqrstuvwxyz012345 HTTP/1.1\r\nHost: localhost\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    b"DELETE /streams/abcdefghijklmnopqrstuv?token=%s HTTP/1.1\r\nHost: localhost\r\nForwarded: for=1.2.3.4\r\nX-Request-Id: r\r\n\r\n"
    % KEY.encode(),
    b"POST /ui HTTP/1.1\r\nHost: localhost\r\nContent-Length: 77\r\n\r\n"
    b'{"id":"c","messages":[{"role":"user","parts":[{"type":"text","text":"hi"}]}]}',
    b"GET /streams HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\nConnection: close\r\n\r\n",
    b"GET /metrics?name[]=a HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n",
    b"DELETE /principals/key:other HTTP/1.1\r\nHost: [::1]:80\r\nOrigin: http://[::1]:80\r\nCookie: a=\xff\r\nCookie: b\r\n\r\n",
    *(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (path, len(body), body)
        for path in (b"/chat", b"/openai", b"/ui", b"/proxy/a")
        for body in _CHATS
    ),
)
_HEAD: Final = re.compile(
    rb"HTTP/1\.[01] ([1-5][0-9][0-9]) [\t -~\x80-\xff]*\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*)\r\n"
)
_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")


class Broken(NamedTuple):
    """A promise was broken.

    Attributes:
        why: the same for all that is broken in the same way.
        detail: what was seen.
        datas: the inputs that were sent over one connection.
    """

    why: str
    detail: str
    datas: tuple[bytes, ...]


_STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS: Final = (
    _STREAM + b"\r\n" + CHUNK + STOP,
    _STREAM + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(CHUNK + STOP), CHUNK + STOP),
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(WHOLE), WHOLE),
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(REFUSALS[0]), REFUSALS[0]),
    b"HTTP/1.0 404 Not Found\r\nSet-Cookie: a=b; Path=/\r\nContent-Type: text/html\r\n\r\n<html></html>",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
)
_ASKED: Final = re.compile(
    rb"[A-Z]+ /(v1/[!-~]+|[!-~]*) HTTP/1\.1\r\n([!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t -~\x80-\xff]*\r\n)*\r\n"
)


class Provider:
    """An upstream that answers with bytes that were changed, and closes. What it is asked must be good HTTP.

    Attributes:
        url: where it listens.
        wrong: what it was asked that is no good HTTP.
    """

    def __init__(self, rng: random.Random) -> None:
        self.url = ""
        self.wrong: list[bytes] = []
        self._rng = rng
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if not _ASKED.fullmatch(head):
                self.wrong.append(head)
            answer = self._rng.choice(ANSWERS)
            writer.write(mutated(answer, ANSWERS, self._rng) if self._rng.random() < 0.7 else answer)
            await writer.drain()


def configuration(provider: Provider) -> dict[str, Any]:
    """A gateway in front of this provider."""
    auth = {"anonymous": True, "keys": [{"id": "web", "key": KEY}], "tickets": {"ttl": "30s"}}
    return setting(
        provider.url,
        ROUTES,
        auth=auth,
        stream={"commit_after": "0s"},
        server={"trusted_proxies": ["127.0.0.0/8"]},
    )


def made(rng: random.Random) -> bytes:
    """An input: a request that was changed or, now and then, a good one."""
    data = rng.choice(REQUESTS)
    if rng.random() < 0.1:
        return data
    head, blank, body = mutated(data, REQUESTS, rng).partition(b"\r\n\r\n")
    if rng.random() < 0.5:  # with its true length, what was changed in a body comes to be read
        head = re.sub(rb"(?<=Content-Length: )[0-9]+", b"%d" % len(body), head)
    return head + blank + body


async def attack(gateway: Gateway, datas: Iterator[bytes], broken: list[Broken]) -> int:
    """Sends these inputs, some at once, up to `A_CONNECTION` over each connection, a third of them to the admin
    listener. What is broken goes to `broken`.

    Returns:
        How many inputs were read.
    """

    places = itertools.cycle((gateway.url, gateway.url, gateway.admin))

    async def client() -> int:
        read = 0
        while some := list(itertools.islice(datas, A_CONNECTION)):
            try:
                answered = await converse(next(places), some)
                read += answered
            except AssertionError as error:
                why, _, detail = str(error).partition("\n")
                broken.append(Broken(why, detail, tuple(some)))
        return read

    return sum(await asyncio.gather(*(client() for _ in range(AT_ONCE))))


async def assert_nothing_left(gateway: Gateway, provider: Provider) -> None:
    """No stream runs, no error was logged, the provider was asked well, and the gateway still answers."""
    assert not provider.wrong, provider.wrong[:3]
    async with await request(gateway.admin + "/streams") as answer:
        assert await answer.json() == []
    errors = [line for line in gateway.log_lines() if line["level"] == "error"]
    assert not errors, errors[:3]


async def converse(url: str, datas: Sequence[bytes]) -> int:
    """Sends these inputs over one connection to this listener, each behind the answer to the one before, for as long as
    it stays open.

    Returns:
        How many were read: those that were answered, and the last one even if it was not.

    Raises:
        AssertionError: the last one was neither answered nor the connection closed; or what came is no HTTP. Its first
            line says which.
    """
    host, port = url.removeprefix("http://").split(":")
    got, read = bytearray(), 0
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(writer):
                for data in datas:
                    read, begun = read + 1, len(got)
                    writer.write(data)
                    if not await _answered(reader, got, begun):
                        break
                writer.write_eof()
                while part := await reader.read(1 << 16):
                    got += part
    except TimeoutError:
        raise AssertionError(f"neither answered nor closed\n{bytes(got[-200:])!r}") from None
    except OSError:
        return read  # it was closed before all was sent, or reset behind the answer, of which a part may be lost
    with contextlib.suppress(CutError):
        list(answers(bytes(got)))
    return read


async def _answered(reader: asyncio.StreamReader, got: bytearray, begun: int) -> bool:
    """Whether a whole answer comes behind the first `begun` bytes; False for a silence of `QUIET`, and for the end."""
    while True:
        try:
            async with asyncio.timeout(QUIET):
                part = await reader.read(1 << 16)
        except TimeoutError:
            return False
        got += part
        if not part or _is_whole(bytes(got[begun:])):
            return bool(part)


def _is_whole(got: bytes) -> bool:
    try:
        heads = list(answers(got))
    except AssertionError:
        return False
    return bool(heads) and b"\r\nconnection: close\r\n" not in heads[-1].lower()


class CutError(AssertionError):
    """An answer is not whole. Where an upstream's body broke off that is right: only a cut shows it."""


def answers(got: bytes) -> Iterator[bytes]:
    """The heads of the answers.

    Raises:
        CutError: the last answer is not whole.
        AssertionError: something is no answer.

    Source: RFC 9112 4, 6.3, 7.1.
    """
    at = 0
    while at < len(got):
        head = _HEAD.match(got, at)
        if not head and b"\r\n\r\n" not in got[at:]:
            raise CutError
        assert head, f"no head of an answer\n{got[max(0, at - 600) : at]!r} and then {got[at : at + 300]!r}"
        at = head.end()
        status, fields = int(head[1]), head[2].lower()
        if status == 100:
            continue  # the final answer follows
        yield head[0]
        length = re.findall(rb"(?:^|\r\n)content-length: *([0-9]+)\r\n", b"\r\n" + fields)
        assert len(length) <= 1, f"several lengths\n{head[0]!r}"
        if status in (204, 304) or at == len(got) or got.startswith(b"HTTP/1.", at):
            continue  # without a body, as answers to HEAD are
        if b"transfer-encoding: chunked\r\n" in fields:
            assert not length, f"a length and chunks\n{head[0]!r}"
            at = _end_of_chunks(got, at)
        elif length:
            at += int(length[0])
            if at > len(got):
                raise CutError
        else:
            at = len(got)  # until the close


def _end_of_chunks(got: bytes, at: int) -> int:
    while True:
        size = _CHUNK.match(got, at)
        if not size and b"\r\n" not in got[at:]:
            raise CutError
        assert size, f"no chunk\n{got[at : at + 100]!r}"
        at = size.end() + int(size[1], 16)
        if at + 2 > len(got):
            raise CutError
        assert got[at : at + 2] == b"\r\n", f"no end of a chunk\n{got[at - 50 : at + 50]!r}"
        at += 2
        if not int(size[1], 16):
            return at
