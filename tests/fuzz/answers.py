# ruff: noqa: E501, PT017 - inputs are best read whole; what an error says is checked for every input
"""What providers send: streams of every dialect, server-sent events, lines, refusals, waits, lists of models; and what
becomes of it for a browser, in every format."""

import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from gateway.core.batch import Holdback, merge
from gateway.core.blame import blamed
from gateway.core.boundary import Boundary
from gateway.core.continuation import Continuation, DiffersError
from gateway.core.errors import ERROR_KINDS, GatewayError
from gateway.core.event import DONE, ERROR, RESTART, START, THINKING, TOKEN, TOOL, Done, Event, utf8_length
from gateway.core.sentence import MAX_SENTENCE, hiding_quotes, plain
from gateway.core.sse import Decoder, LineSplitter, Oversize
from gateway.dialects import DIALECTS, Answer
from gateway.dialects.models import MAX_NAME, models_in
from gateway.dialects.waits import MAX_RETRY_AFTER, of_headers, of_sentence
from gateway.formats import PRESETS, Completion, Format, View, compile_format
from gateway.upstream.hints import hint
from tests.dialects.transcripts import state
from tests.fuzz.mutate import mutated, pieces
from tests.fuzz.target import Target

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
KEY: Final = "sk-proj-Zk39vTq81LmX0aBc"
REFUSALS: Final = (
    b'{"error":{"message":"Rate limit reached. Please try again in 20s.","type":"requests","code":"rate_limit_exceeded"}}',
    b'{"error":{"message":"This model\'s maximum context length is 8192 tokens.","code":"context_length_exceeded"}}',
    b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}',
    b'[{"error":{"code":429,"message":"Quota exceeded","status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"26s"}]}}]',
    b'{"detail":[{"loc":["body","messages",0,"content"],"msg":"field required","type":"value_error.missing"}]}',
    b'{"error":"model \'m\' not found","code":"1113","message":"\xe4\xbd\x99\xe9\xa2\x9d\xe4\xb8\x8d\xe8\xb6\xb3"}',
    b"<html><head><title>502</title></head><body>nginx</body></html>",
    b"upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
)
STATUSES: Final = (400, 401, 403, 404, 413, 422, 429, 498, 500, 502, 503, 529)
MODELS: Final = (
    b'{"object":"list","data":[{"id":"gpt-4o-mini","object":"model"},{"id":"m2"}]}',
    b'{"models":[{"name":"llama3:8b","model":"llama3:8b","size":1}]}',
    b'["a","b",{"id":null}]',
)
WAITS: Final = (
    b"20",
    b"6m0s",
    b"Fri, 31 Dec 2027 23:59:59 GMT",
    b"2027-01-01T00:00:00Z",
    b"Please try again in 1h2m3.5s.",
    b"1793123456789",
)
TEXTS: Final = (
    b"Hi",
    b"two\nlines\r\nand more\r",
    b"data: x\n\nevent: error\nid: 7\n\n",
    b"\xf0\x9f\x98\x80 \xe2\x80\xa8 \xef\xbb\xbf",
    b'{"a":[1,{"b":"c"}]}',
    b'Dr. Who said: 1.5 is e.g. fine! "Is it?" Yes.  And then\n\n1. First. 2. Second.\n```py\nx = 1. \n```\nEnd. ',
    b"\xe4\xbd\xa0\xe5\xa5\xbd\xe3\x80\x82\xe5\x86\x8d\xe8\xa7\x81\xef\xbc\x81 (a.) b",
)


# -- readers of streams ----------------------------------------------------------------------------------------------


def check_answer(make: Callable[[], Answer], data: bytes, rng: random.Random) -> Hashable:
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
    return tuple(dict.fromkeys(kind for kind, _ in expected)), whole.over


def _fed(answer: Answer, reads: Sequence[bytes]) -> list[tuple[str, str]]:
    events = [event for read in reads for event in answer.feed(read)] + answer.close()
    return [(event.type, event.data) for event in events]


def _text() -> Answer:
    return DIALECTS["text"].answer()


def check_units(make: Callable[[], Any], data: bytes, rng: random.Random) -> Hashable:
    """No exception but the declared one, and the same units for every cut."""
    units = _units(make(), [data])
    assert _units(make(), pieces(data, rng)) == units
    return min(len(units), 8)


def _units(reader: Any, reads: Sequence[bytes]) -> list[Any]:
    units: list[Any] = []
    try:
        for read in reads:
            units += reader.feed(read)
    except Oversize as error:
        return [*units, *error.whole, "oversize"]
    return units


# -- refusals ----------------------------------------------------------------------------------------------------------


