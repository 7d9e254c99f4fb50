"""What an upstream's report of a failure means here: which code, which status, and what a client may read.

Invariants:

- Only a message in a known place of a JSON error is told; an HTML page, a stack trace or a body of an unknown shape
  never is.
- A failure of the gateway's own credential is `upstream_auth` with our own message, because providers quote keys. Keys
  are taken out of every other sentence too.
- Text from outside is bounded and holds no control characters.

A provider's words are looked up in `words.py`; without a row there, the status decides. This file does not tell
dialects apart: their error objects are alike, and every place is looked at for all of them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from gateway.core.errors import ERROR_KINDS, GatewayError
from gateway.core.lenient import value_of
from gateway.core.sentence import clean, plain, without_keys
from gateway.dialects import waits
from gateway.dialects.words import Meaning, meaning
from gateway.dialects.words import Said as Heard

MAX_CODE: Final = 64
MAX_PARAM: Final = 128
MAX_DETAIL: Final = 200
MAX_BODY: Final = 256 * 1024
MAX_NESTED: Final = 3
"""Reports inside of reports: gateways put the whole body of another one into their own message."""

_NOT_CODE: Final = re.compile(r"[^A-Za-z0-9_.:-]+")
_NOT_PARAM: Final = re.compile(r"[^A-Za-z0-9_.:\[\]-]+")
_GENERAL: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"quota", "upstream_rate_limited"),
        (r"unavailable|busy", "upstream_unavailable"),
        (r"billing", "upstream_auth"),
        (r"time_?d?_?out", "upstream_timeout"),
        (r"invalid|not_?found|unsupported|bad_?request|too_?large", "upstream_refused"),
    )
)
"""What codes and types mean by a single word, where a report has no status and the table of words has no row."""
_BY_STATUS: Final = {
    401: "upstream_auth",
    402: "upstream_auth",
    403: "upstream_auth",
    408: "upstream_error",
    421: "upstream_error",
    423: "upstream_error",
    424: "upstream_error",  # TGI: the model failed while it generated
    425: "upstream_error",
    429: "upstream_rate_limited",
    444: "upstream_error",  # nginx: closed without an answer
    460: "upstream_error",  # AWS: the balancer's client went away
    498: "upstream_rate_limited",  # Groq: its flex tier has no capacity now
    499: "upstream_error",  # Google, nginx: cancelled on their side
    503: "upstream_unavailable",
    529: "upstream_unavailable",
}
_IN_WORDS: Final = re.compile(r"\s*(error\s*:|\[error\]\s*:?)\s*", re.IGNORECASE)
"""How a server begins that reports a failure in words, where an event should be JSON."""
_CODES: Final = (
    *("code", "error_code", "errorCode", "statusCode", "status_code", "status", "error_type"),
    *("retcode", "ret_code", "errcode", "err_code", "errno"),
)
_STATUSES: Final = ("statusCode", "status", "error_type")
"""Of those, the ones that hold no code of the provider's own, or its type."""
_SENTENCES: Final = ("error_msg", "error_message", "errorMessage", "errorMsg", "errmsg", "err_msg", "error_description")
_TEXTS: Final = (
    *("message", "detail", "msg", *_SENTENCES, "status_msg", "Message", "Msg", "faultstring"),
    *("title", "content", "text"),
)
"""Where a report has its sentence; the first that is there."""
_FAILURE: Final = re.compile(
    r"(?i:error|exception|failure|fatal)|[A-Za-z]+(?:Exception|Error)"
    r"|(?!.*(?:tool|function|search|retriev|step|image|file|warning|\bnon?[._-]))"
    r"(?:[A-Za-z]{1,20}[._-]){1,3}(?:error|exception|failed|failure)"
)
"""Names of events that report a failure, but for that of a tool, which an answer survives. Sources: Anthropic, AWS
(event streams), OpenAI (responses)."""
_REPORT: Final = re.compile(r"(?i:error|exception|fault|error_?msg|error_?info)|[A-Za-z]+(?:Exception|Error)")
"""Names of members that hold a report. Sources: AWS (event streams), Tencent, home-made servers."""
_ENVELOPES: Final = ("response", "Response", "data", "header", "result", "output", "payload")
"""Members in which some servers put every event, reports too. Sources: OpenAI (responses), Tencent, iFlytek, Google."""
_MARKS: Final = ("is_error", "isError", "iserror", "has_error", "failed")
"""Members that say by `true` that the object is a report."""
_SAID: Final = ("content", "text", "token", "delta", "response", "chunk")
"""Where home-made endpoints have the text of an answer; an object that has any is no error."""
_NO_CODES: Final = frozenset({"error", "exception", "failure", "fatal", "fault", "about:blank"})
"""Words that only say that it is a failure."""
_GOOD_CODES: Final = frozenset({"0", "200", "ok", "success", "succeeded"})
_FAILED: Final = re.compile(
    r"(?:^|_)(?:error|exception|fail(?:ed|ure)?|abort(?:ed)?|cancel(?:l?ed)?|time_?d?_?out|interrupted|preempted|shutdown"
    r"|overload(?:ed)?|unavailable|disconnect(?:ed)?|load_shed|crash(?:ed)?|killed|malformed\w*|rate_limit\w*"
    r"|quota_exceeded|insufficient_\w+|unexpected_tool_call|too_many_tool_calls|(?:un)?load)(?:$|_(?=error|finish))"
)
"""Finish reasons, in snake_case, of answers that are not whole. Sources: vLLM `abort`, OpenRouter `error`, Zhipu
`network_error`, DeepSeek `insufficient_system_resource`, Gemini `MALFORMED_FUNCTION_CALL` (also behind
`function_call_filter: `), Bedrock `malformed_model_output`, Cohere `USER_CANCEL`, Ollama `load` (the model was made
ready, and not asked: can1357/oh-my-pi#7465); others are spellings of the same."""
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_WORD: Final = re.compile(r"[^a-z0-9]+")
REASONS: Final = {
    "complete": "stop",
    "completed": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "stop": "stop",
    "error_limit": "length",
    "length": "length",
    "max_length": "length",
    "max_new_tokens": "length",
    "max_output_tokens": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "model_length": "length",
    "token_limit": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "blocklist": "content_filter",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "error_toxic": "content_filter",
    "guardrail_intervened": "content_filter",
    "image_safety": "content_filter",
    "prohibited_content": "content_filter",
    "recitation": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "spii": "content_filter",
}
"""Finish reasons in OpenAI's words, in snake_case. Sources: TGI, Cohere, Mistral, Gemini, Anthropic, Bedrock, watsonx,
Zhipu."""
_BY_MEANING: Final = {
    Meaning.TOO_LONG: "context_length_exceeded",
    Meaning.FILTERED: "content_filter",
    Meaning.ACCOUNT: "upstream_auth",
    Meaning.SPENT: "upstream_auth",
    Meaning.LIMITED: "upstream_rate_limited",
    Meaning.BUSY: "upstream_unavailable",
    Meaning.NO_MODEL: "model_not_found",
}
_KEPT_STATUSES: Final = frozenset({400, 404, 413, 422})
"""Statuses of a refusal that say the same of the client's own request."""
_TOLD: Final = frozenset({"upstream_refused", "context_length_exceeded", "content_filter", "model_not_found"})
"""Codes whose message is the provider's sentence: the client is the one who can do something."""
_TOLD_TOO: Final = frozenset({"upstream_error", "upstream_unavailable", "upstream_rate_limited"})
"""Codes whose message says what happened, and then the provider's sentence."""
_OURS: Final = frozenset({"context_length_exceeded", "model_not_found", "upstream_auth"})
"""Codes that replace a provider's own inside a stream too: clients know them, or must not learn more."""
_SPENT: Final = "The gateway's account at the provider has no quota left."
_PLAIN_HTTP: Final = re.compile(rb"HTTP request (was sent )?to (an )?HTTPS (port|server)|plain HTTP to an SSL", re.I)
"""What nginx, Go and Apache answer to http on a port for https."""
_any = msgspec.json.Decoder()


