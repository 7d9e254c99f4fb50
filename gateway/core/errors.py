"""Every way a request or a stream can fail, in one table: code, HTTP status, and whether another try may help.

A `GatewayError` keeps what a client may read (`message`) apart from what only the log may hold (`detail`, and
`sentence`: what the provider said itself).
This file does not know how an error looks when it reaches a client; `formats/` and `web/responses.py` do.
"""

import math
import re
from collections.abc import Callable, Generator
from traceback import clear_frames
from typing import Final, NamedTuple

import msgspec


class Kind(NamedTuple):
    """What all errors with one code have in common."""

    status: int
    retryable: bool
    message: str


ERROR_KINDS: Final[dict[str, Kind]] = {
    # the request
    "bad_request": Kind(400, False, "The request is malformed."),
    "bad_cursor": Kind(400, False, "The cursor is malformed."),
    "unauthorized": Kind(401, False, "A valid credential is required."),
    "forbidden": Kind(403, False, "This credential may not do that."),
    "not_found": Kind(404, False, "There is nothing here."),
    "cursor_expired": Kind(404, False, "This stream can no longer be resumed."),
    "method_not_allowed": Kind(405, False, "This method is not allowed here."),
    "request_timeout": Kind(408, True, "The request took too long to arrive."),
    "unknown_host": Kind(421, False, "This gateway is not known to browsers by this name."),
    "body_too_large": Kind(413, False, "The request body is too large."),
    "headers_too_large": Kind(431, False, "The request headers are too large."),
    "rate_limited": Kind(429, True, "Too many requests."),
    "too_many_streams": Kind(429, True, "Too many streams are open."),
    "token_limit": Kind(429, True, "The token budget is used up."),
    # the gateway
    "internal": Kind(500, True, "The gateway failed."),
    "auth_unavailable": Kind(503, True, "Credentials cannot be checked at the moment."),
    "overloaded": Kind(503, True, "The gateway is at its limit."),
    "draining": Kind(503, True, "The gateway is about to restart."),
    "drained": Kind(503, True, "The gateway restarted."),
    # the upstream
    "upstream_refused": Kind(400, False, "The provider refused the request."),
    "model_not_found": Kind(404, False, "The provider does not have this model."),
    "context_length_exceeded": Kind(400, False, "The conversation is too long for the model."),
    "content_filter": Kind(400, False, "The provider's content filter refused the request."),
    "upstream_rate_limited": Kind(429, True, "The provider is rate limiting."),
    "upstream_auth": Kind(502, False, "The provider did not accept the gateway's credential."),
    "upstream_error": Kind(502, True, "The provider failed."),
    "upstream_unreachable": Kind(502, True, "The provider cannot be reached."),
    "upstream_reset": Kind(502, True, "The provider closed the connection before it answered."),
    "upstream_tls": Kind(502, False, "No trusted connection to the provider could be made."),
    "upstream_protocol": Kind(502, True, "The provider's answer made no sense."),
    "upstream_encoding": Kind(502, False, "The provider's answer has an encoding that was not asked for."),
    "upstream_oversize": Kind(502, False, "The provider's answer broke a size limit."),
    "upstream_cut": Kind(502, True, "The provider's answer broke off."),
    "upstream_unavailable": Kind(503, True, "The provider is unavailable."),
    "upstream_timeout": Kind(504, True, "The provider did not answer in time."),
    "upstream_stalled": Kind(504, True, "The provider's answer stalled."),
    # the stream
    "stream_limit": Kind(504, False, "The stream reached its longest duration."),
    "auth_expired": Kind(401, False, "The credential expired."),
    "budget": Kind(429, True, "The token budget was used up by this stream."),
    "abandoned": Kind(410, True, "The stream was ended because nobody was reading it."),
    "stopped": Kind(499, False, "The stream was stopped."),
}


class Failure(msgspec.Struct, frozen=True):
    """The data of an `ERROR` event.

    Attributes:
        code: a key of `ERROR_KINDS`, or the provider's own code for an error that it sent inside a stream.
        message: for people; holds no secret, prompt or answer.
        retryable: whether the same request may succeed later.
        retry_after: seconds, in tenths, after which the client should try again, None where nobody knows.
        status: the HTTP status of this failure if no stream has begun.
        param: the part of the request that the provider named as the reason, None where it named none.
        provider_code: the provider's own code for a refusal, "" for none; for clients that speak the provider's API.
    """

    code: str
    message: str
    retryable: bool
    retry_after: float | None = None
    status: int = 500
    param: str | None = None
    provider_code: str = ""


