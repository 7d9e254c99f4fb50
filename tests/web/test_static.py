"""The headers of the pages' files: what a browser may do with them, and which other pages may load them."""

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.admin.files import monitor_files
from gateway.web.static import CHAT_PARTS, StaticFile, static_files

CHAT = static_files(CHAT_PARTS)
LISTENERS = {"chat": CHAT, "monitor": monitor_files()}
ALL = [(listener, path) for listener, files in LISTENERS.items() for path in files]
STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}


def headers(file: StaticFile) -> dict[str, str]:
    return dict(file.respond(make_mocked_request("GET", "/")).headers)


def policy(file: StaticFile) -> dict[str, str]:
    directives = headers(file)["Content-Security-Policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


@pytest.mark.parametrize("listener", LISTENERS)
def test_page_may_do_nothing_that_it_does_not_need(listener: str) -> None:
    page = LISTENERS[listener]["/"]
    assert policy(page) == STRICT
    # With it, WebKit forgets the page's sessionStorage, and so the conversation, when somebody leaves and goes back.
    assert "Cross-Origin-Opener-Policy" not in headers(page)


@pytest.mark.parametrize(("listener", "path"), ALL)
def test_file_is_taken_for_what_it_is_and_names_no_page_that_asked(listener: str, path: str) -> None:
    sent = headers(LISTENERS[listener][path])
    assert (sent["X-Content-Type-Options"], sent["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert policy(LISTENERS[listener][path]).items() >= {"default-src": "'none'", "frame-ancestors": "'none'"}.items()


@pytest.mark.parametrize(("listener", "path"), ALL)
def test_other_origins_load_the_client_and_nothing_else(listener: str, path: str) -> None:
    sent = headers(LISTENERS[listener][path])
    shared = path == "/client.js"
    assert sent["Cross-Origin-Resource-Policy"] == ("cross-origin" if shared else "same-origin")
    assert sent.get("Access-Control-Allow-Origin") == ("*" if shared else None)
