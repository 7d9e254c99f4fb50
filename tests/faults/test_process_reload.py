"""W3, W4: the configuration is read again while streams run."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import StartGateway
from tests.kit.ledger import Ledger
from tests.kit.program import Gateway
from tests.kit.sse_client import EventSource, Response, request
from tests.kit.upstream import Cut, Hang, Pause, ScriptedUpstream, Step, openai_answer, openai_delta, sse_head

MODULE = pytest.mark.asyncio(loop_scope="module")
ENDLESS: list[Step] = [sse_head(), openai_delta("first"), *[Pause(0.1), openai_delta(".")] * 300, Hang()]


def config(url: str, **more: Any) -> dict[str, Any]:
    return {
        "auth": {"keys": [key("old")]},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": url}]}},
        "routes": [route("/chat")],
    } | more


def key(name: str, plan: str = "default") -> dict[str, str]:
    return {"id": name, "key": f"secret-of-{name}", "plan": plan}


def route(path: str, upstream: str = "main") -> dict[str, Any]:
    return {"path": path, "api": "chat", "upstream": upstream, "history": None, "heartbeat": "200ms"}


async def ask(gateway: Gateway, path: str = "/chat", who: str = "old") -> Response:
    headers = {"Authorization": f"Bearer secret-of-{who}"}
    return await request(f"{gateway.url}{path}", method="POST", body={"message": "hi"}, headers=headers)


async def reload(gateway: Gateway) -> None:
    """HUP, and wait for the new configuration to be in force."""
    before = len(gateway.log_lines("reloaded"))
    gateway.send_signal(signal.SIGHUP)
    await more_lines(gateway, "reloaded", before)


async def more_lines(gateway: Gateway, event: str, before: int) -> None:
    """Return when more than so many lines of an event were logged."""
    await gateway.said(lambda _: len(gateway.log_lines(event)) > before, f"{event} after {before} of them", timeout=10)


# -- W3 ------------------------------------------------------------------------------------------------------------


class Served:
    """A gateway with one endless stream, whose configuration is broken again and again."""

    def __init__(self, gateway: Gateway, good: dict[str, Any]) -> None:
        self.gateway = gateway
        self.good = good
        self.reader: Response | None = None

    async def refuse(self) -> dict[str, Any]:
        """HUP, and the one error line that it leads to."""
        before = len(self.gateway.log_lines("reload_failed"))
        self.gateway.send_signal(signal.SIGHUP)
        await more_lines(self.gateway, "reload_failed", before)
        lines = self.gateway.log_lines("reload_failed")[before:]
        assert len(lines) == 1, lines
        return lines[0]

    async def reload_metric(self) -> float:
        return (await Ledger(self.gateway).scrape()).total("gateway_config_last_reload_successful")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with ScriptedUpstream(ENDLESS) as upstream:
        good = config(upstream.url, server={"drain": "0s"})
        async with Gateway(good, tmp_path_factory.mktemp("reload")) as gateway:
            served = Served(gateway, good)
            served.reader = await ask(gateway)
            yield served
            await served.reader.close()


def invalid(path: Path) -> None:
    path.write_text("routes: [{path: nowhere, api: chats}]\nserver: {drain: soon}\n")


def half_written(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[: len(text) * 2 // 3] + '"')


def empty(path: Path) -> None:
    path.write_text("")


def deleted(path: Path) -> None:
    path.unlink()


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 100)


def endless_nesting(path: Path) -> None:
    path.write_text("routes: " + "[" * 50_000)


def undefined_variable(path: Path) -> None:
    path.write_text("auth: {anonymous: true, query_param: '${NOBODY_SET_THIS}'}\n" + path.read_text())


@MODULE
@pytest.mark.parametrize(
    "harm", [invalid, half_written, empty, deleted, unreadable, not_text, endless_nesting, undefined_variable]
)
async def test_reload_of_a_bad_file_changes_nothing(served: Served, harm: Callable[[Path], None]) -> None:
    gateway, path = served.gateway, served.gateway.config_path
    harm(path)
    line = await served.refuse()
    assert line["level"] == "error"
    assert line["problems"], line
    assert await served.reload_metric() == 0
    assert served.reader is not None
    assert (await served.reader.next()) is not None
    async with await ask(gateway) as answer:
        assert answer.status == 200
    if path.is_dir():
        path.rmdir()
    gateway.write_config(served.good)
    await reload(gateway)
    assert await served.reload_metric() == 1
    assert await served.reader.next() is not None


@MODULE
async def test_many_reloads_at_once_are_one_after_the_other(served: Served) -> None:
    for _ in range(20):
        served.gateway.send_signal(signal.SIGHUP)
    await reload(served.gateway)
    assert await served.reload_metric() == 1
    assert served.reader is not None
    assert await served.reader.next() is not None


@MODULE
async def test_no_problem_names_a_secret(served: Served) -> None:
    assert "secret-of-" not in "\n".join(served.gateway.stdout)


# -- W4 ------------------------------------------------------------------------------------------------------------


async def test_reload_is_seen_by_new_requests_and_leaves_running_streams_alone(start_gateway: StartGateway) -> None:
    other: list[Step] = [*openai_answer("other"), Cut()]
    async with ScriptedUpstream(ENDLESS) as old, ScriptedUpstream(other) as new:
        gateway = await start_gateway(config(old.url, server={"drain": "0s"}))
        running = await ask(gateway)
        assert await running.next()
        gateway.write_config(
            config(
                new.url,
                auth={"keys": [key("new", "small")]},
                plans={"small": {"requests": "2/h"}},
                upstreams={
                    "main": {"dialect": "openai", "targets": [{"url": new.url}]},
                    "more": {"dialect": "openai", "targets": [{"url": new.url}]},
                },
                routes=[route("/chat"), route("/more", "more")],
            )
        )
        await reload(gateway)
        async with await ask(gateway) as removed:
            assert removed.status == 401
        for path in ("/chat", "/more"):
            async with await ask(gateway, path, "new") as answer:
                assert [m.json().get("text") async for m in answer.messages() if m.type == "token"] == ["other"]
        async with await ask(gateway, who="new") as limited:
            assert limited.status == 429
        assert len([await running.next() for _ in range(5)]) == 5
        assert (len(old.exchanges), len(new.exchanges)) == (1, 2)
        await running.close()


async def test_removed_key_resumes_nothing_and_removed_route_is_gone(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        gateway = await start_gateway(
            config(upstream.url, server={"drain": "0s"}, routes=[route("/chat"), route("/x")])
        )
        async with EventSource(f"{gateway.url}/chat?message=hi&token=secret-of-old", retry=0.01) as source:
            await source.until("token")
            gateway.write_config(config(upstream.url, auth={"keys": [key("new")]}))
            await reload(gateway)
            source.retry, source.current.parser.retry = 0.01, None
            await source.drop()
            with pytest.raises(EOFError):
                await source.next()
            assert source.current.status == 401
        async with await ask(gateway, "/x", "new") as gone:
            assert gone.status == 404


async def test_reload_changes_the_log_level_and_names_what_needs_a_restart(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        gateway = await start_gateway(config(upstream.url))
        before = gateway.config["server"]["listen"]
        gateway.write_config(config(upstream.url, server={"listen": "127.0.0.1:1"}, log={"level": "info"}))
        await reload(gateway)
        assert (await gateway.logged("needs_restart"))["setting"] == "server.listen"
        gateway.write_config(config(upstream.url, server={"listen": before}, log={"level": "error"}))
        await reload_quietly(gateway)
        lines = len(gateway.stdout)
        async with await request(f"{gateway.url}/nothing") as answer:
            assert answer.status == 404
        gateway.write_config(config(upstream.url, log={"level": "info"}))
        await reload(gateway)
        assert [line["event"] for line in gateway.log_lines()[lines:]] == ["reloaded"]  # back at its own address


async def reload_quietly(gateway: Gateway) -> None:
    """HUP to a configuration in which `reloaded` may not be logged any more: seen by what it leaves unsaid."""
    gateway.send_signal(signal.SIGHUP)
    for _ in range(100):
        lines = len(gateway.stdout)
        async with await request(f"{gateway.url}/nothing") as answer:
            assert answer.status == 404
        await asyncio.sleep(0.1)
        if len(gateway.stdout) == lines:
            return
    raise AssertionError("the log never fell silent")
