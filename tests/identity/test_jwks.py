"""Key sets fetched over loopback: rotation, and servers that are down, slow, huge or hostile."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from multidict import MultiDict

from gateway.config.model import Jwt
from gateway.core.credential import Facts, Presented, Refused
from gateway.core.errors import GatewayError
from gateway.core.principal import Principal
from gateway.identity import jwks
from gateway.identity.jwt import JwtVerifier
from tests.identity.tokens import AUDIENCE, ISSUER, edwards, key_set, rsa, token
from tests.kit.program import free_port
from tests.kit.upstream import Cut, Hang, Reset, Script, ScriptedUpstream, Step, response

FACTS = Facts("192.0.2.7", MultiDict(), {}, {})
SET = key_set(rsa("one"))
NEXT = key_set(rsa("two"))


class Scene:
    """A server of key sets, and a verifier that fetches from it."""

    def __init__(self, url: str) -> None:
        entry = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": url, "algorithms": ["RS256"]}
        self.lines: list[dict[str, Any]] = []
        logger = structlog.wrap_logger(None, processors=[self._note], wrapper_class=structlog.BoundLogger)
        self.verifier = JwtVerifier([Jwt.model_validate(entry)], logger)
        [self.fetched] = self.verifier.fetched.values()

    def _note(self, logger: object, level: str, event: Any) -> Any:
        self.lines.append(dict(event))
        raise structlog.DropEvent

    async def ask(self, key: str = "one", **changes: Any) -> str:
        """What becomes of a token that is signed with this key."""
        try:
            verdict = self.verifier.verify(Presented(token(rsa(key), "RS256", **changes), "header"), FACTS, time.time())
            verdict = await verdict if isinstance(verdict, Awaitable) else verdict
        except GatewayError as error:
            return error.code if 1 <= (error.retry_after or 0) <= jwks.MAX_PAUSE + 2 else str(error.retry_after)
        assert isinstance(verdict, Principal | Refused)
        return "in" if isinstance(verdict, Principal) else verdict.reason

    async def turn(self) -> None:
        """Returns when a fetch ends."""
        async with asyncio.timeout(5):
            await self.fetched._fetched.wait()

    def again(self) -> None:
        """Makes as if the last fetch were long ago."""
        self.fetched._begun -= jwks.AGAIN

    @property
    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.lines if line["event"] == "jwks_failed"]


@asynccontextmanager
async def scene(*scripts: Script, path: str = "/jwks.json") -> AsyncIterator[tuple[Scene, ScriptedUpstream]]:
    async with ScriptedUpstream(*scripts) as server:
        played = Scene(server.url + path)
        try:
            yield played, server
        finally:
            await played.verifier.close()


def answer(body: bytes, **headers: str) -> list[Step]:
    return [response(200, body, **headers)]


async def test_first_request_waits_for_the_first_fetch() -> None:
    async with scene(answer(SET), path="/jwks.json?p=b2c") as (played, server):
        assert await played.ask() == "in"
        assert await played.ask("two", header={"kid": "one"}) == "invalid"
        [exchange] = server.exchanges
        assert (exchange.method, exchange.target) == ("GET", "/jwks.json?p=b2c")
        assert "authorization" not in exchange.headers
        [line] = played.lines
        assert (line["event"], line["keys"]) == ("jwks_fetched", 1)
        assert "b2c" not in str(line)


async def test_new_key_is_fetched_when_a_token_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation: the first token is good, and no kid, however many, makes a second fetch in ten seconds."""
    async with scene(answer(SET), answer(NEXT)) as (played, server):
        await played.turn()
        assert await played.ask("two") == "invalid"  # the last fetch was just now
        played.again()
        assert await asyncio.gather(*(played.ask("two") for _ in range(5))) == ["in"] * 5
        assert await played.ask("one") == "invalid"  # it was withdrawn
        for number in range(20):
            assert await played.ask("evil", header={"kid": f"../{number}"}) == "invalid"
        assert len(server.exchanges) == 2


async def test_remembered_token_is_forgotten_with_its_key() -> None:
    async with scene(answer(SET), answer(NEXT)) as (played, _):
        text = token(rsa("one"), "RS256")
        await played.turn()
        assert isinstance(played.verifier.verify(Presented(text, "header"), FACTS, time.time()), Principal)
        played.again()
        assert await played.ask("two") == "in"
        assert isinstance(played.verifier.verify(Presented(text, "header"), FACTS, time.time()), Refused)


async def test_token_that_is_bad_anyway_makes_no_fetch() -> None:
    async with scene(answer(SET)) as (played, server):
        await played.turn()
        played.again()
        for changes in ({"aud": "other"}, {"exp": 1}, {"iss": "https://evil.example"}, {"sub": None}):
            assert await played.ask("two", **changes) in ("invalid", "expired")
        assert len(server.exchanges) == 1


BAD: dict[str, tuple[Sequence[Step], str]] = {
    "HTML": (answer(b"<!doctype html><title>Sign in</title>"), "it is no JSON"),
    "error": ([response(500, SET)], "the status is 500"),
    "redirect": ([response(302, SET, Location="/elsewhere")], "the status is 302"),
    "nothing": ([response(204, b"")], "the status is 204"),
    "empty set": (answer(b'{"keys": []}'), "no key in it can be used"),
    "secrets": (answer(b'{"keys": [{"kty": "oct", "k": "AAAA"}]}'), "no key in it can be used"),
    "deep": (answer(b"[" * 100_000), "it is no JSON"),
    "too large": (answer(b" " * (jwks.MAX_BODY + 1)), "it is larger than 256 KiB"),
    "bomb": (answer(gzip.compress(b" " * (1 << 20)), Content_Encoding="gzip"), "the body is compressed, which"),
    "reset": ([Reset()], ""),
    "cut": ([response(200, SET)[:-9], Cut()], ""),
    "no HTTP": ([b"SSH-2.0-x\r\n", Cut()], ""),
}