def check_refusal(data: bytes, rng: random.Random) -> Hashable:
    """One error of those that there are, whose sentence is bounded, in one line, and without the key."""
    at = int(rng.random() * (len(data) + 1))
    body = data[:at] + f" {KEY} ".encode() + data[at:]
    header = data[:64].decode("latin-1")
    headers = {"Retry-After": header, "x-should-retry": header, "x-ratelimit-remaining-requests": "0"}
    status = STATUSES[int(rng.random() * len(STATUSES))]
    error = DIALECTS["openai"].refusal(status, headers, body, now=1e9)
    assert isinstance(error, GatewayError)
    assert error.means in ERROR_KINDS
    said = f"{error.sentence} {error.detail} {error.failure().message}"
    assert KEY not in said
    assert len(error.sentence) <= MAX_SENTENCE + 1
    assert len(error.code) <= 128
    assert not any(ord(letter) < 32 for letter in said), said
    assert error.retry_after is None or 0 <= error.retry_after <= MAX_RETRY_AFTER
    assert len(hint(error, "http://127.0.0.1:8000/v1/chat/completions", "openai")) < 1000
    added = frozenset({"stream_options", "reasoning_effort"})
    assert blamed(data.decode("utf-8", "replace"), added) <= added
    return error.code in ERROR_KINDS and error.code, error.means, error.retryable


def check_sentence(data: bytes, rng: random.Random) -> Hashable:
    """What is told of a sentence is one line, and holds nothing long of the request that it quotes."""
    prompt = "the quick brown fox jumps over the lazy dog 0123"
    at = int(rng.random() * (len(data) + 1))
    text = data[:at].decode("utf-8", "replace") + f' "{prompt}" ' + data[at:].decode("utf-8", "replace")
    sentence = plain(text[:MAX_SENTENCE])
    assert sentence.isprintable() or not any(ord(letter) < 32 for letter in sentence)
    request = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": prompt}]})
    steps = hiding_quotes(sentence, request)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            assert prompt not in done.value
            return len(done.value) > 1


def check_waits(data: bytes, rng: random.Random) -> Hashable:
    """Seconds of at most a day, or nothing."""
    text = data.decode("latin-1")
    found = (
        of_headers({"Retry-After": text, "Date": text[::-1]}, 1e9),
        of_headers({"x-ratelimit-remaining-tokens": "0", "X-RateLimit-Reset-Tokens": text}),
        of_headers({"retry-after-ms": text}, 1e9),
        of_sentence(data.decode("utf-8", "replace")),
    )
    assert all(wait is None or 0 <= wait <= MAX_RETRY_AFTER for wait in found), found
    return tuple(wait is None for wait in found)


def check_models(data: bytes, rng: random.Random) -> Hashable:
    """Names of bounded length, each once, or nothing."""
    names = models_in(data)
    if names is not None:
        assert len(set(names)) == len(names)
        assert all(0 < len(name) <= MAX_NAME for name in names)
    return None if names is None else min(len(names), 4)


# -- texts on their way ------------------------------------------------------------------------------------------------


def check_hold(data: bytes, rng: random.Random) -> Hashable:
    """Sentences are kept whole without a loss: every event comes once, in order, in groups that are not too large."""
    kinds = (TOKEN, THINKING) if rng.random() < 0.3 else (TOKEN,)
    texts = [part.decode("utf-8", "replace") for part in pieces(data, rng)]
    events = [Event(kinds[int(rng.random() * len(kinds))], text) for text in texts]
    hold = Holdback("sentence" if rng.random() < 0.7 else "paragraph", 256, 1.0)
    groups = [*hold.feed(events, 0.0), hold.flush()]
    assert [event for group in groups for event in group] == events
    assert all(len(group) == 1 or sum(utf8_length(one.data) for one in group) <= 256 for group in groups)
    merged = merge(events, 7, 256)
    assert "".join(event.data for _, event in merged) == "".join(texts)
    assert merged[-1][0] == 7 + len(events)
    one_by_one = Boundary("sentence")
    for letter in "".join(texts)[:300]:
        assert one_by_one.push(letter) in (None, 0, 1)
    return min(len(groups), 6)


def check_continuation(data: bytes, rng: random.Random) -> Hashable:
    """A second answer finishes the first one exactly, or is told to differ; nothing is said twice."""
    text = data.decode("utf-8", "replace")
    delivered, prefilled = text[: int(rng.random() * (len(text) + 1))], rng.random() < 0.5
    again = mutated(data, TEXTS, rng).decode("utf-8", "replace") if rng.random() < 0.5 else text
    second = text[len(delivered.rstrip()) :] if prefilled and rng.random() < 0.5 else again
    continuation = Continuation(delivered, prefilled=prefilled)
    events = [Event(TOKEN, part) for part in _parts_of(second, rng)]
    try:
        missing = continuation.feed(events) + continuation.close()
    except DiffersError:
        assert not second.startswith(delivered) or not delivered
        return "differs"
    whole = delivered + "".join(event.data for event in missing)
    assert whole == second or (prefilled and _unspaced(whole) == _unspaced(delivered + second)), (
        delivered,
        second,
        whole,
    )
    return prefilled, whole == second


