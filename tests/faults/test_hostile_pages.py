"""A foreign web page, in the browser of somebody who runs an anonymous gateway on this machine: H7.

What browsers send for each kind of request is written down here; tests/real/test_foreign_pages.py has a real one.
"""

import asyncio
from typing import Final

import pytest

from tests.faults.stage import Stage, stage_fixture
from tests.kit.upstream import openai_answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY: Final = "client-key-0123456789"
EVIL: Final = "http://evil.example"
BROWSER: Final = "User-Agent: Mozilla/5.0\r\nAccept-Language: en\r\n"
FORM: Final = "Content-Type: application/x-www-form-urlencoded\r\n"
GET: Final = "GET /chat/openai?message=hi"
POST: Final = "POST /chat/openai"
PATHS: Final = (GET, POST, "POST /openai/openai", "GET /proxy/openai/x", "GET /streams/AAAAAAAAAAAAAAAAAAAAAA")

auth = {"anonymous": True, "keys": [{"id": "web", "key": KEY}]}
cors = {"origins": ["https://app.example"]}
stage = stage_fixture(auth=auth, cors=cors, server={"hosts": ["chat.example", "Other.Example"]})
everybody = stage_fixture(cors={"origins": ["*"]})
keyed = stage_fixture(auth={"keys": [{"id": "web", "key": KEY}]})


async def statuses(stage: Stage, *requests: tuple[str, str]) -> list[int]:
    """The statuses for request lines with headers, each on a connection of its own; `HOST` is the gateway's own."""
    stage.plays(openai_answer("Hi"))
    host, port = stage.gateway.url.removeprefix("http://").split(":")

    async def ask(line: str, headers: str) -> int:
        reader, writer = await asyncio.open_connection(host, int(port))
        body = '{"message": "hi"}' if line.startswith("POST") else ""
        if "\nHost:" not in f"\n{headers}":
            headers += "Host: HOST\r\n"
        head = f"{line} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        writer.write(head.replace("HOST", f"{host}:{port}").encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return int(answer[9:12])

    return [await ask(*request) for request in requests]


FOREIGN = {
    "image, script or link": "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
    "image on another port": "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\n",
    "navigation by a link": "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\n",
    "EventSource": f"Accept: text/event-stream\r\nOrigin: {EVIL}\r\nSec-Fetch-Site: cross-site\r\n",
    "fetch": f"Content-Type: text/plain\r\nOrigin: {EVIL}\r\nSec-Fetch-Site: cross-site\r\n",
    "form": f"{FORM}Origin: {EVIL}\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: cross-site\r\n",
    "form of an old browser": f"{FORM}Origin: {EVIL}\r\n",
    "sandboxed frame, or a file": "Origin: null\r\nSec-Fetch-Site: cross-site\r\n",
    "page on another port": "Origin: http://127.0.0.1:3000\r\nSec-Fetch-Site: same-site\r\n",
    "page on another port, Host without one": (
        "Host: localhost\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\n"
    ),
    "other scheme": "Origin: https://127.0.0.1:1\r\n",
    "two origins": f"Origin: http://HOST\r\nOrigin: {EVIL}\r\n",
    "image without TLS": f"Referer: {EVIL}/page\r\n",
    "WebSocket": f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: YQ==\r\nOrigin: {EVIL}\r\n",
    "looks like an allowed one": "Origin: https://app.example.evil.example\r\nSec-Fetch-Site: cross-site\r\n",
}


# First, as the log counts what comes too often.


async def test_refused_page_is_told_why(stage: Stage) -> None:
    """H7"""
    await statuses(stage, (POST, BROWSER + FOREIGN["fetch"] + "X-Request-Id: foreign\r\n"))
    line = await stage.gateway.logged("refused", request_id="foreign")
    assert (line["reason"], line["status"]) == ("origin", 403)
    await statuses(stage, (POST, f"Host: evil.example\r\n{BROWSER}X-Request-Id: rebound\r\n"))
    line = await stage.gateway.logged("refused", request_id="rebound")
    assert (line["reason"], line["status"]) == ("unknown_host", 421)


@pytest.mark.parametrize("how", FOREIGN)
async def test_foreign_page_starts_and_reads_nothing(stage: Stage, how: str) -> None:
    """H7"""
    found = await statuses(stage, *((line, BROWSER + FOREIGN[how]) for line in PATHS))
    assert (found, stage.upstream.exchanges) == ([403] * len(PATHS), [])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil"])
async def test_page_under_a_rebound_name_starts_and_reads_nothing(stage: Stage, host: str) -> None:
    """H7: what it asks is of its own origin, and without TLS no header says more."""
    marks = ("User-Agent: Mozilla/5.0\r\n", "Accept-Language: \r\n", f"Origin: http://{host}\r\n")
    lines = (*PATHS, "GET /", "GET /nowhere")
    requests = [(line, f"Host: {host}\r\n{mark}") for line in lines for mark in marks]
    requests.append((f"GET http://{host}/chat/openai?message=hi", f"Host: 127.0.0.1\r\n{BROWSER}"))
    assert set(await statuses(stage, *requests)) == {421}
    assert stage.upstream.exchanges == []


OWN = {
    "address bar": "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n",
    "own page": "Origin: http://HOST\r\nSec-Fetch-Site: same-origin\r\n",
    "own page's GET": "Sec-Fetch-Site: same-origin\r\nReferer: http://HOST/\r\n",
    "own page without TLS": "Referer: http://HOST/\r\n",
    "old browser": "",
    "localhost": "Host: localhost:1\r\nOrigin: http://localhost:1\r\n",
    "name below localhost": "Host: a.localhost\r\nOrigin: http://a.localhost\r\n",
    "IPv6": "Host: [::1]:8080\r\nOrigin: http://[::1]:8080\r\n",
    "configured name": "Host: chat.example\r\nOrigin: https://chat.example\r\nSec-Fetch-Site: same-origin\r\n",
    "configured name in other letters": "Host: OTHER.example.:80\r\nSec-Fetch-Site: same-origin\r\n",
    "proxy that leaves out the port": "Host: chat.example\r\nOrigin: http://chat.example:8080\r\n",
    "allowed page": "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n",
}


@pytest.mark.parametrize("how", OWN)
async def test_own_and_allowed_pages_are_served(stage: Stage, how: str) -> None:
    """H7"""
    assert await statuses(stage, (GET, BROWSER + OWN[how]), (POST, BROWSER + OWN[how])) == [200, 200]


async def test_client_that_is_no_browser_may_use_any_name(stage: Stage) -> None:
    """H7: as `http://gateway:8080` between containers."""
    assert await statuses(stage, (GET, "Host: gateway:8080\r\nUser-Agent: curl/8\r\n")) == [200]


async def test_key_is_a_better_proof_than_a_page(stage: Stage) -> None:
    """H7: no other site can make a browser send it."""
    key = f"Authorization: Bearer {KEY}\r\n"
    assert await statuses(stage, (POST, BROWSER + FOREIGN["fetch"] + key)) == [200]
    assert await statuses(stage, (POST, f"Host: evil.example\r\n{BROWSER}{key}")) == [421]


async def test_gateway_for_all_pages_and_gateway_with_keys_are_as_before(everybody: Stage, keyed: Stage) -> None:
    """H7"""
    assert await statuses(everybody, (POST, BROWSER + FOREIGN["fetch"]), (POST, "Origin: null\r\n")) == [200, 200]
    key = f"Host: any.example\r\n{BROWSER}Authorization: Bearer {KEY}\r\n"
    assert await statuses(keyed, (POST, key), (GET, f"Host: any.example\r\n{BROWSER}")) == [200, 401]