def tenths(seconds: float) -> float:
    """The seconds rounded up to a tenth, as clients are told them: whoever waits so long has waited long enough."""
    return math.ceil(round(seconds * 10, 6)) / 10


_BETWEEN: Final = re.compile(r"[_.:-]+|(?<=[a-z0-9])(?=[A-Z])")
"""Between the words of a code."""
_LONGEST_HARMLESS: Final = 11
"""Characters of a code that are too few to quote anything, or to be a key."""


class GatewayError(Exception):
    """A request or a stream failed, for a reason with a code.

    Args:
        code: a key of `ERROR_KINDS`. Any other is a provider's own code, with the status and retryability of
            `upstream_error`.
        message: what the client reads; "" for the code's own message.
        retry_after: seconds after which another try makes sense.
        detail: for the log only; may name hosts and files, never a secret.
        status: replaces the code's status.
        retryable: replaces the code's retryability. An upstream whose failure is not retryable is not asked again.
        headers: further response headers, sent together with the status.
        means: the key of `ERROR_KINDS` that says what to do after this failure; "" for the code itself. It differs from
            the code where the code is a provider's own.
        sentence: what the provider said for people, as one line, with keys hidden. It may quote the request until
            `core/sentence.py` has taken that out.
        upstream_status: the HTTP status of the provider's answer, None where there was no answer.
        param, provider_code: as in `Failure`.

    Attributes:
        words: all that a provider said when it refused a request, as it came. It may quote the request, so it is looked
            at and never shown; "" where the failure is no refusal.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        retry_after: float | None = None,
        detail: str = "",
        status: int | None = None,
        retryable: bool | None = None,
        headers: dict[str, str] | None = None,
        means: str = "",
        sentence: str = "",
        upstream_status: int | None = None,
        param: str | None = None,
        provider_code: str = "",
    ) -> None:
        kind = ERROR_KINDS.get(code, ERROR_KINDS["upstream_error"])
        self.code = code
        self.message = message or kind.message
        self.retry_after = retry_after
        self.detail = detail
        self.status = kind.status if status is None else status
        self.retryable = kind.retryable if retryable is None else retryable
        self.headers = headers or {}
        self.means = means or code
        self.sentence = sentence
        self.upstream_status = upstream_status
        self.param = param
        self.provider_code = provider_code
        self.words = ""
        super().__init__(f"{code}: {self.message}")

    def reword(self, sentence: str) -> None:
        """Replaces the provider's sentence, also in the message where that holds it."""
        if sentence != self.sentence:
            self.message = self.message.replace(self.sentence, sentence)
            self.detail = self.detail.replace(self.sentence, sentence)
            self.sentence = sentence

    def hiding(self, clean: Callable[[str], Generator[None, None, str]]) -> Generator[None, None, None]:
        """Takes out of all that a provider said, its codes included, what `clean` takes out of a text.

        It works in steps, as `clean` does: between two of them others may have their turn.
        """
        self.reword((yield from clean(self.sentence)))
        # A code is a word or two. One that is made of a text, or is a key, has "_" or the like in place of spaces.
        codes = {self.code, self.provider_code, *self.detail.split()} - ERROR_KINDS.keys() - set(self.sentence.split())
        codes = {code for code in codes if len(code) > _LONGEST_HARMLESS}
        for code in codes:
            readable = _BETWEEN.sub(" ", code)
            if (yield from clean(code)) != code or (yield from clean(readable)) != readable:
                self.detail = self.detail.replace(code, "…")
                self.provider_code = "" if self.provider_code == code else self.provider_code
                self.code = "upstream_error" if self.code == code else self.code

    def failure(self) -> Failure:
        """What clients are told of this error."""
        return Failure(
            self.code,
            self.message,
            self.retryable,
            None if self.retry_after is None else tenths(self.retry_after),
            self.status,
            self.param,
            self.provider_code,
        )

    def to_json(self) -> str:
        """The data of the `ERROR` event for this error."""
        return msgspec.json.encode(self.failure()).decode()


def forget_frames(error: BaseException | None) -> None:
    """An error that is handled keeps nothing alive any more but itself.

    Its traceback holds the frames that it passed, and they hold what they worked with, as megabytes of a request; often
    one of them holds the error too, and such a circle stays until the collector comes. Frames that run are left alone.
    """
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            clear_frames(one.__traceback__)
            one.__traceback__ = None  # a frame that was cleared still holds the one that it was called from
            left += [one.__cause__, one.__context__]
