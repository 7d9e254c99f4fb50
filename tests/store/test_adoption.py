"""A node dies, pauses or ends in the middle of an answer: another one finishes it, and no reader notices more than a
new connection (R5, R6)."""

import asyncio
import signal
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from tests.kit.upstream import Exchange, Hang, Step, WaitFor, chunk, openai_chunk, response, sse_head
from tests.store.stage import END, V1, Play, Reading, Stage, counts, goes_on, prefix, stage, word

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = list(range(1, 11))


def refuses_prefix(exchange: Exchange) -> list[Step]:
    """Its answer to a request that ends with what the model is to continue."""
    if not prefix(exchange):
        return [*counts(7, 10), *END]
    error = {"message": "Assistant message prefill is not supported by this model.", "type": "invalid_request_error"}
    return [response(400, msgspec.json.encode({"error": error}))]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Three nodes on one Redis."""
    async with stage(tmp_path_factory.mktemp("adoption"), 3) as made:
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def all_run(three: Stage) -> AsyncIterator[None]:
    """Each test begins with three nodes that know one another."""
    yield
    await asyncio.gather(*(node.start() for node in three.nodes if not node.running))


PHASES: dict[str, list[Step]] = {
    "silent": [Hang()],
    "head only": [sse_head(), Hang()],
    "first word": [*counts(1, 1), Hang()],
    "middle": [*counts(1, 5), Hang()],
    "all words": [*counts(1, 10), Hang()],
    "all but the marker": [*counts(1, 10), END[0], Hang()],
}


@pytest.mark.parametrize("path", ["/chat", V1])
async def test_killed_owner_is_replaced_in_every_phase(three: Stage, path: str) -> None:
    """Many answers, each in another phase, as their node dies: every reader gets every word once, for one call more."""
    readings = {phase: Reading(three, f"{phase}{path}", path) for phase in PHASES}
    for phase, reading in readings.items():
        three.plays[reading.question] = [lambda _, steps=PHASES[phase]: steps, goes_on(10)]  # type: ignore[misc]
        await reading.begin(0)
    follower = Reading(three, f"middle{path}", path)
    follower.stream_id = readings["middle"].stream_id
    await follower.resume(1)
    for phase, reading in readings.items():
        await reading.read(words={"silent": 0, "head only": 0, "first word": 1, "middle": 5}.get(phase, 10))
        await three.upstream.exchange(list(readings).index(phase))
        while reading.question not in three.calls:  # noqa: ASYNC110 - its request is on the way
            await asyncio.sleep(0.02)
    await follower.read(words=5)
    await three.nodes[0].kill()
    await asyncio.gather(*(reading.finish(1, 2) for reading in readings.values()), follower.finish(1))
    for phase, reading in {**readings, "follower": follower}.items():
        assert (reading.words, reading.error) == (WHOLE, ""), phase
        assert len(three.calls[reading.question]) == 2, phase
    assert prefix(three.calls[readings["middle"].question][1]) == 5


async def test_paused_owner_loses_its_streams_and_tells_no_reader_more(three: Stage) -> None:
    """Its upstream said more while it stood still: that is no part of the stream any more (R5)."""
    three.plays["paused"] = [lambda _: [*counts(1, 5), WaitFor(more), *map(word, range(6, 20)), Hang()], goes_on(10)]
    more = asyncio.Event()
    attached, other = Reading(three, "paused"), Reading(three, "paused")
    await attached.begin(0)
    other.stream_id = attached.stream_id
    await attached.read(words=5)
    await other.resume(0)
    await other.read(words=5)
    await other.leave()
    three.nodes[0].send_signal(signal.SIGSTOP)
    try:
        more.set()  # the bytes wait in the paused node's socket
        await other.finish(1, 2)
    finally:
        three.nodes[0].send_signal(signal.SIGCONT)
    await attached.finish(0)
    for reading in (attached, other):
        assert (reading.words, reading.error) == (WHOLE, "")
    assert len(three.calls["paused"]) == 2
    await three.nodes[0].logged("stream_lost")
    async with asyncio.timeout(5):
        await three.calls["paused"][0].closed.wait()


async def test_two_nodes_die_one_after_the_other(three: Stage) -> None:
    """What was adopted is adopted again."""
    three.plays["twice"] = [
        lambda _: [*counts(1, 3), Hang()],
        lambda exchange: [*counts(prefix(exchange) + 1, 6), Hang()],
        goes_on(10),
    ]
    reading = Reading(three, "twice")
    await reading.begin(0)
    await reading.read(words=3)
    await three.nodes[0].kill()
    async with asyncio.timeout(10):
        while len(three.calls["twice"]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    second = await three.owner(reading.stream_id)
    await reading.resume(3 - second)
    await reading.read(words=6)
    await three.nodes[second].kill()
    await reading.finish(3 - second)
    assert (reading.words, reading.error, len(three.calls["twice"])) == (WHOLE, "", 3)
    assert reading.messages[-1].last_event_id.split(".")[1].startswith("2-")


async def test_node_that_ends_hands_its_streams_over(three: Stage) -> None:
    """TERM with answers that outlast `drain`: no reader sees an error, and each is asked back at another time."""
    readings = [Reading(three, f"handed {number}") for number in range(12)]
    for reading in readings:
        three.plays[reading.question] = [lambda _: [*counts(1, 5), Hang()], goes_on(10)]
        await reading.begin(0)
        await reading.read(words=5)
    await three.nodes[0].stop()
    assert not any([await reading.read() for reading in readings])
    retries = [reading.answer.parser.retry for reading in readings if reading.answer]
    in_order = sorted(retry for retry in retries if retry is not None)
    assert [500 + 100 * slot <= retry <= 600 + 100 * slot for slot, retry in enumerate(in_order)] == [True] * 12
    await asyncio.gather(*(reading.finish(1, 2) for reading in readings))
    for reading in readings:
        assert (reading.words, reading.error, len(three.calls[reading.question])) == (WHOLE, "", 2)


async def test_reader_is_asked_back_before_its_stream_may_be_gone(three: Stage) -> None:
    """It may end elsewhere the moment after, and `ttl` of the one route is a second; also for who reads elsewhere."""
    readings = [Reading(three, f"gone {number}", path) for number, path in enumerate(("/short", "/plain", "/short"))]
    more = asyncio.Event()
    for node, reading in zip((0, 0, 1), readings, strict=True):
        three.plays[reading.question] = [
            lambda _: [*counts(1, 5), WaitFor(more), *map(word, range(6, 11)), *END],
            goes_on(10),
        ]
        await reading.begin(node)
        await reading.read(words=5)
    await readings[2].resume(0)
    await three.nodes[0].stop()
    assert not any([await reading.read() for reading in readings])
    short, plain, elsewhere = (reading.answer.parser.retry or 0 for reading in readings if reading.answer)
    assert 0 < short <= 500 <= plain <= 800
    assert 0 < elsewhere <= 500
    more.set()
    await asyncio.gather(*(reading.finish(1, 2) for reading in readings))
    assert [(reading.words, reading.error) for reading in readings] == [(WHOLE, "")] * 3


async def test_adopted_answer_that_nobody_comes_back_to_is_abandoned(three: Stage) -> None:
    """Nobody pays for it longer than readers need to come back; a reader at another node keeps it (P4)."""
    three.plays |= {name: lambda _: [*counts(1, 5), Hang()] for name in ("left", "read elsewhere")}
    left, read = Reading(three, "left", "/brief"), Reading(three, "read elsewhere", "/brief")
    for reading in (left, read):
        await reading.begin(0)
        await reading.read(words=5)
    await read.resume(1)
    await left.leave()
    async with asyncio.timeout(10):
        await three.calls["left"][0].closed.wait()
    await asyncio.sleep(1.5)  # a silence that lasts is what is tested
    assert not three.calls["read elsewhere"][0].closed.is_set()
    await read.leave()
    async with asyncio.timeout(10):
        await three.calls["read elsewhere"][0].closed.wait()


async def test_what_cannot_go_on_ends_with_one_honest_error(three: Stage) -> None:
    """Tool calls; another text, which an OpenAI client cannot take back; a chat begins anew instead.

    The last test of this file: its target refuses a prefix, which is remembered.
    """
    tool = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
    anew: list[Play] = [lambda _: [*counts(1, 5), Hang()], refuses_prefix, lambda _: [*counts(7, 10), *END]]
    three.plays |= {"tool": [lambda _: [sse_head(), chunk(openai_chunk(tool)), Hang()], goes_on(10)]}
    three.plays |= {"differs": anew, "differs in chat": anew}
    tools, differs, chat = Reading(three, "tool", V1), Reading(three, "differs", V1), Reading(three, "differs in chat")
    for reading in (tools, differs, chat):
        await reading.begin(0)
    assert tools.answer is not None
    message = await tools.answer.next()
    assert message is not None
    tools.take(message)
    await differs.read(words=5)
    await chat.read(words=5)
    await three.nodes[0].kill()
    await asyncio.gather(tools.finish(1, 2), differs.finish(1, 2), chat.finish(1, 2))
    assert (tools.error, len(three.calls["tool"])) == ("upstream_cut", 1)
    assert (differs.error, differs.words) == ("upstream_cut", [1, 2, 3, 4, 5])
    assert (chat.error, chat.words, chat.restarts) == ("", [7, 8, 9, 10], 1)