class _Said(msgspec.Struct, frozen=True):
    """A provider's report of a failure, cleaned: its codes, and its text for people."""

    code: str = ""
    type: str = ""
    message: str = ""
    status: int = 0
    names: tuple[str, ...] = ()  # further machine words: reasons, inner codes
    param: str = ""
    wait: float | None = None

    @property
    def words(self) -> str:
        return f"{self.code} {self.type}"

    def means(self, status: int) -> Meaning | None:
        names = tuple(name for name in (self.code, self.type, *self.names) if name)
        return meaning(Heard(status, names, self.message, self.param, self.wait is not None))


def refusal(status: int, headers: Mapping[str, str], body: bytes, now: float | None = None) -> GatewayError:
    """The error for an answer that is no good stream.

    Args:
        status: the upstream's HTTP status.
        headers: the upstream's headers, in any case.
        body: what was read of the body; if it is longer than 256 KiB, nothing of it is used.
        now: Unix time in seconds, for a Retry-After date if the answer has no Date of its own.
    """
    if status == 400 and _PLAIN_HTTP.search(body[:4096]):
        detail = "HTTP 400 a plain HTTP request was sent to an HTTPS port"
        return GatewayError("upstream_protocol", detail=detail, retryable=False, upstream_status=status)
    said = _said_in(body, now)
    found = said.means(status) if 400 <= status <= 599 else None
    code = _code_of_refusal(status, found)
    spent = found is Meaning.SPENT and code == "upstream_rate_limited"
    wait = None
    if code in ("upstream_rate_limited", "upstream_unavailable") or status in (429, 503, 529):
        wait = waits.of_headers(headers, now)
        wait = said.wait if wait is None else wait
    kept = code in ("upstream_refused", "model_not_found") and status in _KEPT_STATUSES
    return GatewayError(
        code,
        _SPENT if spent else _message(code, said.message),
        retry_after=wait,
        detail=_detail(status, code, said),
        status=status if kept else None,
        retryable=False if spent else None,
        sentence=said.message,
        upstream_status=status,
        param=said.param or None if code in _TOLD else None,
        provider_code=said.code if code == "upstream_refused" else "",
    )


