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
from tests.kit.sse_client import EventSource, Response, allow_connections, request
from tests.kit.upstream import (
    LAST_CHUNK,
    Cut,
    Exchange,
    Hang,
    Pause,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_answer,
    openai_delta,
    sse_head,
)
from tests.web.stage import eventually, text_of

MODULE = pytest.mark.asyncio(loop_scope="module")
DOTS: list[Step] = [Pause(0.1), openai_delta(".")]
ENDLESS: list[Step] = [sse_head(), openai_delta("first"), *DOTS * 300, Hang()]


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


def count(gateway: Gateway, event: str) -> int:
    """How many lines of an event were logged."""
    return sum(f'"event":"{event}"' in line for line in gateway.stdout)


RELOAD_METRIC = "gateway_config_last_reload_successful "

# -- W3 ------------------------------------------------------------------------------------------------------------


class Served:
    """A gateway with one endless stream, whose configuration is broken again and again."""

    def __init__(self, gateway: Gateway, good: dict[str, Any]) -> None:
        self.gateway = gateway
        self.good = good
        self.reader: Response | None = None

    async def refuse(self) -> dict[str, Any]:
        """HUP, and the one error line that it leads to."""
        before = count(self.gateway, "reload_failed")
        await self.gateway.reload(event="reload_failed")
        lines = self.gateway.log_lines("reload_failed")[before:]
        assert len(lines) == 1, lines
        return lines[0]

    async def reload_metric(self) -> float:
        async with await request(f"{self.gateway.admin}/metrics") as answer:
            lines = (await answer.body()).decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(RELOAD_METRIC))


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
    await gateway.reload()
    assert await served.reload_metric() == 1
    assert await served.reader.next() is not None


@MODULE
async def test_many_reloads_at_once_are_one_after_the_other(served: Served) -> None:
    for _ in range(20):
        served.gateway.send_signal(signal.SIGHUP)
    await served.gateway.reload()
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
        await gateway.reload()
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
            await gateway.reload()
            source.retry, source.current.parser.retry = 0.01, None
            await source.drop()
            with pytest.raises(EOFError):
                await source.next()
            assert source.current.status == 401
        async with await ask(gateway, "/x", "new") as gone:
            assert gone.status == 404


async def test_start_and_reload_log_each_warning_once(start_gateway: StartGateway) -> None:
    """W4. What is legal and cannot work is said when it is new, and not again at every reload."""

    def doubtful(*urls: str) -> dict[str, Any]:
        return config("") | {"upstreams": {"main": {"dialect": "openai", "targets": [{"url": url} for url in urls]}}}

    gateway = await start_gateway(doubtful("http://a.lan/v1/chat/completions"))
    first = await gateway.logged("config_warning")
    assert (first["level"], first["setting"]) == ("warning", "upstreams.main.targets[0].url")
    assert first["says"].startswith("is one call of an API")
    gateway.write_config(doubtful("http://a.lan/v1/chat/completions", "http://b.lan:443/v1"))
    await gateway.reload()
    settings = [line["setting"] for line in gateway.log_lines("config_warning")]
    assert settings == ["upstreams.main.targets[0].url", "upstreams.main.targets[1].url"]


