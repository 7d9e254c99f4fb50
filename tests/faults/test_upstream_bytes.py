"""Bytes that break the framing, the encoding or the bounds, and too many of them (U18-U20, U22, U23)."""

import asyncio
import gzip
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest

from tests.faults.stage import (
    CHATS,
    DIALECTS,
    KINDS,
    PAGE,
    STREAMS,
    Stage,
    Way,
    ending,
    head,
    opening,
    stage_fixture,
    token,
    ways,
)
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Exchange,
    Hang,
    Pause,
    Step,
    chunk,
    http_head,
    openai_answer,
    openai_chunk,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

stage = stage_fixture({"connect": "1s", "first_event": "5s", "idle": "5s", "total": "20s"})

MIB = 1 << 20


# U18: the framing

BAD_HEADS = {
    "no http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Type: text/event-stream\r\n\r\n",
    "bare cr": b"HTTP/1.1 200 OK\r\nX-A: a\rX-B: b\r\nContent-Type: text/event-stream\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "long line": http_head(200, "text/event-stream", X_Long="x" * 9000),
    "many lines": http_head(200, "text/event-stream", **{f"X_{n}": "x" * 100 for n in range(90)}),
}


@pytest.mark.parametrize("bad", BAD_HEADS)
async def test_malformed_head_is_502(stage: Stage, bad: str) -> None:
    stage.plays([BAD_HEADS[bad], chunk(token("openai", "Hi")), Hang()])
    await stage.fail_all(ways(*KINDS), "upstream_protocol", 502)
    await stage.fail_all(ways(*STREAMS, committed=True), "upstream_protocol", 502)
    others = [way for dialect in DIALECTS[1:] for way in ways("openai", "chat", dialect=dialect)]
    await stage.fail_all(others, "upstream_protocol", 502)


