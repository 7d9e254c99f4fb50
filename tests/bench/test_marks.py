"""The check of the load client, fed with what programs make of an answer."""

import pytest

from bench.marks import END, EVENT, LAST_EVENT, MAX_LINE, Pace, Sequence


def answer(*numbers: int) -> bytes:
    events = [EVENT % (number, 1000 + number) for number in numbers[:-1]]
    return b"".join([*events, LAST_EVENT % (numbers[-1], 1000 + numbers[-1]), END])


def lost(body: bytes) -> int:
    sequence = Sequence()
    sequence.feed(body)
    return sequence.lost


def test_checker_accepts_a_whole_answer_however_it_is_cut() -> None:
    body = answer(0, 1, 2)
    for cut in range(1, len(body)):
        sequence = Sequence(stamped=True)
        stamps = sequence.feed(body[:cut]) + sequence.feed(body[cut:])
        assert (sequence.count, sequence.lost, stamps) == (3, 0, [1000, 1001, 1002])


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [((0, 2), 1), ((1, 2), 1), ((0, 1, 1, 2), 1), ((0, 2, 1, 3), 1), ((0, 4), 3)],
    ids=["hole", "first", "doubled", "out of order", "three"],
)
def test_checker_counts_what_is_lost_doubled_or_out_of_order(numbers: tuple[int, ...], missing: int) -> None:
    assert lost(answer(*numbers)) == missing


def test_checker_misses_the_last_mark() -> None:
    assert lost(EVENT % (0, 0) + END) == 1


def test_checker_misses_the_end() -> None:
    assert lost(EVENT % (0, 0) + LAST_EVENT % (1, 0)) == 1


def test_checker_counts_the_deltas_of_a_merged_event_and_not_the_text_behind_its_end() -> None:
    merged = b'event: token\ndata: {"text":"t000000@0000000000001 t000001@0000000000002 z000002@0000000000003 "}\n\n'
    done = b'event: done\ndata: {"full_text":"t000000@0000000000001 "}\n\n'
    sequence = Sequence()
    sequence.feed(merged + done)
    sequence.feed(merged)
    assert (sequence.count, sequence.lost) == (3, 0)


def test_checker_keeps_no_endless_line() -> None:
    with pytest.raises(ValueError, match="without an end"):
        Sequence().feed(b"x" * (MAX_LINE + 1))


@pytest.mark.parametrize("pace", [Pace(events=300, rate=50), Pace(events=300, rate=50, waits=True)], ids=str)
def test_pace_survives_its_way_through_a_request(pace: Pace) -> None:
    assert Pace.parse(b'{"messages":[{"role":"user","content":"%b"}]}' % pace.prompt.encode()) == pace


def test_request_without_a_pace_asks_for_one_event() -> None:
    assert Pace.parse(b'{"messages":[]}').events == 1