async def test_reload_changes_the_log_level_and_names_what_needs_a_restart(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(ENDLESS) as upstream:
        gateway = await start_gateway(config(upstream.url))
        before = gateway.config["server"]["listen"]
        gateway.write_config(config(upstream.url, server={"listen": "127.0.0.1:1"}, log={"level": "info"}))
        await gateway.reload()
        assert (await gateway.logged("needs_restart"))["setting"] == "server.listen"
        gateway.write_config(config(upstream.url, server={"listen": before}, log={"level": "error"}))
        await reload_quietly(gateway)
        lines = len(gateway.stdout)
        async with await request(f"{gateway.url}/nothing") as answer:
            assert answer.status == 404
        gateway.write_config(config(upstream.url, log={"level": "info"}))
        await gateway.reload()
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


# -- many of both --------------------------------------------------------------------------------------------------

STREAMS = 200
RELOADS = 200
KINDS = 3
GROWTH = 3 << 20
"""Bytes that 160 reloads may leave behind. A configuration that is kept would cost some 50 KiB, 160 of them 8 MiB."""
SCRATCHES = (invalid, half_written, deleted, unreadable)


class Counting:
    """An upstream's script: counts as long as the test lasts, then ends well."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    def __call__(self, exchange: Exchange) -> list[Step]:
        if "new" in exchange.body.decode():
            return [*openai_answer("new"), Cut()]
        beats: list[Step] = [step for number in range(4) for step in (Pause(0.3), openai_delta(f"{number} "))]
        return [
            sse_head(),
            openai_delta("0 "),
            *beats,
            WaitFor(self.over),
            *openai_answer("end")[1:-1],
            LAST_CHUNK,
            Cut(),
        ]


WHOLE = "0 0 1 2 3 end"


def generation(url: str, number: int) -> dict[str, Any]:
    """The valid configuration of this number: another key, plan, route and upstream than the one before."""
    kind = number % KINDS
    return config(
        url,
        auth={"keys": [key("old"), key(f"k{kind}", f"p{kind}")]},
        plans={f"p{kind}": {"requests": f"{number + 1000}/h"}},
        stream={"resume": {"ttl": "1s"}},
        timeouts={"idle": "2m"},  # the streams say nothing as long as the reloads last
        upstreams={
            "main": {"dialect": "openai", "targets": [{"url": url}]},
            f"u{kind}": {
                "dialect": "openai",
                "targets": [{"url": url, "weight": number % 9 + 1}],
                "retries": number % 3,
            },
        },
        routes=[route("/chat"), route(f"/r{kind}", f"u{kind}")],
    )


async def check_in_force(gateway: Gateway, number: int) -> None:
    """New requests see the configuration of this number and nothing of the one before."""
    kind, before = number % KINDS, (number - 1) % KINDS
    headers = {"Authorization": f"Bearer secret-of-k{kind}"}
    url, body = f"{gateway.url}/r{kind}", {"message": "new"}
    async with await request(url, method="POST", body=body, headers=headers) as answer:
        assert (answer.status, f'"requests";q={number + 1000};' in answer.headers["ratelimit-policy"]) == (200, True)
        assert b'"new"' in await answer.body()
    async with await ask(gateway, f"/r{before}") as gone, await ask(gateway, who=f"k{before}") as removed:
        assert (gone.status, removed.status) == (404, 401)


async def scratch(served: Served, harm: Callable[[Path], None]) -> None:
    """The file is spoilt, which is said and changes nothing."""
    harm(served.gateway.config_path)
    await served.refuse()
    assert await served.reload_metric() == 0
    if served.gateway.config_path.is_dir():
        served.gateway.config_path.rmdir()


@pytest.mark.timeout(120)
async def test_two_hundred_reloads_touch_none_of_two_hundred_streams(start_gateway: StartGateway) -> None:
    """W3, W4: valid, invalid, half-written, deleted and unreadable files in turn, and no memory left behind."""
    allow_connections(2 * STREAMS)
    counting = Counting()
    async with ScriptedUpstream(counting) as upstream:
        gateway = await start_gateway(generation(upstream.url, 0))
        served, ledger = Served(gateway, {}), Ledger(gateway)
        listening = [asyncio.ensure_future(hear(gateway)) for _ in range(STREAMS)]
        await eventually(ledger.streams, lambda streams: len(streams) == STREAMS)
        sizes = []
        for number in range(1, RELOADS // 2 + 1):
            await scratch(served, SCRATCHES[number % len(SCRATCHES)])
            gateway.write_config(generation(upstream.url, number))
            await gateway.reload()
            assert await served.reload_metric() == 1
            await check_in_force(gateway, number)
            sizes.append(ledger.rss())
        counting.over.set()
        heard = await asyncio.gather(*listening)
    print(f"resident after {RELOADS // 5} reloads {sizes[RELOADS // 10] >> 10} KiB, after all {sizes[-1] >> 10} KiB")
    assert set(heard) == {(WHOLE, ("connected", "done"), 1)}
    assert sizes[-1] - sizes[RELOADS // 10] < GROWTH
    assert len(upstream.exchanges) == STREAMS + RELOADS // 2


async def hear(gateway: Gateway) -> tuple[str, tuple[str, str], int]:
    """The text of one stream, its first and last event, and how many ends it had."""
    async with await ask(gateway) as answer:
        messages = [message async for message in answer.messages()]
    ends = sum(message.type in ("done", "error") for message in messages)
    return text_of(messages), (messages[0].type, messages[-1].type), ends
