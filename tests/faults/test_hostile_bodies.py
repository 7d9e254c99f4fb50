"""H6: bodies that are dear to read or to keep, from clients and from upstreams: refused for their bytes, before they
are parsed; and the room that a body takes is given back however its request ends. The gateway has 1 MiB for all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from gateway.core.weight import MAX_ANSWERED, MAX_DIGITS, MAX_VALUES
from tests.faults.stage import Stage, ways
from tests.kit.sse_client import Response
from tests.kit.upstream import Hang, Reset, Script, chunk, openai_answer, openai_delta, response, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_BODY = 512 * 1024
SERVER = {"max_inflight_bytes": "1MiB", "max_body": "512KiB", "demo_page": False}
ROUTES = {"openai": b"/openai/openai", "chat": b"/chat/openai"}
POST = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n"
LARGE = 200_000
"""Bytes of a body that takes all the room that there is for large ones."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    times = {"connect": "1s", "first_event": "30s", "idle": "30s", "total": "60s"}
    async with Stage.opened(tmp_path_factory.mktemp("stage"), times, server=SERVER) as opened:
        yield opened


async def connected(stage: Stage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = stage.gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def posted(path: bytes, body: bytes) -> bytes:
    """A request with this body."""
    return POST % (path, b"Content-Length: %d\r\n" % len(body)) + body


async def sent(stage: Stage, path: bytes, body: bytes) -> Response:
    """The answer to this body, its head read."""
    reader, writer = await connected(stage)
    writer.write(posted(path, body))
    answer = Response(reader, writer)
    async with asyncio.timeout(20):
        await answer.read_head()
    return answer


async def refusal(stage: Stage, path: bytes, body: bytes) -> tuple[int, str, str]:
    """Status, code and message of the error that this body is answered with."""
    async with await sent(stage, path, body) as answer:
        told = await answer.json()
        error = told.get("error", told)
        return answer.status, error["code"], error.get("message") or error["detail"]


def asks(size: int = LARGE, text: bytes = b"x") -> bytes:
    """A good chat request of so many bytes."""
    return b'{"messages":[{"role":"user","content":"%s"}]}' % (text * ((size - 45) // len(text)))


# -- from clients --------------------------------------------------------------------------------------------------

MANY, DIGITS = f"more than {MAX_VALUES} values", f"more than {MAX_DIGITS} digits"
BOMBS = {
    "lists": (b'{"messages":[' + b"[]," * MAX_VALUES + b"[]]}", MANY),
    "nested lists": (b'{"messages":' + b"[" * MAX_BODY, MANY),
    "nested objects": (b'{"messages":' + b'{"a":' * (MAX_BODY // 6), MANY),
    "numbers": (b'{"messages":[' + b"1," * MAX_VALUES + b"1]}", MANY),
    "one name again and again": (b"{" + b'"a":1,' * MAX_VALUES + b'"a":1}', MANY),
    "tiny strings": (b'{"messages":[' + b'"a",' * MAX_VALUES + b'"a"]}', MANY),
    "digits": (b'{"messages":' + b"1" * (MAX_BODY - 20) + b"}", DIGITS),
    "digits of an exponent": (b'{"messages":[1e' + b"9" * 1000 + b"]}", DIGITS),
    "numbers of 4,000 digits": (b'{"messages":[' + (b"7" * 4000 + b",") * 100 + b"1]}", DIGITS),
}


@pytest.mark.parametrize("path", ROUTES.values(), ids=ROUTES)
async def test_bomb_is_refused_with_its_reason(stage: Stage, path: bytes) -> None:
    """H6: whatever is dear to parse is a 400 that says why; what is merely too large a 413."""
    for name, (bomb, reason) in BOMBS.items():
        status, code, message = await refusal(stage, path, bomb[:MAX_BODY])
        assert (status, code) == (400, "bad_request"), name
        assert reason in message, (name, message)
    assert (await refusal(stage, path, b" " * (MAX_BODY + 1)))[:2] == (413, "body_too_large")
    await room_is_there(stage)


@pytest.mark.parametrize("text", [b"[1, {2}], ", b'\\"[,\\\\', "\u4f60[".encode(), b"\\u0041,"], ids=str)
async def test_text_that_speaks_of_brackets_is_served(stage: Stage, text: bytes) -> None:
    """H6: what is in a string is not parsed, and is no reason to refuse it."""
    stage.plays(openai_answer("yes"))
    async with await sent(stage, ROUTES["openai"], asks(MAX_BODY - 1000, text)) as answer:
        assert answer.status == 200, await answer.body()
        await answer.body()


Way = Callable[[Stage], Awaitable[None]]


async def bad_json(stage: Stage) -> None:
    assert (await refusal(stage, ROUTES["openai"], asks()[:-1]))[0] == 400


async def no_utf8(stage: Stage) -> None:
    assert (await refusal(stage, ROUTES["chat"], asks(text=b"\xff")))[0] == 400


async def bomb(stage: Stage) -> None:
    assert (await refusal(stage, ROUTES["chat"], BOMBS["lists"][0]))[0] == 400


async def wrong_field(stage: Stage) -> None:
    assert (await refusal(stage, ROUTES["chat"], b'{"no":"%s"}' % (b"x" * LARGE)))[0] == 400


async def too_large_in_chunks(stage: Stage) -> None:
    reader, writer = await connected(stage)
    writer.write(POST % (ROUTES["openai"], b"Transfer-Encoding: chunked\r\n"))
    writer.write((b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 9)
    async with asyncio.timeout(10), Response(reader, writer) as answer:
        await answer.read_head()
        assert answer.status == 413


async def leaves_while_sending(stage: Stage) -> None:
    _, writer = await connected(stage)
    writer.write(POST % (ROUTES["openai"], b"Content-Length: %d\r\n" % LARGE) + b" " * 100_000)
    await writer.drain()
    writer.transport.abort()


async def leaves_before_the_answer(stage: Stage) -> None:
    stage.plays([Hang()])
    _, writer = await connected(stage)
    writer.write(posted(ROUTES["openai"], asks()))
    await stage.upstream.exchange()
    writer.transport.abort()
    await stage.hung_up()


async def served(stage: Stage) -> None:
    stage.plays(openai_answer("one"))
    async with await sent(stage, ROUTES["chat"], b'{"message":"%s"}' % (b"x" * LARGE)) as answer:
        assert answer.status == 200
        await answer.body()


async def failed(stage: Stage) -> None:
    stage.plays([response(500, '{"error":{"message":"xxxxxxxxxxxxxxxxxxxxxxxx is too much for me","code":"xxxx"}}')])
    async with await sent(stage, ROUTES["openai"], asks()) as answer:
        assert answer.status == 502
        await answer.body()


async def broken_off(stage: Stage) -> None:
    stage.plays([sse_head(), openai_delta("a"), Reset()])
    async with await sent(stage, ROUTES["chat"], asks()) as answer:
        await answer.body()


async def passed_on(stage: Stage) -> None:
    stage.plays([response(200, "{}")])
    async with await sent(stage, b"/proxy/openai/x", b"x" * LARGE) as answer:
        assert (answer.status, await answer.body()) == (200, b"{}")


WAYS_OUT: list[Way] = [
    *(bad_json, no_utf8, bomb, wrong_field, too_large_in_chunks, leaves_while_sending, leaves_before_the_answer),
    *(served, failed, broken_off, passed_on),
]


@pytest.mark.parametrize("way_out", WAYS_OUT, ids=lambda way: way.__name__)
async def test_room_is_given_back_on_every_way_out(stage: Stage, way_out: Way) -> None:
    """H6: afterwards a body that needs all the room is served; if a byte were kept, it would wait and be refused."""
    await way_out(stage)
    await room_is_there(stage)


async def room_is_there(stage: Stage) -> None:
    """Return when a body that needs all room was served."""
    stage.plays(openai_answer("here"))
    async with await sent(stage, ROUTES["openai"], asks()) as answer:
        assert answer.status == 200, await answer.body()
        assert b"here" in await answer.body()
    await stage.at_rest()


async def test_body_without_room_is_told_to_come_back_and_small_ones_are_served(stage: Stage) -> None:
    """H6: what is kept for an answer that runs is room that others have not; it is there again when that ends."""
    stage.plays(lambda exchange: openai_answer("small") if len(exchange.body) < 5000 else [sse_head(), Hang()])
    _, holder = await connected(stage)
    holder.write(posted(ROUTES["openai"], asks(LARGE, b"\\ud83d\\ude00")))
    held = await stage.upstream.exchange()
    waiting = [asyncio.create_task(sent(stage, path, asks(300_000))) for path in (*ROUTES.values(), b"/proxy/openai/x")]
    async with await sent(stage, ROUTES["openai"], asks(2000)) as answer:
        assert answer.status == 200
        await answer.body()
    for task in waiting:
        async with await task as answer:
            told = await answer.json()
            assert (answer.status, told.get("error", told)["code"]) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
    holder.transport.abort()
    await asyncio.wait_for(held.closed.wait(), 5)
    await room_is_there(stage)


# -- from upstreams ------------------------------------------------------------------------------------------------

ANSWERS = {
    "lists": b"[" + b"[]," * MAX_ANSWERED + b"[]]",
    "nested lists": b"[" * MAX_ANSWERED + b"]" * MAX_ANSWERED,
    "numbers": b"[" + b"1," * MAX_ANSWERED + b"1]",
    "one name again and again": b"{" + b'"a":1,' * MAX_ANSWERED + b'"a":1}',
    "digits": b"1" * 700_000,
}


@pytest.mark.parametrize("bomb", ANSWERS)
async def test_whole_answer_that_is_a_bomb_is_too_large(stage: Stage, bomb: str) -> None:
    """H6: the same from an upstream, wherever it stands in an answer; it is told as any answer that is too large."""
    answer = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"x":%s}' % ANSWERS[bomb]
    stage.plays([response(200, answer)])
    await stage.fail_all(ways("openai", "whole", "chat"), "upstream_oversize", 502, whole=True)


@pytest.mark.parametrize("bomb", ANSWERS)
async def test_error_that_is_a_bomb_is_an_error_without_a_sentence(stage: Stage, bomb: str) -> None:
    """H6: of an error's body, no more than 64 KiB are ever read."""
    stage.plays([response(500, b'{"error":{"message":"a","details":%s}}' % ANSWERS[bomb])])
    await stage.fail_all(ways("openai", "chat"), "upstream_error", 502)


async def test_event_that_is_a_bomb_is_skipped_and_the_answer_goes_on(stage: Stage) -> None:
    """H6: as any event that nobody understands. An endless number in it is none."""
    bombs = [chunk(b"data: " + bomb + b"\n\n") for bomb in ANSWERS.values() if len(bomb) < 1 << 20]
    usage = chunk(b'data: {"choices":[],"usage":{"prompt_tokens":1e999999,"completion_tokens":-1e999999}}\n\n')
    script: Script = [sse_head(), openai_delta("one "), *bombs, usage, *openai_answer("two")[1:]]
    stage.plays(script)
    await stage.complete_all(ways("openai", "chat"), "one two")
