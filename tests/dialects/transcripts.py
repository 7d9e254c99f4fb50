"""Reading answers in tests: literal bytes in, what came out as plain tuples."""

import json
from collections.abc import Callable
from typing import Any

from gateway.core.errors import GatewayError
from gateway.dialects import Answer

Make = Callable[[], Answer]


def told(answer: Answer, *reads: bytes) -> list[tuple[str, str]]:
    """The events of an answer that arrives in these reads and whose body then ends."""
    events = [event for data in reads for event in answer.feed(data)] + answer.close()
    return [(event.type, event.data) for event in events]


def state(answer: Answer) -> tuple[Any, ...]:
    """Everything a pump looks at, in a form that compares."""
    failure = answer.failure and answer.failure.failure()
    known = (answer.model, answer.finish_reason, answer.usage, answer.ended, answer.skipped)
    return (*known, answer.deltas, answer.complete, failure)


def failed(answer: Answer) -> GatewayError:
    """The error that this answer ended with."""
    assert answer.failure is not None
    return answer.failure


def same_for_every_cut(make: Make, transcript: bytes, since: int = 0) -> bool:
    """Whether events and state are the same for one read, for every pair of reads and for single bytes.

    Args:
        make: makes the answer.
        transcript: its bytes.
        since: pairs are cut at this byte or behind it.
    """
    expected = outcome(make, transcript)
    pairs = ((transcript[:at], transcript[at:]) for at in range(since, len(transcript)))
    singles = tuple(transcript[at : at + 1] for at in range(len(transcript)))
    return all(outcome(make, *reads) == expected for reads in (*pairs, singles))


def outcome(make: Make, *reads: bytes) -> tuple[Any, ...]:
    """Events and state after these reads."""
    answer = make()
    return told(answer, *reads), state(answer)


def body_of(call: Any) -> dict[str, Any]:
    """The JSON a call sends."""
    value: dict[str, Any] = json.loads(call.body)
    return value
