"""W8: workers are killed, their supervisor is, and all of them are told to end."""

import asyncio
import os
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.faults.workers import Workers, ended, home
from tests.kit.program import Gateway, curl, free_ports
from tests.kit.sse_client import EventSource, Message, request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Cut,
    Exchange,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_delta,
    sse_head,
)

WORKERS = 3
READERS = 24


def config(upstream: ScriptedUpstream, **server: Any) -> dict[str, Any]:
    workers = server.get("workers", WORKERS)
    admin = f"127.0.0.1:{free_ports(workers)}"
    return {
        "server": {"workers": workers, "admin_listen": admin, "drain": "60s", "demo_page": False} | server,
        "auth": {"anonymous": True},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "stream": {"retry": "100ms"},
        "upstreams": {"main": {"dialect": "openai", "targets": [{"url": upstream.url}]}},
        "routes": [{"path": "/chat", "api": "chat", "upstream": "main", "history": None}],
    }


class Answers:
    """An upstream's script: every answer begins at once and ends after `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    def __call__(self, exchange: Exchange) -> list[Step]:
        end: list[Step] = [openai_delta("two"), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK, Cut()]
        return [sse_head(), openai_delta("one"), WaitFor(self.go), *end]


class Reader:
    """A browser that reads one stream."""

    def __init__(self, gateway: Gateway) -> None:
        self.source = EventSource(f"{gateway.url}/chat?message=hi")
        self.messages: list[Message] = []

    async def begin(self) -> None:
        self.messages += await self.source.until("token", timeout=20)

    async def finish(self) -> None:
        self.messages += await self.source.until("done", "error", timeout=20)

    async def stay(self) -> None:
        """Come back until told not to."""
        with pytest.raises(EOFError):
            await self.source.next()
        assert self.source.current.status == 204

    @property
    def stream_id(self) -> str:
        return self.source.connections[0].headers["x-stream-id"]

    @property
    def text(self) -> str:
        return "".join(message.json()["text"] for message in self.messages if message.type == "token")

    @property
    def end(self) -> Any:
        assert [message.type in ("done", "error") for message in self.messages].index(True) == len(self.messages) - 1
        return self.messages[-1].json().get("code", "done")


async def read(gateway: Gateway, count: int) -> list[Reader]:
    readers = [Reader(gateway) for _ in range(count)]
    await asyncio.gather(*(reader.begin() for reader in readers))
    return readers


async def finish(readers: list[Reader]) -> list[str]:
    await asyncio.gather(*(reader.finish() for reader in readers))
    for reader in readers:
        await reader.source.close()
    return [reader.end for reader in readers]


async def started(
    start_gateway: StartGateway, upstream: ScriptedUpstream, env: Mapping[str, str] | None = None, **server: Any
) -> Workers:
    settings = config(upstream, **server)
    workers = Workers(await start_gateway(settings, env=env), settings["server"]["workers"])
    await workers.served()
    return workers


async def test_worker_that_is_killed_takes_only_its_own_streams_along(start_gateway: StartGateway) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        readers = await read(workers.gateway, READERS)
        victim = home(readers[0].stream_id)
        lost = [reader for reader in readers if home(reader.stream_id) == victim]
        others = [reader for reader in readers if home(reader.stream_id) != victim]
        assert others, "all connections went to one worker"
        workers.kill(victim)
        assert set(await finish(lost)) == {"cursor_expired"}  # one clear error
        await asyncio.gather(*(reader.stay() for reader in await_again(lost)))
        assert len(upstream.exchanges) == READERS  # and no second answer
        await workers.served({victim: 2})
        answers.go.set()
        assert set(await finish(others)) == {"done"}
        assert {reader.text for reader in others} == {"onetwo"}
        assert {len(reader.source.connections) for reader in others} == {1}
        assert set(await finish(await read(workers.gateway, 6))) == {"done"}  # they can start anew
        died = await workers.gateway.logged("worker_died", worker=victim, status=-signal.SIGKILL, restart_in_s=0.1)
        assert died["lived_s"] >= 0
        assert (await workers.scrape(victim)).total("gateway_worker_restarts_total") == 1
        assert await workers.total("gateway_worker_restarts_total") == 1


async def test_principal_is_revoked_at_all_workers(start_gateway: StartGateway) -> None:
    """Whichever worker's admin listener is asked. One that was killed has nothing to end."""
    async with ScriptedUpstream(Answers()) as upstream:
        settings = config(upstream) | {"auth": {"anonymous": True, "tickets": {"ttl": "1h"}}}
        workers = Workers(await start_gateway(settings), WORKERS)
        await workers.served()
        url, admin = f"{workers.gateway.url}/tickets", workers.admin(1)
        readers = await read(workers.gateway, READERS)
        assert {home(reader.stream_id) for reader in readers} == set(range(WORKERS))
        for _ in range(4):
            async with await request(url, method="POST") as answer:
                assert answer.status == 200
        async with await request(f"{admin}/principals/addr:127.0.0.1", method="DELETE") as answer:
            assert await answer.json() == {"principal": "addr:127.0.0.1", "streams": READERS, "tickets": 4}
        assert set(await finish(readers)) == {"auth_expired"}
        await workers.logged_by_all("principal_revoked", principal="addr:127.0.0.1")
        workers.kill(2)  # what it had ended with it
        await workers.gateway.logged("worker_died", worker=2)
        async with await request(f"{admin}/principals/key:web", method="DELETE") as answer:
            assert await answer.json() == {"principal": "key:web", "streams": 0, "tickets": 0}


