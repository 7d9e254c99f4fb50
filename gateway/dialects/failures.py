"""What an upstream's report of a failure means here: which code, which status, and what a client may read.

Invariants:

- Only a message in a known place of a JSON error reaches `message`; an HTML page, a stack trace or a body of an unknown
  shape never does.
- A failure of the gateway's own credential is `upstream_auth` with our own message, because providers quote keys.
- Text from outside is bounded and holds no control characters.

This file does not tell dialects apart: their error objects are alike, and every place is looked at for all of them.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from gateway.core.errors import KINDS, GatewayError
from gateway.core.lenient import value_of

MAX_MESSAGE: Final = 1000
MAX_CODE: Final = 64
MAX_DETAIL: Final = 200
MAX_BODY: Final = 256 * 1024
MAX_RETRY_AFTER: Final = 86_400.0

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_NOT_CODE: Final = re.compile(r"[^A-Za-z0-9_.:-]+")
_LIKE_A_KEY: Final = re.compile(r"[A-Za-z0-9_*+/=-]{12,}")
_TOO_LONG: Final = re.compile(
    r"context.?(length|window|size|limit)|maximum context|(prompt|input|conversation).{0,20} too long"
    r"|exceeds? the (model's )?max(imum)?.{0,20}(tokens|length)|reduce the length",
    re.IGNORECASE,
)
_FILTERED: Final = re.compile(
    r"content_?(filter|policy)|responsible_?ai|moderation|data_?inspection|safety", re.IGNORECASE
)
_BLOCKED: Final = re.compile(r"blocked by.{0,20}content.{0,2}filter", re.IGNORECASE)
"""What Anthropic says of a filtered answer. Only this text tells it from any other bad request."""
_WORDS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (_TOO_LONG.pattern, "context_length_exceeded"),
        (r"rate_?limit|too_?many_?requests|throttl|quota|resource_?exhausted", "upstream_rate_limited"),
        (r"overload|unavailable|capacity|busy", "upstream_unavailable"),
        (r"authenti|api_?key|permission|unauthori[sz]ed|forbidden|billing", "upstream_auth"),
        (r"time_?d?_?out", "upstream_timeout"),
        (r"invalid|not_?found|unsupported|bad_?request|too_?large", "upstream_refused"),
    )
)
_BY_STATUS: Final = {
    401: "upstream_auth",
    402: "upstream_auth",
    403: "upstream_auth",
    408: "upstream_error",
    429: "upstream_rate_limited",
    503: "upstream_unavailable",
    529: "upstream_unavailable",
}
_IN_WORDS: Final = re.compile(r"\s*(error\s*:|\[error\]\s*:?)\s*", re.IGNORECASE)
"""How a server begins that reports a failure in words, where an event should be JSON."""
_CODES: Final = ("code", "error_code", "errorCode", "statusCode", "status_code", "status")
_SAID: Final = ("content", "text", "token", "delta", "response", "chunk")
"""Where home-made endpoints have the text of an answer; an object that has any is no error."""
_GOOD_CODES: Final = frozenset({"0", "200", "ok", "success", "succeeded"})
_FAILED: Final = frozenset(
    {
        "error",
        "abort",
        "aborted",
        "cancelled",
        "canceled",
        "failed",
        "failure",
        "timeout",
        "network_error",
        "server_error",
        "internal_error",
        "engine_error",
        "engine_overloaded",
        "insufficient_system_resource",
    }
)
"""Finish reasons of answers that are not whole. Sources: vLLM `abort`, OpenRouter `error`, Zhipu `network_error`,
DeepSeek `insufficient_system_resource`; the others are spellings of the same."""
_MESSAGE_PASSED_ON: Final = frozenset({"upstream_refused", "context_length_exceeded", "content_filter"})
_any = msgspec.json.Decoder()


class _Said(msgspec.Struct, frozen=True):
    """A provider's report of a failure, cleaned: its codes, and its text for people."""

    code: str = ""
    type: str = ""
    message: str = ""
    status: int = 0

    @property
    def words(self) -> str:
        return f"{self.code} {self.type}"


