"""What to check when an upstream fails: from what is known of a failure to one sentence for the person who runs this.

    hint(error, "http://127.0.0.1:8000", "openai")   # "The URL may lack /v1: it is asked at /chat/completions."

`HINTS` is the one table. Its rows are asked in order and the first that has something to say is heard, so an exact row
stands before a general one. A hint names settings of the configuration file; it is for the log, `gateway check --ask`
and the admin listener, never for a client. The chat page has each in Chinese (`pages/chat/words.js`).
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from gateway.core.errors import GatewayError

Hint = Callable[["_Case"], str]

_ENDPOINTS: Final = {"openai": "/chat/completions", "anthropic": "/messages", "ollama": "/api/chat"}
"""What each dialect appends to the URL of a target."""
_VERSION: Final = re.compile(r"/(api/)?(v[0-9]+[a-z0-9]*|openai|deployments/[^/]+|paas/v[0-9]+)(/|$)", re.IGNORECASE)
_NO_TLS: Final = re.compile(r"wrong.version.number|record.layer.failure|http.request|unknown.protocol", re.IGNORECASE)
_TLS_PORT: Final = re.compile(r"HTTP request .{0,20}(sent )?to (an )?HTTPS (port|server)", re.IGNORECASE)
_NO_NAME: Final = re.compile(r"DNS|getaddrinfo|nodename|not known|name resolution", re.IGNORECASE)
_NO_MONEY: Final = re.compile(r"credit|balance|billing|quota|payment|arrear|overdue|余额|欠费|充值", re.IGNORECASE)
_NO_PARAMETER: Final = re.compile(
    r"(un(recognized|supported|known|expected)|extra|additional)\b.{0,40}\b(parameter|argument|field|input|propert|key)"
    r"|is not (supported|permitted)|not permitted|does not support",
    re.IGNORECASE,
)


class _Case(NamedTuple):
    """What the rows look at."""

    error: GatewayError
    url: SplitResult
    dialect: str

    @property
    def status(self) -> int:
        return self.error.upstream_status or 0

    @property
    def said(self) -> str:
        return f"{self.error.sentence} {self.error.detail}"

    @property
    def path(self) -> str:
        """The path of the target's URL, without what the dialect appends."""
        return self.url.path.rstrip("/").removesuffix(_ENDPOINTS.get(self.dialect, "")).rstrip("/")


def hint(error: GatewayError, url: str, dialect: str) -> str:
    """One sentence that says what to check; "" where nobody knows better than the error itself.

    Args:
        error: an upstream's failure.
        url: of the target, as configured, or as it was asked.
        dialect: of the upstream.
    """
    try:
        case = _Case(error, urlsplit(url), dialect)
    except ValueError:
        return ""
    return next((said for row in HINTS if (said := row(case))), "")


def _tls_for_http(case: _Case) -> str:
    if case.url.scheme == "http" and (_TLS_PORT.search(case.said) or "\x15\x03" in case.said):
        return "The port speaks TLS: write https:// in the URL."
    return ""


def _http_for_tls(case: _Case) -> str:
    if case.error.code == "upstream_tls" and case.url.scheme == "https" and _NO_TLS.search(case.said):
        return "The port does not speak TLS: write http:// in the URL, or use the port that speaks TLS."
    return ""


def _certificate(case: _Case) -> str:
    if case.error.code == "upstream_tls":
        return (
            "Check that the URL has the host's name as its certificate has it. Your own authority is trusted with "
            "SSL_CERT_FILE; without any check it goes with verify_tls: false."
        )
    return ""


def _garbage(case: _Case) -> str:
    """Something that is no HTTP answers, or hangs up at the first byte: so do servers that expect TLS."""
    broken = case.error.code in ("upstream_protocol", "upstream_reset") and not case.status
    return "If the port speaks TLS, write https:// in the URL." if broken and case.url.scheme == "http" else ""


def _model(case: _Case) -> str:
    if case.error.means == "model_not_found":
        return "Check the name in `model` (of the target, the upstream, the route, the request) against its model list."
    return ""


def _misplaced(case: _Case) -> str:
    """The target's server answers, but not at this path."""
    web_page = case.error.code == "upstream_protocol" and case.status == 200
    if case.status not in (404, 405) and not web_page:
        return ""
    asked = case.path + _ENDPOINTS.get(case.dialect, "")
    if case.dialect in ("openai", "anthropic") and not _VERSION.search(case.path):
        return f"The URL may lack /v1: it is asked at {asked}."
    if case.dialect == "ollama" and _VERSION.search(case.path):
        return f"Ollama's own API is not below /v1: shorten the URL ({asked}), or use the dialect openai."
    if case.dialect == "ollama":
        return f"This may be no Ollama: it is asked at {asked}. Most other servers speak the dialect openai, below /v1."
    return f"Check the path of the URL, and the dialect: it is asked at {asked or '/'}."


def _redirect(case: _Case) -> str:
    return "Redirects are not followed: write the URL that it redirects to." if 300 <= case.status < 400 else ""


def _account(case: _Case) -> str:
    error = case.error
    spent = error.means == "upstream_rate_limited" and not error.retryable
    unpaid = error.means == "upstream_auth" and (case.status == 402 or _NO_MONEY.search(error.sentence))
    if spent or unpaid:
        return "Check the provider's account: its balance, its plan and its limits."
    return ""


def _key(case: _Case) -> str:
    if case.error.means == "upstream_auth":
        return "Check api_key of the upstream: that it is set, is this provider's, and may use this model and region."
    return ""


def _unreachable(case: _Case) -> str:
    if case.error.code != "upstream_unreachable":
        return ""
    if _NO_NAME.search(case.said):
        return "Check the host in the URL: its name is not known here."
    if case.url.scheme == "https" and "ConnectionTimeout" in case.said:
        return "Check that the server runs, and that its port speaks TLS: if it does not, write http:// in the URL."
    if case.url.hostname in ("localhost", "127.0.0.1", "::1"):
        return "Check that the server runs, and its port. In a container, localhost is the container itself."
    return "Check that the server runs, its port, and that a firewall lets this connection through."


def _parameter(case: _Case) -> str:
    if case.status in (400, 422) and _NO_PARAMETER.search(case.error.sentence):
        return "What it does not know can be left out with `omit` of the upstream."
    return ""


def _silent(case: _Case) -> str:
    if case.error.code == "upstream_timeout":
        return "If the model may think for longer, raise timeouts.first_event."
    return ""


HINTS: Final[tuple[Hint, ...]] = (
    _tls_for_http,
    _http_for_tls,
    _certificate,
    _model,
    _misplaced,
    _redirect,
    _garbage,
    _account,
    _key,
    _unreachable,
    _parameter,
    _silent,
)