def await_again(readers: list[Reader]) -> list[Reader]:
    """The readers, as a page that does not close its EventSource at an error leaves them."""
    for reader in readers:
        last = reader.source.last_event_id
        reader.source = EventSource(reader.source.url, last_event_id=last)
    return readers


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_reader_finds_its_stream_whichever_worker_it_lands_on(
    start_gateway: StartGateway, tmp_path: Path, loop: str
) -> None:
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("raise ImportError")
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream, {"PYTHONPATH": str(tmp_path)})
        readers = await read(workers.gateway, READERS)
        for _ in range(3):
            for reader in readers:
                reader.source.retry, reader.source.current.parser.retry = 0.01, None
                await reader.source.drop()
            await asyncio.gather(*(reader.source.open() for reader in readers))
            assert {reader.source.current.headers["x-stream-id"] == reader.stream_id for reader in readers} == {True}
        assert await workers.total("gateway_resumes_total", result="resumed") == 3 * READERS
        answers.go.set()
        assert set(await finish(readers)) == {"done"}
        assert {reader.text for reader in readers} == {"onetwo"}
        assert len(upstream.exchanges) == READERS


async def test_reader_that_posts_finds_its_stream_too(start_gateway: StartGateway) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        [reader] = await read(workers.gateway, 1)
        url, cursor = f"{workers.gateway.url}/chat", reader.source.last_event_id
        body = {"message": "x" * 500_000}
        others = [await request(url, method="POST", body=body, last_event_id=cursor) for _ in range(8)]
        answers.go.set()
        for other in others:
            assert [message.type async for message in other.messages()] == ["connected", "token", "done"]
            await other.close()
        assert await finish([reader]) == ["done"]
        assert len(upstream.exchanges) == 1


async def test_reader_that_waits_to_be_asked_for_its_body_finds_its_stream_too(start_gateway: StartGateway) -> None:
    answers = Answers()
    answers.go.set()
    waits = ["-H", "Expect: 100-continue", "--expect100-timeout", "60", "-H", "Content-Type: application/json"]
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        [reader] = await read(workers.gateway, 1)
        cursor = f"Last-Event-ID: {reader.stream_id}.0.0"
        for _ in range(8):
            lines = await curl(f"{workers.gateway.url}/chat", *waits, "-H", cursor, "-d", '{"message": "hi"}')
            assert "event: done" in [line for _, line in lines]
        assert await finish([reader]) == ["done"]
        assert len(upstream.exchanges) == 1


