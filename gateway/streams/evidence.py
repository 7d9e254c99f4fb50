"""The evidence of a failure: which target was asked where, what it said, and whose request it was.

It is put together only when something failed, so an answer that goes well pays for none of it. Keys, and quotes of the
request and of the answer, were taken out of what the provider said before (`Question.hide_quotes`).
"""

from typing import Final

from gateway.core.errors import GatewayError
from gateway.observe.account import Account
from gateway.observe.failures import MAX_TOLD, Failed, Failures, Kind, asked_at, moment
from gateway.observe.metrics import Outcome
from gateway.streams.attempt import Attempt, Work
from gateway.upstream.hints import hint

THE_CLIENTS: Final = frozenset({400, 413, 422})
"""Statuses of failures that the request itself caused."""
TO_BLAME: Final = frozenset({"upstream_error", "upstream_stalled", "timeout", "drained"})
"""Outcomes that are the provider's or the gateway's fault, unless the status says that they are the client's."""


def failed_attempt(work: Work, attempt: Attempt, error: GatewayError) -> Failed:
    """The record of an attempt that failed with this error."""
    return _failed("attempt", work.account, attempt, error)


def note_failed_stream(
    failures: Failures, account: Account, attempt: Attempt | None, error: GatewayError, outcome: Outcome
) -> None:
    """Notes a stream that failed.

    Args:
        failures: where it is noted.
        account: of the stream; it has not ended yet.
        attempt: the attempt that is to blame, or was the last; None where no target was asked.
        error: what its readers are told.
        outcome: as metrics name it.
    """
    to_blame = outcome in TO_BLAME and error.status not in THE_CLIENTS
    failures.note(_failed("stream", account, attempt, error, outcome), to_blame=to_blame)


def _failed(
    kind: Kind, account: Account, attempt: Attempt | None, error: GatewayError, outcome: Outcome | None = None
) -> Failed:
    url, path = asked_at(attempt.question.url) if attempt is not None else ("", "")
    if error.upstream_status is None and attempt is not None:
        error.upstream_status = attempt.status  # of an answer that began well
    return Failed(
        when=moment(),
        kind=kind,
        route=account.route,
        upstream=attempt.choice.upstream.name if attempt is not None else account.upstream,
        target=attempt.choice.target.label if attempt is not None else "",
        url=url,
        path=path,
        status=error.upstream_status,
        code=error.code,
        sentence=error.sentence[:MAX_TOLD],
        hint=hint(error, url, attempt.choice.upstream.config.dialect)[:MAX_TOLD] if attempt is not None else "",
        request_id=account.facts["request_id"],
        trace_id=account.span.trace_id,
        stream_id=account.facts["stream_id"],
        principal=account.facts["principal"],
        detail=error.detail,
        outcome=outcome or "",
    )