def in_stream(event_type: str, data: str) -> GatewayError | None:
    """The failure that an event of a stream reports, with the provider's own code; None if it reports none.

    Args:
        event_type: the event's name; one as `error` makes any data a failure.
        data: the event's data.
    """
    return in_value(event_type, value_of(data), data)


def in_value(event_type: str, value: Any, data: str) -> GatewayError | None:
    """Like `in_stream`, for data whose value is known; None for data that is no JSON."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict):
        return in_object(event_type, value)
    said = value if isinstance(value, str) else data
    if names_failure(event_type) or _IN_WORDS.match(said):
        return _reported(_Said(message=clean(_IN_WORDS.sub("", said, count=1))))
    return None


def names_failure(name: object) -> bool:
    """Whether an event, or an object, of this name reports a failure, whatever else it holds."""
    return isinstance(name, str) and _FAILURE.fullmatch(name) is not None


def in_object(event_type: str, value: dict[str, Any]) -> GatewayError | None:
    """Like `in_stream`, for data that is decoded already."""
    value = _opened(_uncapitalized(value) if "Code" in value or "Message" in value else value)
    names = (event_type, *(value.get(key) for key in ("type", "object", "status")))
    name = next((name for name in names if names_failure(name)), "")
    if name or value.get("error") or _failed_base(value):
        # AWS says in the event's name alone what happened.
        return _reported(_said_by(value if value.get("type") else {"type": name, **value}))
    if value.get("choices"):
        return None
    if isinstance(value.get("errors"), list) and value["errors"] and isinstance(value["errors"][0], dict | str):
        return _reported(_said_by({"error": value["errors"][0]}))
    said = _said_by(value) if _is_bare(value) or _is_sentence(value) else None
    return _reported(said) if said is not None and (_is_bare(value) or said.means(said.status)) else None


def _is_sentence(value: dict[str, Any]) -> bool:
    """Whether the object is a sentence and nothing else; whether it reports a failure, its words say. Source: Cohere,
    AWS."""
    return isinstance(value.get("message"), str) and not value.keys() - {"message", "id", "request_id", "requestId"}


def _opened(value: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """The object with its report under `error`, where it has it under another name or in an envelope."""
    if value.get("error") or value.get("choices"):
        return value
    if any(value.get(mark) is True for mark in _MARKS):
        return {**value, "error": _sentence_of(value) or True}
    for name, report in value.items():
        if isinstance(report, dict | str) and report and name != "error" and _REPORT.fullmatch(name):
            if isinstance(report, dict):
                return {"error": {"type": name, **_uncapitalized(report)}}
            if name not in _SENTENCES:
                return {**value, "error": report}
    for name in _ENVELOPES if depth < MAX_NESTED else ():
        inner = value.get(name)
        if isinstance(inner, dict) and not any(inner.get(key) for key in ("choices", *_SAID)):
            inner = _opened(inner, depth + 1)
            if inner.get("error") or (name == "header" and _is_bare(inner)):
                return inner
    return value


def _uncapitalized(report: dict[str, Any]) -> dict[str, Any]:
    """The report with names as others have them: Alibaba, AWS and Tencent begin them with a capital."""
    return {key[:1].lower() + key[1:]: said for key, said in report.items()}


def _sentence_of(value: dict[str, Any]) -> str:
    return next((value[key] for key in _TEXTS if isinstance(value.get(key), str) and value[key]), "")


def _is_bare(value: dict[str, Any]) -> bool:
    """Whether an object is an error object without the member `error` around it."""
    # `{"detail": …}` is what FastAPI and RFC 9457 send; `{"code": …, "message": …}` what many gateways do. Some of
    # those send a code with every good event too.
    if any(value.get(key) for key in _SAID):
        return False
    refused = value.get("success") is False or value.get("ok") is False
    if refused and any(isinstance(value.get(key), str) for key in _TEXTS):
        return True
    detail = value.get("detail")
    if isinstance(detail, str | list | dict) and detail:
        return True
    code = next((value[key] for key in _CODES if value.get(key)), None)
    if code is None:
        return any(isinstance(value.get(key), str) and value[key] for key in _SENTENCES)
    failed = not isinstance(code, bool | dict | list) and str(code).lower() not in _GOOD_CODES
    return failed and any(isinstance(value.get(key), str) for key in _TEXTS)


def in_reason(reason: str) -> GatewayError | None:
    """The failure that a finish reason reports; None for the reason of an answer that is whole."""
    words = _NOT_WORD.sub("_", _CAMEL.sub("_", reason[:MAX_DETAIL]).lower()).strip("_")
    if words in REASONS or not _FAILED.search(words):
        return None
    return GatewayError("upstream_error", detail=f"finish_reason {reason}")


def word_for(reason: str) -> str:
    """The finish reason in OpenAI's vocabulary, if that has a word for it; else as it is.

    Some say more than the word: `content_filter: PROHIBITED_CONTENT`.
    """
    word = _NOT_WORD.sub("_", reason.partition(":")[0].lower()).strip("_")
    return REASONS.get(word, reason)


def _failed_base(value: dict[str, Any]) -> bool:
    """Whether the object is MiniMax's, which has a `base_resp` in good answers too."""
    base = value.get("base_resp")
    return isinstance(base, dict) and bool(base.get("status_code"))