def _parts_of(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(int(rng.random() * (len(text) + 1)) for _ in range(3))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _unspaced(text: str) -> str:
    return "".join(text.split())


def check_completion(data: bytes, rng: random.Random) -> Hashable:
    """Whatever came in pieces is one whole answer that can be written as JSON."""
    seen = []
    for answer in (
        DIALECTS["openai"].answer(keep_chunks=True),
        DIALECTS["openai"].answer(),
        DIALECTS["openai"].answer(plain=True),
    ):
        completion = Completion()
        for event in [*answer.feed(data), *answer.close()]:
            completion.add(event)
        whole = completion.result(View("s" * 22, "", "m", 0), Done("stop", None, ""))
        msgspec.json.encode(whole)
        assert whole["object"] == "chat.completion" or completion.letter
        assert completion.letter or all(isinstance(choice["message"], dict) for choice in whole["choices"])
        seen.append(len(whole["choices"]) if isinstance(whole.get("choices"), list) else None)
    return tuple(seen)


# -- formats -----------------------------------------------------------------------------------------------------------

MAPPINGS: Final = (
    b'{"preset":"events"}',
    b'{"preset":"typed","token":{"event":"t","json":{"text":"$text","n":["$index",null,1.5]}}}',
    b'{"preset":"data","done":{"event":"end","data":"{} $finish_reason $$"},"error":null}',
    b'{"preset":"events","tool":{"json":"$tool"},"start":{"data":"$stream_id $resumed\\n$session_id"}}',
    b'{"preset":"openai"}',
)
FORMATS: Final[tuple[Format, ...]] = tuple(compile_format(name) for name in (*PRESETS, "openai", "ui"))


def check_formats(data: bytes, rng: random.Random) -> Hashable:
    """Whatever a provider says, a format makes blocks of it that a browser reads as the events that they are."""
    text = data.decode("utf-8", "replace")
    for format_ in FORMATS:
        _check_blocks(format_, text)
    return None


def check_mapping(data: bytes, rng: random.Random) -> Hashable:
    """A mapping is refused with a sentence, or makes good blocks of whatever is said."""
    try:
        spec = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    try:
        format_ = compile_format(spec)
    except ValueError as error:
        assert len(str(error)) < 4096
        return "refused"
    _check_blocks(format_, "a\nb\r\nc: d\re\u2028")
    return "compiled"


def _check_blocks(format_: Format, text: str) -> None:
    encoder, decoder = format_.open(View("s" * 22, "chat", "m", 0)), Decoder()
    failure = GatewayError("upstream_refused", text[:500]).failure()
    for index, event in enumerate(
        (
            Event(START, ""),
            Event(THINKING, text),
            Event(TOKEN, text),
            Event(TOOL, '{"index":0,"id":"c",\n"function":{"name":"f","arguments":' + _quoted(text) + "}}"),
            Event(RESTART, ""),
            Event(TOKEN, text),
            Event(ERROR, msgspec.json.encode(failure).decode()),
            Event(DONE, msgspec.json.encode(Done("stop", None, text)).decode()),
        )
    ):
        block = encoder.terminal(event, index) if event.type in (ERROR, DONE) else encoder.encode(event, index)
        _check_block(block, decoder)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _check_block(block: str, decoder: Decoder) -> None:
    if not block:
        return
    assert block.endswith("\n")
    assert "\r" not in block
    for part in block.removesuffix("\n").split("\n\n"):  # some send two events for one
        lines = part.split("\n")
        assert all(line.startswith(("event: ", "data: ")) for line in lines), block
        assert sum(line.startswith("event: ") for line in lines) <= 1, block
    events = decoder.feed(f"{block}\n".encode())
    assert len(events) == block.removesuffix("\n").count("\n\n") + 1, block


def targets() -> dict[str, Target]:
    """By name."""
    found: dict[str, Target] = {}
    for name, dialect in DIALECTS.items():
        make = _text if name == "text" else dialect.answer
        found[name] = Target(STREAMS, partial(check_answer, make), 8 if name == "text" else 4)
    chunks: Callable[[], Answer] = lambda: DIALECTS["openai"].answer(keep_chunks=True)  # noqa: E731
    plain_: Callable[[], Answer] = lambda: DIALECTS["openai"].answer(plain=True)  # noqa: E731
    return found | {
        "chunks": Target(STREAMS, partial(check_answer, chunks), 4),
        "plain": Target(STREAMS, partial(check_answer, plain_), 2),
        "sse": Target((*STREAMS, *TEXTS), partial(check_units, Decoder), 20),
        "lines": Target(STREAMS, partial(check_units, LineSplitter), 12),
        "refusal": Target((*REFUSALS, *ERRORS), check_refusal, 3),
        "sentence": Target(REFUSALS, check_sentence, 2),
        "waits": Target(WAITS, check_waits, 8),
        "models": Target(MODELS, check_models, 10),
        "hold": Target(TEXTS, check_hold, 6),
        "continuation": Target(TEXTS, check_continuation, 6),
        "completion": Target(STREAMS, check_completion, 3),
        "formats": Target(TEXTS, check_formats, 1),
        "mapping": Target(MAPPINGS, check_mapping, 8),
    }
