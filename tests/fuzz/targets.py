# ruff: noqa: E501, PT017 - inputs are best read whole
"""What reads bytes of strangers in process, and what must hold for every input."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from gateway.config import ConfigError, examine_text
from gateway.core.cookies import clean_cookies, strip_cookies
from gateway.core.credential import address_key, client_address, find_credential, strip_query
from gateway.core.cursor import cursor_sent, is_cursor, parse_cursor
from gateway.core.errors import GatewayError
from gateway.core.sse import Decoder, LineSplitter, Oversize
from gateway.core.weight import MAX_VALUES, TooMuchError, Weighing, exact_weighing, rough_weighing
from gateway.dialects import DIALECTS, Answer
from tests.dialects.transcripts import state
from tests.fuzz.mutate import pieces

Check = Callable[[bytes, random.Random], None]


class Target(NamedTuple):
    """One reader.

    Attributes:
        seeds: inputs to begin with.
        check: raises where a promise is broken.
        weight: its part of a run.
    """

    seeds: Sequence[bytes]
    check: Check
    weight: int = 1


CHUNK: Final = b'data: {"id":"a","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"}}]}\n\n'
CALL: Final = (
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_0","function":'
    b'{"name":"f","arguments":"{\\"a\\":1}"}}]}}]}\n\n'
)
STOP: Final = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
WHOLE: Final = (
    b'{"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}'
)
ANTHROPIC: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":3}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use",'
    b'"id":"t","name":"f","input":{}}}\n\nevent: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"input_json_delta","partial_json":"{}"}}\n\ndata: {"type":"content_block_delta","index":1,'
    b'"delta":{"type":"text_delta","text":"Hi"}}\n\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
OLLAMA: Final = (
    b'{"model":"m","message":{"role":"assistant","content":"Hi","thinking":"so"},"done":false}\n'
    b'{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},"done":false}\n'
    b'{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":2}\n'
)
ERRORS: Final = (
    b'event: error\ndata: {"error":{"message":"slow down","code":"rate_limit_exceeded"}}\n\n',
    b'error: {"code":"x","message":"y"}\n\n',
    b"data: Error: no\n\n",
    b'{"detail":"no"}',
)
STREAMS: Final = (
    CHUNK + CALL + STOP,
    CHUNK + STOP,
    WHOLE,
    ANTHROPIC,
    OLLAMA,
    *ERRORS,
    b"id: 1\nretry: 5\n: x\n\ndata\n\n",
)

CONFIG: Final = (
    b"server: {listen: 127.0.0.1:8080, max_body: 4MiB, drain: 30s}\nauth:\n  anonymous: false\n  keys:\n"
    b"    - {id: web, key: secret-key, plan: default, expires: 2027-01-01}\nplans:\n  default: {requests: 10/s, streams: 2}\n"
    b"upstreams:\n  llm:\n    dialect: openai\n    targets: [{url: http://127.0.0.1:9/v1}]\n"
    b"routes:\n  - {path: /chat, api: chat, upstream: llm, format: events}\n",
    b"routes: []\nupstreams: {}\n",
)
BODIES: Final = (
    b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a, [b] {c} \\"d\\" \\\\"}],"n":[1,2.5e3,null]}',
    b'{"a":{"b":[[],{},"x"]},"a":12345678901234567890}',
)


def check_answer(make: Callable[[], Answer], data: bytes, rng: random.Random) -> None:
    """No exception, the same events and state for every cut, nothing behind the end, and no more than was said."""
    whole, parts = make(), make()
    expected = _fed(whole, [data])
    got = _fed(parts, pieces(data, rng))
    if make is not _text:  # a text is passed on as it comes
        assert got == expected
        assert state(parts) == state(whole), (state(parts), state(whole))
    assert "".join(text for _, text in got) == "".join(text for _, text in expected)
    assert sum(len(kind) + len(text) for kind, text in expected) <= 1024 + 64 * len(data)
    if whole.over:
        assert whole.feed(CHUNK) == []
    assert whole.deltas >= 0


def _fed(answer: Answer, reads: Sequence[bytes]) -> list[tuple[str, str]]:
    events = [event for read in reads for event in answer.feed(read)] + answer.close()
    return [(event.type, event.data) for event in events]


def _text() -> Answer:
    return DIALECTS["text"].answer()


def check_units(make: Callable[[], Any], data: bytes, rng: random.Random) -> None:
    """No exception but the declared one, and the same units for every cut."""
    assert _units(make(), pieces(data, rng)) == _units(make(), [data])


def _units(reader: Any, reads: Sequence[bytes]) -> list[Any]:
    units: list[Any] = []
    try:
        for read in reads:
            units += reader.feed(read)
    except Oversize as error:
        return [*units, *error.whole, "oversize"]
    return units


def check_cursor(data: bytes, rng: random.Random) -> None:
    """A cursor or the declared error; what is read is within its bounds."""
    text = data.decode("utf-8", "surrogateescape")
    is_cursor(text)
    cursor_sent(text if rng.random() < 0.5 else None, [("last_event_id", text), ("lastEventId", text)])
    try:
        cursor = parse_cursor(text)
    except GatewayError as error:
        assert error.code == "bad_cursor"
        return
    assert cursor.is_final or 0 <= cursor.place.seq < 1 << 64


def check_config(data: bytes, rng: random.Random) -> None:
    """A configuration or a list of what is wrong, each with a place, and never a value that may be secret."""
    try:
        examine_text(data.decode("utf-8", "replace"), environ={"X": "1"})
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.line >= 1
            assert len(str(problem)) < 10_000


def _end(steps: Weighing) -> int:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


def check_weight(data: bytes, rng: random.Random) -> None:
    """What is weighed lightly is parsed lightly."""
    try:
        light = min(_end(rough_weighing(data)), _end(exact_weighing(data)))
    except TooMuchError:
        return
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    values = sum(1 for _ in _values(value))
    assert values <= MAX_VALUES + 1
    assert light >= len(data) + 40 * (values - 1)


def _values(value: Any) -> Iterator[Any]:
    left = [value]
    while left:
        item = left.pop()
        yield item
        left += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def check_credential(data: bytes, rng: random.Random) -> None:
    """No exception, whatever the headers and the query say."""
    text = data.decode("latin-1")
    address_key(client_address("127.0.0.1", text, ()))
    address_key(text)
    find_credential(("header", "cookie", "query"), text, {"c": text}, {"token": text}, "c", "token")
    assert "token=" not in strip_query(f"token=a&{text.replace('token', '')}", ("token",)).lower() or "%" in text
    assert "c=" not in strip_cookies(text, ["c"]).replace(" ", "").split(";")
    clean_cookies(text, ["c"])


def _answers() -> dict[str, Target]:
    found: dict[str, Target] = {}
    for name, dialect in DIALECTS.items():
        make = _text if name == "text" else dialect.answer
        found[name] = Target(STREAMS, partial(check_answer, make), 4)
    chunks: Callable[[], Answer] = lambda: DIALECTS["openai"].answer(keep_chunks=True)  # noqa: E731
    plain: Callable[[], Answer] = lambda: DIALECTS["openai"].answer(plain=True)  # noqa: E731
    return found | {
        "chunks": Target(STREAMS, partial(check_answer, chunks), 4),
        "plain": Target(STREAMS, partial(check_answer, plain), 2),
    }


TARGETS: Final[dict[str, Target]] = {
    **_answers(),
    "sse": Target(STREAMS, partial(check_units, Decoder), 4),
    "lines": Target(STREAMS, partial(check_units, LineSplitter), 2),
    "cursor": Target([b"abcdefghijklmnopqrstuv.1.2", b"~abcdefghijklmnopqrstuv", b"x"], check_cursor, 2),
    "config": Target(CONFIG, check_config, 1),
    "weight": Target(BODIES, check_weight, 2),
    "credential": Target([b"Bearer abc", b"10.0.0.1, [::1]:80", b"a=b; c=d", b"token=x&a=%41"], check_credential, 2),
}
"""By name. Readers of tickets, tokens and the like belong here, too."""
