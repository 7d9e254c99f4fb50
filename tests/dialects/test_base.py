"""What holds for every dialect: hostile bytes raise nothing, and no answer outlives its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import DIALECTS, Answer, Dialect
from gateway.dialects.base import endpoint

from .transcripts import Make, state

WORDS = (
    *(
        "data: ",
        "event: ",
        "id: 1",
        "\n",
        "\n\n",
        "\r",
        "[DONE]",
        "error",
        "done",
        "ping",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
    ),
    *('"choices"', '"index"', '"delta"', '"content"', '"text"', '"usage"', '"error"', '"type"', '"message"', '"done"'),
    *('"tool_calls"', '"function"', '"arguments"', '"stop_reason"', '"finish_reason"', '"stop"', '"model"', '"你"'),
    *("null", "true", "0", "-1", "1e999", "99999999999999999999", '"\\ud800"', "\ufeff", "\x00"),
    *('data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n', '{"message":{"content":"a"}}\n'),
    *('data: {"type":"content_block_delta","delta":{"text":"a"}}\n\n', 'data: {"type":"message_delta","usage":'),
)
HOSTILE = st.lists(st.one_of(st.sampled_from(WORDS).map(str.encode), st.binary(max_size=8)), max_size=30).map(b"".join)
ANSWERS = [lambda dialect=dialect: dialect.answer() for dialect in DIALECTS.values()] + [
    lambda: DIALECTS["openai"].answer(keep_chunks=True)
]


def well_formed(answer: Answer) -> bool:
    usage = answer.usage
    return answer.skipped >= 0 and answer.deltas >= 0 and (usage is None or min(usage.input, usage.output) >= 0)


@pytest.mark.parametrize("make", ANSWERS)
@settings(max_examples=150, deadline=None)
@given(reads=st.lists(HOSTILE, max_size=4))
def test_answer_never_raises(make: Make, reads: list[bytes]) -> None:
    answer = make()
    events = [event for data in reads for event in answer.feed(data)] + answer.close()
    assert all(event.type and event.data for event in events)
    assert well_formed(answer)


@pytest.mark.parametrize("make", ANSWERS[:-2] + ANSWERS[-1:])
@settings(max_examples=100, deadline=None)
@given(data=HOSTILE, cut=st.integers(0, 200))
def test_answer_does_not_depend_on_the_cut(make: Make, data: bytes, cut: int) -> None:
    whole, halves = make(), make()
    expected = whole.feed(data) + whole.close()
    assert halves.feed(data[:cut]) + halves.feed(data[cut:]) + halves.close() == expected
    assert state(halves) == state(whole)


@settings(max_examples=200, deadline=None)
@given(status=st.integers(100, 999), body=HOSTILE, value=st.text(max_size=40))
def test_refusal_never_raises(status: int, body: bytes, value: str) -> None:
    error = DIALECTS["openai"].refusal(status, {"Retry-After": value, "Date": value}, body, 0.0)
    assert 400 <= error.status <= 599
    assert error.retry_after is None or 0 <= error.retry_after <= 86_400


@pytest.mark.parametrize("dialect", DIALECTS.values())
def test_dialect_is_known_by_its_name(dialect: Dialect) -> None:
    assert DIALECTS[dialect.name] is dialect
    assert dialect.stream_types


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/", "http://h/v1/messages"])
def test_endpoint_appends_the_path_once(url: str) -> None:
    assert endpoint(url, "/messages") == "http://h/v1/messages"