def clean(text: str, limit: int = MAX_MESSAGE) -> str:
    """The text as one line of at most `limit` characters, without control characters."""
    return _CONTROLS.sub(" ", text[: limit * 2]).strip()[:limit]


def refusal(status: int, headers: Mapping[str, str], body: bytes, now: float | None = None) -> GatewayError:
    """The error for an answer that is no good stream.

    Args:
        status: the upstream's HTTP status.
        headers: the upstream's headers, in any case.
        body: what was read of the body; if it is longer than 256 KiB, nothing of it is used.
        now: Unix time in seconds, for a Retry-After date if the answer has no Date of its own.
    """
    said = _said_in(body)
    code = _code_of_refusal(status, said)
    return GatewayError(
        code,
        said.message if code in _MESSAGE_PASSED_ON else "",
        retry_after=retry_after(headers, now) if status in (429, 503, 529) else None,
        detail=_detail(status, code, said),
        status=status if code == "upstream_refused" and status in (400, 404, 422) else None,
    )


def in_stream(event_type: str, data: str) -> GatewayError | None:
    """The failure that an event of a stream reports, with the provider's own code; None if it reports none.

    Args:
        event_type: the event's name; `error` makes any data a failure.
        data: the event's data.
    """
    value = value_of(data)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict):
        return in_object(event_type, value)
    said = value if isinstance(value, str) else data
    if event_type == "error" or _IN_WORDS.match(said):
        return _reported(_Said(message=clean(_IN_WORDS.sub("", said, count=1))))
    return None


def in_object(event_type: str, value: dict[str, Any]) -> GatewayError | None:
    """Like `in_stream`, for data that is decoded already."""
    if value.get("error") or "error" in (event_type, value.get("type"), value.get("object"), value.get("status")):
        return _reported(_said_by(value))
    if "choices" in value:
        return None
    if isinstance(value.get("errors"), list) and value["errors"] and isinstance(value["errors"][0], dict | str):
        return _reported(_said_by({"error": value["errors"][0]}))
    return _reported(_said_by(value)) if _is_bare(value) else None


def _is_bare(value: dict[str, Any]) -> bool:
    """Whether an object is an error object without the member `error` around it."""
    # `{"detail": …}` is what FastAPI and RFC 9457 send; `{"code": …, "message": …}` what many gateways do. Some of
    # those send a code with every good event too.
    if any(value.get(key) for key in _SAID):
        return False
    detail = value.get("detail")
    if isinstance(detail, str | list | dict) and detail:
        return True
    code = next((value[key] for key in _CODES if value.get(key)), None)
    failed = code is not None and not isinstance(code, bool | dict | list) and str(code).lower() not in _GOOD_CODES
    return failed and any(isinstance(value.get(key), str) for key in ("message", "msg"))


def in_reason(reason: str) -> GatewayError | None:
    """The failure that a finish reason reports; None for the reason of an answer that is whole."""
    if reason.lower() not in _FAILED:
        return None
    return GatewayError("upstream_error", detail=f"finish_reason {reason}")


def _reported(said: _Said) -> GatewayError:
    kind = _code_in_stream(said)
    if kind == "upstream_auth":
        return GatewayError(kind, detail=_detail(0, kind, said))
    # The provider's own word, unless it has none or the word means something else in the gateway's own table.
    own = said.code or said.type
    code = kind if not own or own in KINDS else own
    return GatewayError(code, said.message, status=KINDS[kind].status, retryable=KINDS[kind].retryable)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the upstream wants to be left alone, 0 to one day; None if it does not say.

    A date is compared with the answer's own Date, so that the two clocks need not agree; without one with `now` (Unix
    time). Source: RFC 9110 10.2.3; OpenAI and Azure also send retry-after-ms.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    milliseconds = _number(lower.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER)
    value = lower.get("retry-after", "")
    seconds = _number(value)
    if seconds is None:
        seconds = _until(value, lower.get("date", ""), now)
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text, re.ASCII) else None