def _reported(said: _Said) -> GatewayError:
    said = msgspec.structs.replace(said, message=plain(said.message))  # some report in words, and not in an object
    found = said.means(said.status)
    kind = _code_in_stream(said, found)
    spent = found is Meaning.SPENT and kind != "upstream_auth"
    # The provider's own word, unless it has none or the word means something else in the gateway's own table.
    own = said.code or said.type
    code = kind if not own or own in ERROR_KINDS or kind in _OURS or spent else own
    return GatewayError(
        code,
        "" if kind == "upstream_auth" else _SPENT if spent else said.message,
        retry_after=said.wait if kind in ("upstream_rate_limited", "upstream_unavailable") else None,
        detail=_detail(said.status, kind, said),
        status=ERROR_KINDS[kind].status,
        retryable=ERROR_KINDS[kind].retryable and not spent,
        means=kind,
        sentence=said.message,
        upstream_status=said.status or None,
        param=said.param or None if kind in _TOLD else None,
    )


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the upstream wants to be left alone, by its headers; see `waits.of_headers`."""
    return waits.of_headers(headers, now)


def _message(code: str, sentence: str) -> str:
    """What the client is told; "" for the code's own message."""
    if not sentence or code in _TOLD:
        return sentence
    return f"{ERROR_KINDS[code].message.rstrip('.')}: {sentence}" if code in _TOLD_TOO else ""


def _code_of_refusal(status: int, found: Meaning | None) -> str:
    if not 400 <= status <= 599:
        return "upstream_protocol"
    by_status = _BY_STATUS.get(status, "upstream_refused" if status < 500 else "upstream_error")
    # The words are believed where they are more exact than the status; never for 401, which means one thing.
    if found is None or status in (401, 402):
        return by_status
    if status in (429, 498) and found is not Meaning.ACCOUNT:
        return by_status
    return _BY_MEANING[found]


def _code_in_stream(said: _Said, found: Meaning | None) -> str:
    if said.status:
        return _code_of_refusal(said.status, found)
    if found is not None:
        return _BY_MEANING[found]
    return next((code for pattern, code in _GENERAL if pattern.search(said.words)), "upstream_error")


def _detail(status: int, code: str, said: _Said) -> str:
    """The status and the codes for the log; where our key was refused, the sentence too."""
    text = said.message[:MAX_DETAIL] if code == "upstream_auth" else ""
    parts = (f"HTTP {status}" if status else "", without_keys(said.words.strip()), text)
    return " ".join(part for part in parts if part)


def _parsed(text: str | bytes) -> Any:
    try:
        return _any.decode(text)
    except (ValueError, RecursionError):
        return None


def _said_in(body: bytes, now: float | None = None) -> _Said:
    value = _parsed(body) if len(body) <= MAX_BODY else None
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return _Said(message=plain(value))
    return _said_by(value, now) if isinstance(value, dict) else _Said()


