"""What somebody is told to check, for each kind of failure that a configuration can be to blame for."""

import ast
import re
from pathlib import Path

import pytest

from gateway.core.errors import GatewayError
from gateway.upstream.hints import HINTS, hint


def refused(status: int, code: str = "upstream_refused", sentence: str = "", **extra: object) -> GatewayError:
    return GatewayError(code, upstream_status=status, sentence=sentence, **extra)  # type: ignore[arg-type]


NO_TLS = "ClientConnectorSSLError: Cannot connect to host a:80 ssl:default [[SSL: WRONG_VERSION_NUMBER] wrong version]"
NO_NAME = "ClientConnectorDNSError: Cannot connect to host nowhere:80 ssl:default [Name or service not known]"
ROOT = Path(__file__).resolve().parents[2]
PLAIN = "The plain HTTP request was sent to HTTPS port"


@pytest.mark.parametrize(
    ("error", "url", "dialect", "said"),
    [
        (refused(404), "http://h:8000", "openai", "lack /v1: it is asked at /chat/completions"),
        (refused(404), "http://h:8000/chat/completions", "openai", "lack /v1: it is asked at /chat/completions"),
        (refused(405), "http://h:8000/", "openai", "lack /v1"),
        (refused(404), "https://api.anthropic.com", "anthropic", "lack /v1: it is asked at /messages"),
        (refused(404), "http://h:8000/v1", "openai", "asked at /v1/chat/completions"),
        (refused(404), "https://x/openai/deployments/gpt", "openai", "Check the path"),
        (refused(404), "https://x/api/paas/v4", "openai", "Check the path"),
        (refused(404), "http://h:11434/v1", "ollama", "not below /v1"),
        (refused(404), "http://h:8000", "ollama", "no Ollama"),
        (refused(404), "http://h:8000/events", "sse", "Check the path of the URL"),
        (refused(200, "upstream_protocol"), "http://h:8000", "openai", "lack /v1"),
        (refused(404, "model_not_found"), "http://h:8000", "openai", "`model`"),
        (refused(302, "upstream_protocol"), "http://h/v1", "openai", "Redirects"),
        (refused(400, "upstream_protocol", PLAIN), "http://h/v1", "openai", "https://"),
        (
            GatewayError("upstream_protocol", detail="Bad status line"),
            "http://h/v1",
            "openai",
            "TLS",
        ),
        (GatewayError("upstream_reset", detail="ServerDisconnectedError"), "http://h/v1", "openai", "https://"),
        (GatewayError("upstream_tls", detail=NO_TLS), "https://h/v1", "openai", "http://"),
        (GatewayError("upstream_tls", detail="certificate verify failed"), "https://h/v1", "openai", "SSL_CERT_FILE"),
        (GatewayError("upstream_unreachable", detail=NO_NAME), "http://nowhere/v1", "openai", "name is not known"),
        (GatewayError("upstream_unreachable"), "http://localhost:1/v1", "openai", "container"),
        (GatewayError("upstream_unreachable"), "http://10.0.0.1:1/v1", "openai", "firewall"),
        (
            GatewayError("upstream_unreachable", detail="ConnectionTimeoutError: "),
            "https://h:8000/v1",
            "openai",
            "http://",
        ),
        (refused(401, "upstream_auth"), "http://h/v1", "openai", "api_key"),
        (refused(402, "upstream_auth"), "http://h/v1", "openai", "balance"),
        (refused(400, "upstream_auth", "Your credit balance is too low"), "http://h/v1", "openai", "balance"),
        (refused(429, "upstream_rate_limited", retryable=False), "http://h/v1", "openai", "limits"),
        (refused(400, sentence="Unrecognized request argument: top_k"), "http://h/v1", "openai", "`omit`"),
        (GatewayError("upstream_timeout"), "http://h/v1", "openai", "first_event"),
    ],
)
def test_hint_names_what_to_check(error: GatewayError, url: str, dialect: str, said: str) -> None:
    assert said in hint(error, url, dialect)


@pytest.mark.parametrize(
    ("error", "url"),
    [
        (refused(400, "context_length_exceeded"), "http://h/v1"),
        (refused(429, "upstream_rate_limited"), "http://h/v1"),
        (refused(500, "upstream_error", "CUDA out of memory"), "http://h/v1"),
        (GatewayError("upstream_cut"), "http://h/v1"),
        (GatewayError("upstream_reset"), "https://h/v1"),
        (refused(404), "http://[broken"),
    ],
)
def test_no_hint_is_given_where_nothing_is_known(error: GatewayError, url: str) -> None:
    assert hint(error, url, "openai") == ""


def test_every_hint_has_a_chinese_text_on_the_chat_page() -> None:
    words = (ROOT / "pages/chat/words.js").read_text("utf-8")
    begins = re.findall(r'^  \["([A-Z][^"]+)", "[^"]*[\u3400-\u9fff][^"]*"\],$', words, re.MULTILINE)
    tree = ast.parse((ROOT / "gateway/upstream/hints.py").read_text("utf-8"))
    told = [row.value for row in ast.walk(tree) if isinstance(row, ast.Return) and row.value]
    parts = [node.value for value in told for node in ast.walk(value) if isinstance(node, ast.Constant)]
    texts = [part for part in parts if isinstance(part, str) and re.match("[A-Z][a-z]+.* ", part)]
    assert len(texts) >= len(HINTS)
    assert [text for text in texts if not text.startswith(tuple(begins))] == []