@pytest.mark.parametrize("bad", BAD)
async def test_bad_answer_gives_no_keys_and_takes_none(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first set, requests are told to come back; after it, the set is kept."""
    monkeypatch.setattr(jwks, "PAUSE", 0.01)
    script, reason = BAD[bad]
    async with scene(script, answer(SET), script) as (played, server):
        while not played.reasons:
            assert await played.ask() in ("overloaded", "in")
            await asyncio.sleep(0)
        while played.fetched.keys is None:
            await played.turn()
        assert await played.ask() == "in"
        played.again()
        assert await played.ask("two") == "invalid"
        assert await played.ask() == "in"
        assert all(said.startswith(reason) for said in played.reasons)
        assert [line["kept"] for line in played.lines if line["event"] == "jwks_failed"][:2] == [False, True]
        assert all(exchange.target == "/jwks.json" for exchange in server.exchanges)


async def test_endless_body_is_cut_at_its_bound() -> None:
    """A gigabyte is announced; the connection ends soon after the bound."""
    flood: list[Step] = [b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", *([b" " * 65536] * 64), Hang()]
    async with scene(flood) as (played, server):
        await played.turn()
        assert played.reasons == ["it is larger than 256 KiB"]
        await asyncio.wait_for(server.exchanges[0].closed.wait(), 5)


async def test_server_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "PATIENCE", 0.05)
    monkeypatch.setattr(jwks, "TIMEOUT", 0.3)
    async with scene([Hang()]) as (played, _):
        assert await played.ask() == "overloaded"
        assert not played.lines  # the fetch goes on
        await played.turn()
        assert played.reasons == ["it took too long"]
        assert await played.ask() == "overloaded"


async def test_server_that_was_down_at_the_start_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "PAUSE", 0.01)
    port = free_port()
    played = Scene(f"http://127.0.0.1:{port}/jwks.json")
    try:
        await played.turn()
        assert await played.ask() in ("overloaded",)
        async with ScriptedUpstream(answer(SET), port=port):
            while played.fetched.keys is None:
                await played.turn()
            assert await played.ask() == "in"
        assert await played.ask() == "in"
    finally:
        await played.verifier.close()


async def test_pauses_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene([response(500, b"")]) as (played, _):
        await played.turn()
        pauses = [played.fetched._fail("again") for _ in range(20)]
        assert all(pause <= jwks.MAX_PAUSE for pause in pauses)
        assert min(pauses[-5:]) >= jwks.MAX_PAUSE / 2 > max(pauses[:2])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", jwks.FRESH), ("no-cache", jwks.FRESH), ("public, max-age=300", 300), ("max-age=0", 60), ("MAX-AGE=5", 60),
        ("max-age=31536000", 3600), ("s-maxage=9, max-age = 120", 120), ("max-age=x", jwks.FRESH),
        ("max-age=-1", jwks.FRESH),
        (f"max-age={'9' * 5000}", 3600),
    ],
)  # fmt: skip
def test_freshness_is_the_servers_within_bounds(header: str, seconds: float) -> None:
    assert jwks._fresh(header) == seconds


async def test_set_is_fetched_again_when_it_is_no_longer_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FRESH_BOUNDS", (0.01, 0.01))
    brief = answer(SET, Cache_Control="max-age=1")
    async with scene(brief, brief, answer(NEXT)) as (played, _):
        before = None
        while len(played.lines) < 2:  # the same set again is no news
            before = before or played.fetched.keys
            await played.turn()
        assert before is not played.fetched.keys
        assert await played.ask("two") == "in"


async def test_reload_keeps_what_was_fetched_and_closes_what_is_dropped() -> None:
    async with ScriptedUpstream(answer(SET)) as server:
        first = Scene(f"{server.url}/a")
        try:
            await first.turn()
            settings = first.verifier.settings[0]
            other = settings.model_copy(update={"jwks_url": f"{server.url}/b"})
            logger = structlog.get_logger()
            second = JwtVerifier([settings, other], logger, first.verifier)
            await first.verifier.close(second)
            assert second.fetched[f"{server.url}/a"] is first.fetched
            third = JwtVerifier([other], logger, second)
            await second.close(third)
            assert first.fetched._task.cancelled()
            assert not third.fetched[f"{server.url}/b"]._task.done()
            await third.close()
        finally:
            await first.verifier.close()


async def test_keys_of_the_header_are_never_fetched() -> None:
    """`jku` and `x5u` lead to a server that sees nothing."""
    async with ScriptedUpstream(answer(key_set(edwards()))) as theirs, scene(answer(SET)) as (played, server):
        await played.turn()
        played.again()
        header = {"jku": f"{theirs.url}/jwks.json", "x5u": f"{theirs.url}/cert.pem", "kid": f"{theirs.url}/kid"}
        assert await played.ask("two", header=header) == "invalid"
        assert not theirs.exchanges
        assert len(server.exchanges) == 2
