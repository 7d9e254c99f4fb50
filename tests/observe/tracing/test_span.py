"""A span that nobody records: the client's trace context takes the place of any other, and nothing else happens."""

from gateway.core.event import Usage
from gateway.dialects.base import Call
from gateway.observe.tracing.context import TraceContext
from gateway.observe.tracing.span import OFF, UNTRACED, SpanEnding, SpanOpening

OPENING = SpanOpening(1.0, "/chat", "gpt", "openai", "r1", True)
ENDING = SpanEnding("completed", "", "main", "gpt", "stop", Usage(1, 2), 1.0, 2.0, 3.0, 1, 4)
CALL = Call("POST", "http://upstream/", {"Accept": "*/*", "Traceparent": "theirs", "tracestate": "a=1"}, b"{}")


def test_call_without_a_context_stays_as_it_is() -> None:
    assert OFF.span(None, OPENING) is UNTRACED
    assert UNTRACED.carry(CALL) is CALL


def test_call_carries_the_clients_context_alone() -> None:
    span = OFF.span(TraceContext(1, 2, 3, {"traceparent": "ours"}), OPENING)
    assert span.carry(CALL).headers == {"Accept": "*/*", "traceparent": "ours"}
    assert span.carry(CALL).body == CALL.body


async def test_generation_tells_nobody() -> None:
    UNTRACED.ask("main", "openai", "http://upstream")
    UNTRACED.attempt_failed("main", "upstream_cut")
    UNTRACED.rescue("prefill", "completed")
    UNTRACED.end(ENDING)
    await OFF.close()
    assert (UNTRACED.recording, dict(UNTRACED.headers)) == (False, {})