async def test_stream_is_read_and_stopped_by_its_name_through_any_worker(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        workers = await started(start_gateway, upstream)
        [reader] = await read(workers.gateway, 1)
        url = f"{workers.gateway.url}/streams/{reader.stream_id}"
        others = [await request(url) for _ in range(8)]
        for method, path in [("POST", "/stop")] * 4 + [("DELETE", "")] * 4:
            async with await request(url + path, method=method, body={} if path else None) as answer:
                assert (answer.status, await answer.json()) == (200, {"id": reader.stream_id, "state": "stopped"})
        for other in others:
            assert [message.type async for message in other.messages()][-1] == "done"
            await other.close()
        unknown = f"{workers.gateway.url}/streams/{{}}{reader.stream_id[1:]}"
        for first in "ABCD":
            if first != reader.stream_id[0]:
                async with await request(unknown.format(first)) as answer:
                    assert (answer.status, (await answer.json())["code"]) == (404, "cursor_expired")
        await reader.source.close()


async def test_reader_of_another_workers_stream_leaves_and_is_noticed_there(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        workers = await started(start_gateway, upstream)
        [reader] = await read(workers.gateway, 1)
        others = [await request(f"{workers.gateway.url}/streams/{reader.stream_id}") for _ in range(8)]
        assert await workers.total("gateway_connections_active") == 9
        for other in others:
            await other.close()
        await workers.come_to(1, "gateway_connections_active")
        await reader.source.close()
        await workers.come_to(0, "gateway_connections_active")


async def test_workers_that_are_killed_again_and_again_come_back_ever_later(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        workers = await started(start_gateway, upstream, workers=4)
        supervisor = Path(f"/proc/{workers.gateway.pid}/fd")
        before = len(os.listdir(supervisor))
        for times in range(2, 7):
            for number in range(4):
                workers.kill(number)
            await workers.served(dict.fromkeys(range(4), times))
            assert len(workers.pids) == 4  # and none that is dead
        assert len(os.listdir(supervisor)) == before
        delays = [line["restart_in_s"] for line in workers.gateway.log_lines("worker_died") if line["worker"] == 0]
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6]
        assert await workers.total("gateway_worker_restarts_total") == 20
        readers = await read(workers.gateway, 4)
        for reader in readers:
            await reader.source.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_all_workers_drain_when_the_supervisor_is_told_to_end(
    start_gateway: StartGateway, number: signal.Signals
) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        readers = await read(workers.gateway, READERS)
        workers.gateway.send_signal(number)
        await workers.logged_by_all("draining")
        answers.go.set()
        assert set(await finish(readers)) == {"done"}
        assert await workers.gateway.wait() == 0
        await workers.logged_by_all("drained", ended=0)


async def test_signal_to_the_whole_group_drains_like_one_to_the_supervisor(start_gateway: StartGateway) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        readers = await read(workers.gateway, READERS)
        for pid in [*workers.pids, workers.gateway.pid, *workers.pids]:
            os.kill(pid, signal.SIGTERM)
        await workers.logged_by_all("draining")
        answers.go.set()
        assert set(await finish(readers)) == {"done"}
        assert await workers.gateway.wait() == 0


async def test_second_signal_ends_all_workers_at_once(start_gateway: StartGateway) -> None:
    async with ScriptedUpstream(Answers()) as upstream:
        workers = await started(start_gateway, upstream)
        readers = await read(workers.gateway, READERS)
        workers.gateway.send_signal(signal.SIGTERM)
        await workers.logged_by_all("draining")
        began = asyncio.get_running_loop().time()
        workers.gateway.send_signal(signal.SIGTERM)
        assert set(await finish(readers)) == {"drained"}
        assert await workers.gateway.wait() == 0
        assert asyncio.get_running_loop().time() - began < 10  # 2 where the machine has nothing else to do


async def test_worker_that_is_killed_while_all_drain_is_not_started_again(start_gateway: StartGateway) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        readers = await read(workers.gateway, READERS)
        workers.gateway.send_signal(signal.SIGTERM)
        await workers.logged_by_all("draining")
        workers.kill(home(readers[0].stream_id))
        answers.go.set()
        assert await workers.gateway.wait() == 1
        assert len(workers.gateway.log_lines("serving")) == WORKERS
        for reader in readers:
            await reader.source.close()


async def test_worker_that_died_before_the_end_was_asked_for_does_not_spoil_it(start_gateway: StartGateway) -> None:
    """Both signals lie before the supervisor at once, and the system hands out TERM first."""
    async with ScriptedUpstream(Answers()) as upstream:
        workers = await started(start_gateway, upstream)
        workers.gateway.send_signal(signal.SIGSTOP)
        victim = workers.pid(1)
        workers.kill(1)
        await ended(victim)
        workers.gateway.send_signal(signal.SIGTERM)
        workers.gateway.send_signal(signal.SIGCONT)
        assert await workers.gateway.wait() == 0
        assert len(workers.gateway.log_lines("serving")) == WORKERS


NO_ROOM = """
import itertools, os
fork, times = os.fork, itertools.count(1)
def sometimes():
    if next(times) == 4:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = sometimes
"""


async def test_worker_that_cannot_be_forked_comes_back_when_there_is_room(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_ROOM)
    async with ScriptedUpstream(Answers()) as upstream:
        workers = await started(start_gateway, upstream, {"PYTHONPATH": str(tmp_path)})
        workers.kill(2)
        await workers.served({2: 2})
        first, second = workers.gateway.log_lines("worker_died")
        assert (first["status"], second["reason"]) == (-9, "[Errno 11] Resource temporarily unavailable")
        assert len(workers.gateway.log_lines("serving")) == WORKERS + 1


async def test_worker_that_is_told_to_end_drains_and_comes_back(start_gateway: StartGateway) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        readers = await read(workers.gateway, READERS)
        number = home(readers[0].stream_id)
        os.kill(workers.pid(number), signal.SIGTERM)
        await workers.gateway.logged("draining", worker=number)
        answers.go.set()
        assert set(await finish(readers)) == {"done"}
        await workers.served({number: 2})
        assert (await workers.gateway.logged("worker_died"))["status"] == 0
        assert len(workers.gateway.log_lines("draining")) == 1


async def test_reload_reaches_every_worker_and_the_last_good_file_outlives_a_death(start_gateway: StartGateway) -> None:
    answers = Answers()
    answers.go.set()
    async with ScriptedUpstream(answers) as upstream:
        workers = await started(start_gateway, upstream)
        good = workers.gateway.config | {"routes": [workers.gateway.config["routes"][0] | {"path": "/new"}]}
        workers.gateway.write_config(good | {"server": {"workers": 2}})
        workers.gateway.send_signal(signal.SIGHUP)
        await workers.logged_by_all("needs_restart", setting="server.workers")
        await workers.logged_by_all("reloaded")
        workers.gateway.write_config("no: [config")
        workers.gateway.send_signal(signal.SIGHUP)
        await workers.logged_by_all("reload_failed")
        victim = random.randrange(WORKERS)
        workers.kill(victim)
        await workers.served({victim: 2})
        for _ in range(6):
            async with await request(f"{workers.gateway.url}/new", method="POST", body={"message": "hi"}) as answer:
                assert (answer.status, [message.type async for message in answer.messages()][-1]) == (200, "done")


async def test_workers_whose_supervisor_is_killed_let_streams_end_and_leave_the_port(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    answers = Answers()
    async with ScriptedUpstream(answers) as upstream:
        orphaned = Workers(Gateway(config(upstream), tmp_path), WORKERS)
        await orphaned.gateway.start()
        await orphaned.served()
        readers = await read(orphaned.gateway, READERS)
        ends = [asyncio.create_task(ended(pid)) for pid in orphaned.pids]
        await asyncio.sleep(0)  # they look at the processes before those can go
        orphaned.gateway.send_signal(signal.SIGKILL)
        await orphaned.logged_by_all("supervisor_gone")
        await orphaned.logged_by_all("draining")
        await start_gateway(orphaned.gateway.config)  # which binds the same ports
        answers.go.set()
        assert set(await finish(readers)) == {"done"}
        await orphaned.gateway.wait()
        async with asyncio.timeout(20):
            await asyncio.gather(*ends)