BAD_CHUNKS = [b"zz\r\nabc\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"f" * 40 + b"\r\n"]


@pytest.mark.parametrize("bad", BAD_CHUNKS)
async def test_token_in_the_same_packet_as_a_malformed_chunk_is_delivered_first(stage: Stage, bad: bytes) -> None:
    texts = [f"{n} " for n in range(30)]  # fast enough that the gateway polls
    fast = [step for text in texts for step in (chunk(token("openai", text)), Pause(0.003))]
    stage.plays([*opening("openai"), *fast, chunk(token("openai", "last")) + bad, Hang()])
    await stage.fail_all(ways(*KINDS), "upstream_protocol", 502, text="".join(texts) + "last")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bad", BAD_CHUNKS)
async def test_malformed_chunk_is_an_error_behind_whole_events(stage: Stage, bad: bytes, dialect: str) -> None:
    stage.plays([*opening(dialect, "Hello"), Pause(0.1), bad, Hang()])
    text = "Hello" + ("abcde" if dialect == "text" and bad[:1] == b"5" else "")  # there, any bytes are an event
    kinds = KINDS if dialect == "openai" else CHATS
    await stage.fail_all(ways(*kinds, dialect=dialect), "upstream_protocol", 502, text=text)


async def test_bytes_after_the_end_are_no_part_of_the_next_answer(stage: Stage) -> None:
    stage.plays(
        [
            *opening("openai", "Hello"),
            b"".join(part for part in ending("openai") if isinstance(part, bytes)),
            b"HTTP/1.1 200 smuggled",
        ]
    )
    await stage.complete_all(ways(*KINDS), "Hello")
    await stage.complete_all(ways(*KINDS), "Hello")


async def test_answer_that_nobody_asked_for_is_nobodys(stage: Stage) -> None:
    stage.plays([*opening("openai", "Hello"), *ending("openai"), Pause(0.1), response(200, PAGE, "text/html")])
    for way in ways(*KINDS):
        await stage.complete_all([way], "Hello")
        await stage.upstream.exchanges[-1].finished.wait()
        await stage.at_rest()  # a round trip, after which the gateway has seen what was sent before it


# U19: characters and where they are cut


TEXT = "h\u00e9 \U0001f600 \u4f60\u597d"
LINES = [(dialect, newline) for dialect in ("openai", "anthropic", "sse") for newline in (b"\n", b"\r\n", b"\r")]


@pytest.mark.parametrize(("dialect", "newline"), [*LINES, ("ollama", b"\n"), ("ollama", b"\r\n"), ("text", b"\n")])
async def test_every_cut_of_the_bytes_gives_the_same_events(stage: Stage, dialect: str, newline: bytes) -> None:
    stop = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
    marks = {"openai": openai_chunk({}, "stop") + b"data: [DONE]\n\n", "anthropic": stop, "text": b""}
    ends = marks | {"ollama": b'{"done":true,"done_reason":"stop"}\n', "sse": b"event: done\ndata: {}\n\n"}
    body = (token(dialect, TEXT) + ends[dialect]).replace(b"\n", newline)
    body = body if dialect == "ollama" else b"\xef\xbb\xbf" + body

    def cut(exchange: Exchange) -> list[Step]:
        return [head(dialect), *(chunk(body[at : at + 3]) for at in range(0, len(body), 3)), LAST_CHUNK]

    stage.plays(cut)
    await stage.complete_all(ways(*CHATS, dialect=dialect), TEXT)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_invalid_utf8_becomes_replacement_characters(stage: Stage, dialect: str) -> None:
    said = token(dialect, "a?b").replace(b"?", b"\xff")
    stage.plays([*opening(dialect), chunk(said), *ending(dialect)])
    await stage.complete_all(ways(*CHATS, dialect=dialect), "a\ufffdb")


# U20: bounds

FLOOD = b"x" * (64 << 10)
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "line": (b"data: ", FLOOD),
    "event": (b"", b"data: " + FLOOD + b"\n"),
    "comments": (b"", b": " + FLOOD + b"\n"),
    "name": (b"event: ", FLOOD),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_never_ends_is_cut_and_kept_out_of_memory(stage: Stage, what: str) -> None:
    start, flood = ENDLESS[what]
    before = stage.memory()
    stage.plays([*opening("openai", "Hello"), chunk(start or b":\n"), *[chunk(flood)] * 800, Hang()])
    for heard in await stage.fail_all(ways(*KINDS), "upstream_oversize", 502, text="Hello"):
        assert not heard.error["retryable"]
    assert stage.memory() - before < 64 * MIB


@pytest.mark.parametrize(
    ("dialect", "what"),
    [("ollama", "line"), *((dialect, what) for dialect in ("anthropic", "sse") for what in ENDLESS)],
)
async def test_what_never_ends_is_cut_whoever_sends_it(stage: Stage, dialect: str, what: str) -> None:
    start, flood = ENDLESS[what] if dialect != "ollama" else (b"{", FLOOD)
    stage.plays([*opening(dialect, "Hello"), chunk(start or b":\n"), *[chunk(flood)] * 100, Hang()])
    await stage.fail_all(ways("openai", "chat", dialect=dialect), "upstream_oversize", 502, text="Hello")


async def test_event_at_the_bound_passes(stage: Stage) -> None:
    text = "x" * (MIB - 1000)
    stage.plays([*opening("openai"), chunk(token("openai", text)), *ending("openai")])
    await stage.complete_all(ways(*KINDS), text)


@pytest.mark.alone
async def test_flood_of_one_upstream_delays_no_other_stream(stage: Stage) -> None:
    flood = [*opening("openai"), chunk(b": \n"), *[chunk(b": " + FLOOD + b"\n")] * 60, Cut()]
    assert await delay_beside(stage, flood) < 0.25


# U22: encodings


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x-made-up"])
async def test_encoded_answer_is_502(stage: Stage, coding: str) -> None:
    bomb = gzip.compress(b"\0" * 50 * MIB)
    before = stage.memory()
    stage.plays([sse_head(Content_Encoding=coding), chunk(bomb), LAST_CHUNK])
    for heard in await stage.fail_all(ways(*KINDS), "upstream_encoding", 502, whole=True):
        assert not heard.error["retryable"]
    others = [way for dialect in DIALECTS[1:] for way in ways("openai", "chat", dialect=dialect)]
    await stage.fail_all(others, "upstream_encoding", 502, whole=True)
    await stage.fail_all(ways(*STREAMS, committed=True), "upstream_encoding", 502, whole=True)
    assert stage.memory() - before < 16 * MIB


async def test_upstream_is_asked_for_identity(stage: Stage) -> None:
    stage.plays(openai_answer("Hi"))
    await stage.complete_all(ways(*KINDS), "Hi")
    assert {exchange.headers["accept-encoding"] for exchange in stage.upstream.exchanges} == {"identity"}


async def test_encoded_error_body_is_no_bomb(stage: Stage) -> None:
    before = stage.memory()
    stage.plays([response(500, gzip.compress(b"\0" * 50 * MIB), Content_Encoding="gzip"), Cut()])
    await stage.fail_all(ways(*CHATS), "upstream_error", 502)
    assert stage.memory() - before < 16 * MIB


# U23: crumbs and floods


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_one_byte_at_a_time_is_read_as_one(stage: Stage, dialect: str) -> None:
    body = b"".join(token(dialect, f"{n} ") for n in range(60))
    stage.plays([*opening(dialect), *(chunk(bytes([byte])) for byte in body), *ending(dialect)])
    await stage.complete_all(ways("openai", "chat", dialect=dialect), "".join(f"{n} " for n in range(60)))


@pytest.mark.alone
async def test_crumbs_and_floods_of_one_upstream_delay_no_other_stream(stage: Stage) -> None:
    body = openai_chunk({"content": "a"}) * 50
    crumbs = await delay_beside(stage, [head("openai"), *(chunk(bytes([byte])) for byte in body), Cut()])
    flood = await delay_beside(stage, [head("openai"), *[chunk(token("openai", "a") * 1000)] * 200, Cut()])
    print(f"delay of another stream: crumbs {crumbs:.3f} s, 200,000 events {flood:.3f} s")
    assert crumbs < 0.25
    assert flood < 0.25


class Ticks(Sequence[Step]):
    """A script that goes on until `done`: every 20 ms an event that says when it was sent."""

    def __init__(self, done: asyncio.Event) -> None:
        self._done = done

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, at: Any) -> Any:
        if self._done.is_set() or at >= len(self):
            raise IndexError
        return Pause(0.02) if at % 2 else chunk(b"data: %.6f\n\n" % time.monotonic())


async def delay_beside(stage: Stage, script: list[Step]) -> float:
    """The longest of `delays_beside`, in the best of three tries: what else the machine does delays streams too."""
    tries: list[float] = []
    while len(tries) < 3 and min(tries, default=1.0) >= 0.25:
        tries.append(max(await delays_beside(stage, script)))
    return min(tries)


async def delays_beside(stage: Stage, script: list[Step]) -> list[float]:
    """Seconds from the sending of each event of one stream to its arrival, while another upstream plays the script."""
    done = asyncio.Event()

    def play(exchange: Exchange) -> Any:
        return script if "/openai/" in exchange.target else chain([sse_head()], Ticks(done), [LAST_CHUNK])

    stage.plays(play)
    noisy = asyncio.create_task(stage.ask(Way("openai")))
    noisy.add_done_callback(lambda _: done.set())
    url = f"{stage.gateway.url}/proxy/sse/x"
    async with await request(url, headers={"Accept": "text/event-stream"}) as calm:
        delays = [time.monotonic() - float(message.data) async for message in calm.messages()]
    await noisy
    await stage.at_rest()
    return delays