def _until(date: str, sent: str, now: float | None) -> float | None:
    due = _unix(date)
    start = _unix(sent)
    start = now if start is None else start
    return None if due is None or start is None else due - start


def _unix(date: str) -> float | None:
    try:
        parsed: datetime = parsedate_to_datetime(date[:64])
        return parsed.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


def _code_of_refusal(status: int, said: _Said) -> str:
    if not 400 <= status <= 599:
        return "upstream_protocol"
    # The body is believed where it is more exact than the status; never for 401 and 429, which mean one thing.
    if status < 500 and status not in (401, 429) and _is_filtered(said):
        return "content_filter"
    if status in (400, 413, 422) and _is_too_long(said):
        return "context_length_exceeded"
    return _BY_STATUS.get(status, "upstream_refused" if status < 500 else "upstream_error")


def _code_in_stream(said: _Said) -> str:
    if said.status:
        return _code_of_refusal(said.status, said)
    if _is_filtered(said):
        return "content_filter"
    # Many providers send "invalid request" for a prompt that is too long; only the text says which of the two it is.
    code = next((code for pattern, code in _WORDS if pattern.search(said.words)), "upstream_error")
    too_long = code in ("upstream_refused", "upstream_error") and _is_too_long(said)
    return "context_length_exceeded" if too_long else code


def _is_filtered(said: _Said) -> bool:
    return bool(_FILTERED.search(said.words) or _BLOCKED.search(said.message))


def _is_too_long(said: _Said) -> bool:
    return bool(_TOO_LONG.search(said.words) or _TOO_LONG.search(said.message))


def _detail(status: int, code: str, said: _Said) -> str:
    """The text for the log.

    A provider may quote the prompt in its message. So its message is kept only where our key was refused, and without
    anything that looks like a key.
    """
    text = _LIKE_A_KEY.sub("…", said.message)[:MAX_DETAIL] if code == "upstream_auth" else ""
    parts = (f"HTTP {status}" if status else "", said.words.strip(), text)
    return " ".join(part for part in parts if part)


def _parsed(text: str | bytes) -> Any:
    try:
        return _any.decode(text)
    except (ValueError, RecursionError):
        return None


def _said_in(body: bytes) -> _Said:
    value = _parsed(body) if len(body) <= MAX_BODY else None
    if isinstance(value, list) and value:
        value = value[0]
    return _said_by(value) if isinstance(value, dict) else _Said()


def _said_by(value: dict[str, Any]) -> _Said:
    error = value.get("error")
    if isinstance(error, dict):
        return _said_in_object(error)
    if isinstance(error, str):
        return _Said(message=clean(error), code=_word(value.get("code")))
    return _said_in_object(value)


def _said_in_object(error: dict[str, Any]) -> _Said:
    code = error.get("code")
    return _Said(
        code="" if _status(code) else _word(code),
        type=_word(error.get("type")),
        message=_text(error),
        status=_status(code) or _status(error.get("status")),
    )


def _word(value: object) -> str:
    word = _NOT_CODE.sub("_", value[:MAX_CODE]) if isinstance(value, str) else ""
    return "" if word == "error" else word


def _status(value: object) -> int:
    """The HTTP status that a provider gave as its code; 0 for none."""
    if isinstance(value, str) and re.fullmatch(r"[45][0-9]{2}", value, re.ASCII):
        value = int(value)
    return value if type(value) is int and 400 <= value <= 599 else 0


def _text(error: dict[str, Any]) -> str:
    for key in ("message", "detail", "msg"):
        value = error.get(key)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = value[0].get("msg")
        if isinstance(value, str):
            return clean(value)
    return ""
