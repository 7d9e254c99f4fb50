"""A format that keeps state, defined outside the package: it opens and closes parts, and resumes within one rightly."""

import json
from collections.abc import Sequence
from typing import Any, Final

import pytest

from gateway.core.event import DONE, ERROR, THINKING, TOKEN, Event
from gateway.formats import CLASSES, Encoder, Spec, View
from tests.kit.sse_client import request
from tests.kit.upstream import Pause, ScriptedUpstream, openai_answer, openai_delta, sse_head
from tests.seams.serving import serving
from tests.web.stage import EVENTS, parsed, setting

ROUTE = {"path": "/chat", "format": "parts", "merge": False}


class Parts:
    """`open`, the deltas, `close`, for each run of thinking and of text."""

    announces_resume: Final = False
    stateful: Final = True
    spec: Spec = "parts"

    def open(self, view: View) -> Encoder:
        return PartsEncoder()


class PartsEncoder:
    def __init__(self) -> None:
        self.part = ""

    def encode(self, event: Event, index: int) -> str:
        blocks = self.turn_to(event.type if event.type in (THINKING, TOKEN) else "")
        if event.type in (THINKING, TOKEN):
            blocks.append({"delta": event.data, "part": event.type})
        elif event.type == DONE:
            blocks.append({"end": True})
        elif event.type == ERROR:
            blocks.append(json.loads(event.data))
        return "\n".join(f"data: {json.dumps(block)}\n" for block in blocks)

    terminal = encode

    def skip(self, events: Sequence[Event]) -> None:
        for event in events:
            self.turn_to(event.type if event.type in (THINKING, TOKEN) else "")

    def turn_to(self, part: str) -> list[Any]:
        """The blocks that close the open part and open this one, where they differ."""
        if part == self.part:
            return []
        before, self.part = self.part, part
        return [{"close": before}] * bool(before) + [{"open": part}] * bool(part)


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, "parts", Parts)


WHOLE = [
    {"open": "thinking"},
    {"delta": "hm", "part": "thinking"},
    {"close": "thinking"},
    {"open": "token"},
    {"delta": "a", "part": "token"},
    {"delta": "b", "part": "token"},
    {"close": "token"},
    {"end": True},
]


@pytest.mark.usefixtures("preset")
async def test_reader_that_comes_back_anywhere_gets_the_rest_as_if_it_had_stayed() -> None:
    script = [sse_head(), openai_delta("hm", field="reasoning_content"), *openai_answer("a", "b")[1:]]
    async with ScriptedUpstream(script) as upstream, serving(setting(upstream.url, [ROUTE])) as gateway:
        async with await request(f"{gateway.url}/chat?message=hi", headers=EVENTS) as answer:
            messages = parsed(await answer.body())
        assert [message.json() for message in messages] == WHOLE
        # An event of several blocks has its cursor on the last of them; the others still carry the one before.
        places = {messages[0].last_event_id: 0}
        for place, message in enumerate(messages, 1):
            places.setdefault(message.last_event_id, place)
        assert list(places.values()) == [0, 2, 5, 6, 8]
        for cursor, place in list(places.items())[:-1]:
            async with await request(f"{gateway.url}/chat", headers=EVENTS, last_event_id=cursor) as answer:
                assert [message.json() for message in parsed(await answer.body())] == WHOLE[place:]
        assert len(upstream.exchanges) == 1


@pytest.mark.usefixtures("preset")
async def test_reader_is_told_when_the_beginning_that_its_place_depends_on_is_gone() -> None:
    long = [step for _ in range(12) for step in (openai_delta("x" * 1000), Pause(0.02))]
    script = [sse_head(), *long, *openai_answer()[1:]]
    route = ROUTE | {"resume": {"max_bytes": "4KiB"}}
    async with ScriptedUpstream(script) as upstream, serving(setting(upstream.url, [route])) as gateway:
        async with await request(f"{gateway.url}/chat?message=hi", headers=EVENTS) as answer:
            cursor = parsed(await answer.body())[-3].last_event_id  # of the last event that is not the end
        async with await request(f"{gateway.url}/chat", headers=EVENTS, last_event_id=cursor) as answer:
            [error] = parsed(await answer.body())
    assert (error.json()["code"], error.last_event_id[0]) == ("cursor_expired", "~")
