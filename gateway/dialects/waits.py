"""When an upstream wants to be asked again: from its headers, from the members of its report, or from its sentence.

All results are seconds, 0 to one day; None where nothing is said.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

MAX_RETRY_AFTER: Final = 86_400.0

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PIECE: Final = re.compile(
    r"(\d{1,9}(?:\.\d{1,9})?)\s*(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d"
    r"|毫秒|秒|分钟|小时)(?![a-z])",
    re.IGNORECASE,
)
_PIECES: Final = re.compile(rf"(?:{_PIECE.pattern}\s*){{1,4}}", re.IGNORECASE)
_CHINESE: Final = {"毫秒": 0.001, "秒": 1.0, "分钟": 60.0, "小时": 3600.0}
_SPOKEN: Final = re.compile(
    r"\b(?:try|retry|retrying|again|reset|resets|wait|available)\b(?: again)?(?: in| after| for| at least| about)*[: ]+"
    rf"((?:{_PIECE.pattern}[ ,]*(?:and )?){{1,4}})"
    r"|(\d{1,6}(?:\.\d{1,9})?\s*(?:毫秒|秒|分钟|小时))\s*(?:之?后|以后)",
    re.IGNORECASE,
)
"""Sources: OpenAI "Please try again in 20s", "in 6m0s"; Azure "Please retry after 2 seconds"; Gemini "Please retry in
26.660853464s"; Moonshot "please try again after 1 seconds"."""
_REMAINING: Final = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
)
"""Of several limits, the reset counts of the one that is used up. Sources: OpenAI and Groq, "Rate limits" (headers);
Anthropic, "Rate limits"; the IETF's draft of RateLimit headers."""
_LEAST_TIME: Final = 1e9
"""A number from here on is no span of time but a point in it: Unix seconds, or milliseconds if it has three digits
more."""


def of_headers(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """What the headers say.

    A date is compared with the answer's own Date, so that the two clocks need not agree; without one with `now` (Unix
    time). Source: RFC 9110 10.2.3; OpenAI and Azure also send retry-after-ms.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    milliseconds = _number(lower.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    sent = lower.get("date", "")
    seconds = _of_text(lower.get("retry-after", ""), sent, now)
    if seconds is None:
        spent = [lower.get(reset, "") for left, reset in _REMAINING if lower.get(left, "").strip() == "0"]
        seconds = max((wait for text in spent if (wait := _of_text(text, sent, now)) is not None), default=None)
    return _bounded(seconds)


def _of_text(text: str, sent: str, now: float | None) -> float | None:
    """The seconds of "30", "30s", "6m0s", or a date."""
    text = text.strip()
    if (seconds := _number(text)) is not None:
        return seconds if seconds < _LEAST_TIME else _since(seconds, sent, now)
    return duration(text) if _PIECES.fullmatch(text) else _until(text, sent, now)


def of_report(report: Mapping[str, Any], now: float | None = None) -> float | None:
    """What the members of an error object say, and of the objects in it that are known to say it."""
    for source in _sources(report):
        for name, value in source.items():
            key = name.lower().replace("-", "_")
            if key in ("retrydelay", "quotaresetdelay"):  # google.rpc.RetryInfo, and ErrorInfo of Gemini
                wait = duration(value)
            elif key in ("retry_after", "retryafter", "retry_after_seconds", "estimated_time"):  # and Hugging Face
                wait = _seconds(value)
            elif key == "retry_after_ms":
                wait = None if (wait := _seconds(value)) is None else wait / 1000
            elif key == "x_ratelimit_reset" and now is not None:  # OpenRouter, in Unix milliseconds
                wait = None if (wait := _seconds(value)) is None else wait / 1000 - now
            else:
                continue
            if wait is not None:
                return _bounded(wait)
    return None


def of_sentence(sentence: str) -> float | None:
    """What a sentence says."""
    found = _SPOKEN.search(sentence)
    return _bounded(duration(found[0])) if found else None


def duration(text: object) -> float | None:
    """The seconds of "26s", "1.5 seconds", "6m0s" or "373.8ms"; None for anything else."""
    if not isinstance(text, str):
        return None
    pieces = [
        float(number) * (_CHINESE.get(unit) or _UNITS.get(unit.lower()) or _UNITS.get(unit[0].lower(), 0.0))
        if not unit.lower().startswith("milli")
        else float(number) / 1000
        for number, unit in _PIECE.findall(text[:200])
    ]
    return sum(pieces) if pieces else None


def _sources(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The object itself, its details, and what gateways put beside them."""
    yield report
    details = report.get("details")
    metadata = report.get("metadata")
    for inner in (details if isinstance(details, list) else [])[:16]:
        if isinstance(inner, dict):
            yield inner
            if isinstance(inner.get("metadata"), dict):
                yield inner["metadata"]
    if isinstance(metadata, dict):
        yield metadata
        if isinstance(metadata.get("headers"), dict):
            yield metadata["headers"]


def _bounded(seconds: float | None) -> float | None:
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        return _number(value) if (wait := duration(value)) is None else wait
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text, re.ASCII) else None


def _until(date: str, sent: str, now: float | None) -> float | None:
    due = _unix(date)
    return None if due is None else _since(due, sent, now)


def _since(due: float, sent: str, now: float | None) -> float | None:
    """The seconds from the answer's own time to this point, which may be in milliseconds."""
    start = _unix(sent)
    start = now if start is None else start
    due = due / 1000 if due >= _LEAST_TIME * 1000 else due
    return None if start is None else due - start


def _unix(date: str) -> float | None:
    with suppress(ValueError):
        iso = datetime.fromisoformat(date[:64])  # RFC 3339
        return iso.timestamp() if iso.tzinfo is not None else None
    try:
        parsed: datetime = parsedate_to_datetime(date[:64])
        return parsed.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