def _said_by(value: dict[str, Any], now: float | None = None, depth: int = 0) -> _Said:
    """What a report says, wherever it says it; of a report inside of a report, the inner one."""
    error = value.get("error")
    if not error and isinstance(value.get("base_resp"), dict):
        error = value["base_resp"]  # MiniMax
    if not error and isinstance(value.get("errors"), list) and value["errors"]:
        error = value["errors"][0]  # Cloudflare, GraphQL
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, str):
        outer = {**value, "message": error}
    elif isinstance(error, dict):
        outer = {"type": value.get("error_type"), **error}
    else:
        outer = value
    inner = _nested(outer) if depth < MAX_NESTED else None
    if inner is not None:
        said = _said_by(inner, now, depth + 1)
        if said.message:
            return msgspec.structs.replace(said, status=said.status or _status_of(outer))
    return _said_in_object(outer, now)


def _nested(error: dict[str, Any]) -> dict[str, Any] | None:
    """The report inside of a report, as an object, or as JSON in a text: that of another provider, which a gateway
    passes on; that of a server on FastAPI, which puts it under `detail`."""
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None  # OpenRouter
    for text in (raw, error.get("message"), error.get("error"), error.get("detail")):
        if isinstance(text, dict) and ("error" in text or "message" in text or "msg" in text):
            return text
        if isinstance(text, str) and (start := text.find("{")) >= 0 and text.rstrip().endswith("}"):
            value = _parsed(text[start : start + MAX_BODY])
            if isinstance(value, dict) and ("error" in value or "message" in value):
                return value
    return None


def _said_in_object(error: dict[str, Any], now: float | None) -> _Said:
    code = next((error[key] for key in _CODES if key not in _STATUSES and error.get(key)), None)
    status = _status_of(error)
    message, param = _text(error)
    wait = waits.of_report(error, now)
    return _Said(
        code="" if _status(code) else _word(code),
        type=_word(error.get("type")),
        message=message,
        status=status,
        names=tuple(_names(error)),
        param=_param(error.get("param")) or param,
        wait=waits.of_sentence(message) if wait is None else wait,
    )


def _status_of(error: dict[str, Any]) -> int:
    keys = ("code", "status", "status_code", "statusCode", "http_code", "error_code")
    return next((status for key in keys if (status := _status(error.get(key)))), 0)


def _names(error: dict[str, Any]) -> Iterator[str]:
    """Further machine words of a report: Google's status and reasons, Azure's inner code, AWS's and others' types."""
    inner = error.get("innererror")
    details = error.get("details")
    sources = [error, inner if isinstance(inner, dict) else {}]
    sources += [one for one in (details if isinstance(details, list) else [])[:16] if isinstance(one, dict)]
    for source in sources:
        for key in ("status", "reason", "error_type", "__type", "code"):
            if (source is not error or key != "code") and (word := _word(source.get(key))):
                yield word


def _word(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    # An escape would become a word of its own, and what it stands for could not be found in the request any more.
    word = _NOT_CODE.sub("_", unquote(unquote(value[: 9 * MAX_CODE]))[:MAX_CODE]) if isinstance(value, str) else ""
    return "" if word in _NO_CODES else without_keys(word)


def _param(value: object) -> str:
    """The part of the request that a report names, as `messages[1].content`."""
    return without_keys(_NOT_PARAM.sub("_", value[:MAX_PARAM])) if isinstance(value, str) else ""


def _status(value: object) -> int:
    """The HTTP status that a provider gave as its code; 0 for none."""
    if isinstance(value, str) and re.fullmatch(r"[45][0-9]{2}", value, re.ASCII):
        value = int(value)
    return value if type(value) is int and 400 <= value <= 599 else 0


def _text(error: dict[str, Any]) -> tuple[str, str]:
    """The sentence of a report, "" for none, and the part of the request that it names."""
    for key in _TEXTS:
        value = error.get(key)
        if isinstance(value, dict) and value.get("detail"):  # Mistral puts a whole report into its message
            value = value["detail"]
        if isinstance(value, list) and value:
            parts = [part for part in value[:4] if isinstance(part, dict) and isinstance(part.get("msg"), str)]
            if parts:
                return plain("; ".join(part["msg"] for part in parts)), _place(parts[0].get("loc"))
            value = value[0]
        if isinstance(value, str) and value:
            return plain(value), ""
    return "", ""


def _place(loc: object) -> str:
    """The part of the request that FastAPI names by its path."""
    steps = [str(step) for step in loc if isinstance(step, str | int)] if isinstance(loc, list) else []
    return _param(".".join(steps[1:] if steps[:1] == ["body"] else steps))
