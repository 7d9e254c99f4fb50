"""A node dies, pauses or ends in the middle of an answer: another one finishes it, and no reader notices more than a
new connection (R5, R6)."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kit.upstream import Hang, Step, openai_delta, sse_head
from tests.store.stage import END, Reading, Stage, counts, goes_on, prefix, stage, word

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = list(range(1, 11))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Three nodes on one Redis; each test leaves all of them running."""
    async with stage(tmp_path_factory.mktemp("adoption"), 3) as made:
        yield made


PHASES: dict[str, list[Step]] = {
    "silent": [Hang()],
    "head only": [sse_head(), Hang()],
    "first word": [*counts(1, 1), Hang()],
    "middle": [*counts(1, 5), Hang()],
    "all words": [*counts(1, 10), Hang()],
    "all but the marker": [*counts(1, 10), END[0], Hang()],
}


@pytest.mark.parametrize("path", ["/chat", "/v1"])
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
    await three.nodes[0].start()
