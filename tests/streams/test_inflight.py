"""H6: the memory of request bodies: what fits, who waits, and that all of it is given back."""

import asyncio

import pytest

from gateway.core.weight import MAX_DIGITS, MAX_VALUES, TooMuchError, Weighing, exact_weighing, rough_weighing
from gateway.streams.inflight import LARGE, Inflight


def weight(text: bytes) -> int:
    """What the first look gives, which takes what is in strings for values."""
    return _end(rough_weighing(text))


def exact_weight(text: bytes) -> int:
    """What the second look gives."""
    return _end(exact_weighing(text))


def _end(steps: Weighing) -> int:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


BOMBS = {
    "arrays": b'{"a":[' + b"[]," * MAX_VALUES + b"[]]}",
    "objects": b'{"a":[' + b"{}," * MAX_VALUES + b"{}]}",
    "nested": b'{"a":' + b"[" * (MAX_VALUES + 1),
    "numbers": b'{"a":[' + b"1," * MAX_VALUES + b"1]}",
    "one name again and again": b"{" + b'"a":1,' * MAX_VALUES + b'"a":1}',
    "strings": b'{"a":[' + b'"",' * MAX_VALUES + b'""]}',
    "digits": b'{"a":' + b"1" * (MAX_DIGITS + 1) + b"}",
    "digits behind a point": b'{"a":0.' + b"1" * (MAX_DIGITS + 1) + b"}",
    "digits behind 64 KiB": b'{"b":"' + b"x" * 65500 + b'","a":[' + b"1" * (MAX_DIGITS + 1) + b"]}",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_text_that_is_dear_to_parse_is_known_by_its_bytes(bomb: bytes) -> None:
    with pytest.raises(TooMuchError):
        weight(bomb)
    with pytest.raises(TooMuchError):
        exact_weight(bomb)


@pytest.mark.parametrize(
    "content",
    [b"[]," * MAX_VALUES, b"7" * 4300, b'\\"' + b"[" * MAX_VALUES + b'\\"', b"\\\\" + b"{" * MAX_VALUES + b"\\\\"],
    ids=["commas", "digits", "quotes", "backslashes"],
)
def test_what_is_in_a_string_costs_nothing(content: bytes) -> None:
    text = b'{"content":"' + content + b'","n":[1,2]}'
    with pytest.raises(TooMuchError):
        weight(text)
    assert exact_weight(text) < 4 * len(text)


def test_weight_counts_values_and_wide_characters() -> None:
    assert weight(b'{"a":[1,2,3]}') > weight(b'{"a":"1 2 3"}')
    assert weight('{"a":"\U0001f600xxxx"}'.encode()) > weight(b'{"a":"xxxxxxxx"}')
    assert weight(b'{"a":"\\ud83d\\ude00"}') > weight(b'{"a":"aud83daude00"}')


async def test_hold_waits_for_room_and_gives_it_back_once() -> None:
    inflight = Inflight(8 * LARGE)
    first = await inflight.reserve(7 * LARGE)
    assert first is not None
    second = asyncio.ensure_future(inflight.reserve(LARGE))
    small = await inflight.reserve(LARGE - 1)  # large ones leave room for it
    await asyncio.sleep(0)
    assert small is not None
    assert not second.done()
    first.close()
    first.close()
    got = await second
    assert got is not None
    assert inflight.used == 2 * LARGE - 1
    small.close()
    got.close()
    assert inflight.used == 0


async def test_impatient_hold_takes_nothing() -> None:
    inflight = Inflight(LARGE, patience=0.01)
    held = await inflight.reserve(LARGE // 2 + 1)
    assert held is not None
    assert await inflight.reserve(LARGE // 2 + 1) is None
    other = await inflight.reserve(LARGE // 4)
    assert other is not None
    assert not await held.change(LARGE - 1)
    other.close()
    assert await held.change(10)
    assert inflight.used == 10
    held.close()
    assert inflight.used == 0


async def test_of_bodies_that_grow_one_waits_at_most() -> None:
    """H6: if both waited, each would wait for what the other holds, and nobody would be served."""
    inflight = Inflight(100)
    first, second = [await inflight.reserve(50) for _ in range(2)]
    assert first is not None
    assert second is not None
    growing = asyncio.ensure_future(first.change(80))
    await asyncio.sleep(0)
    assert not await second.change(80)
    second.close()
    assert await growing
    assert inflight.used == 80
    first.close()
    assert inflight.used == 0


@pytest.mark.parametrize("granted", [False, True])
async def test_cancelled_wait_gives_back(granted: bool) -> None:
    inflight = Inflight(100)
    held = await inflight.reserve(100)
    assert held is not None
    waiting, behind = (asyncio.ensure_future(inflight.reserve(60)) for _ in range(2))
    await asyncio.sleep(0)
    if granted:
        held.close()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    held.close()
    got = await behind
    assert got is not None
    assert inflight.used == 60
    got.close()
    assert inflight.used == 0


async def test_body_larger_than_all_room_counts_as_all_that_a_large_one_may_have() -> None:
    inflight = Inflight(8 * LARGE)
    held = await inflight.reserve(100 * LARGE)
    assert held is not None
    assert inflight.used == 7 * LARGE
    held.close()
    assert inflight.used == 0
