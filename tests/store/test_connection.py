"""Commands to a real Redis over a bad network: bounds, replies to whom they belong, pauses, the way back."""

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from gateway.store.access import CONNECT
from gateway.store.connection import (
    BEAT,
    MAX_PAUSE,
    PATIENCE,
    PAUSE,
    StoreAwayError,
    StoreRefusedError,
    _State,
)
from gateway.store.layout import Script
from tests.kit.program import free_port
from tests.kit.redis import Redis
from tests.kit.tcp_proxy import TCPProxy
from tests.store.serving import Stage, connected

PATIENT = 30.0
"""Seconds that a test waits for what has to happen."""


@pytest.fixture
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    async with Redis(tmp_path_factory.mktemp("redis") / "r") as redis:
        yield redis


@pytest.fixture
async def network(redis: Redis) -> AsyncIterator[TCPProxy]:
    async with TCPProxy(redis.port) as network:
        yield network


async def back(stage: Stage) -> None:
    """Returns when the store is up the next time."""
    up = asyncio.Event()

    async def told() -> None:
        up.set()

    stage.connection.when_up(told)
    async with asyncio.timeout(PATIENT):
        await up.wait()


async def away(stage: Stage) -> None:
    """Returns when the store counts as away."""
    async with asyncio.timeout(PATIENT):
        while stage.connection.up:  # noqa: ASYNC110 - a beat finds out, which nobody can wait for
            await asyncio.sleep(0.02)


# -- commands ----------------------------------------------------------------------------------------------------------


async def test_call_replies_as_redis_py_does(redis: Redis) -> None:
    async with connected(redis.url) as stage:
        call = stage.connection.call
        assert await call("XADD", "s", "1-1", "f", b"\xff") == b"1-1"
        assert await call("XRANGE", "s", "-", "+") == [(b"1-1", {b"f": b"\xff"})]
        assert await call("HSET", "h", "a", 1) == 1
        assert await call("HGETALL", "h") == {b"a": b"1"}
        assert await call("GET", "none") is None
        assert stage.count("gateway_store_command_duration_seconds_count", command="xadd") == 1
        before = stage.count("gateway_store_command_duration_seconds_count", command="other")
        await call("LOLWUT")
        assert stage.count("gateway_store_command_duration_seconds_count", command="other") == before + 1


async def test_refused_command_is_told_and_the_store_stays(redis: Redis) -> None:
    async with connected(redis.url) as stage:
        call = stage.connection.call
        await call("XADD", "s", "5-1", "f", "1")
        with pytest.raises(StoreRefusedError, match="equal or smaller"):
            await call("XADD", "s", "5-1", "f", "2")
        with pytest.raises(StoreRefusedError, match="WRONGTYPE"):
            await call("GET", "s")
        with pytest.raises(StoreRefusedError, match="no such thing"):
            await stage.connection.run(Script("return redis.error_reply('ERR no such thing')"), [], [])
        assert stage.connection.up
        assert stage.lines == [line for line in stage.lines if line["event"] == "store_up"]


async def test_script_runs_also_where_redis_has_forgotten_it(redis: Redis) -> None:
    script = Script("return {KEYS[1], ARGV[1]}")
    async with connected(redis.url) as stage:
        for _ in range(2):
            assert await stage.connection.run(script, ["k"], [7]) == [b"k", b"7"]
            await redis.ask("SCRIPT", "FLUSH")


@pytest.mark.alone
async def test_every_caller_gets_its_own_reply_whoever_else_is_cancelled(
    redis: Redis, network: TCPProxy, chance: random.Random
) -> None:
    """R3: 1,000 callers at once over a network that is slow by 200 ms; half of them do not wait for the end."""
    async with connected(redis.url_by(network.port)) as stage:
        network.down.latency = 0.2
        network.down.slice = 700

        async def echo(number: int) -> bool:
            return bool(await stage.connection.call("ECHO", f"reply {number}", within=PATIENT) == b"reply %d" % number)

        tasks = [asyncio.create_task(echo(number)) for number in range(1000)]
        for task in chance.sample(tasks, 500):
            await asyncio.sleep(0.0005)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kept = [result for result in results if not isinstance(result, asyncio.CancelledError)]
        assert len(kept) >= 500
        assert all(result is True for result in kept)
        assert network.connections == 1, "a cancelled command costs no connection"
        # What comes after them is not answered by what is still under way.
        assert await echo(1001)


async def test_commands_in_a_hole_are_given_up_and_their_late_replies_reach_nobody(
    redis: Redis, network: TCPProxy
) -> None:
    async with connected(redis.url_by(network.port)) as stage:
        call = stage.connection.call
        network.hole()
        calls = [asyncio.create_task(call("ECHO", f"late {number}")) for number in range(100)]
        late = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in late} == {StoreAwayError}
        assert stage.said("store_away")[0] == "Redis does not answer in time"
        with pytest.raises(StoreAwayError, match="the store is away"):
            await call("ECHO", "not sent")
        network.heal()
        await back(stage)
        assert await asyncio.gather(*(call("ECHO", str(number)) for number in range(100))) == [
            str(number).encode() for number in range(100)
        ]
        assert stage.count("gateway_store_up") == 1
        assert stage.count("gateway_store_errors_total", kind="timeout") >= 1


async def test_commands_on_a_connection_that_has_just_been_reset_are_given_up_at_once(
    redis: Redis, network: TCPProxy
) -> None:
    async with connected(redis.url_by(network.port)) as stage:
        network.reset()  # in the next turn of the loop, just before these are sent
        calls = [asyncio.create_task(stage.connection.call("ECHO", "x", within=PATIENT)) for _ in range(3)]
        async with asyncio.timeout(5):
            lost = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in lost} == {StoreAwayError}
        await back(stage)


async def test_commands_that_wait_have_a_bound(
    redis: Redis, network: TCPProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.connection.MAX_WAITING", 50)
    async with connected(redis.url_by(network.port)) as stage:
        network.hole()
        tasks = [asyncio.create_task(stage.connection.call("GET", "k", within=PATIENT)) for _ in range(50)]
        await asyncio.sleep(0)
        with pytest.raises(StoreAwayError, match="too many"):
            await stage.connection.call("GET", "k")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_busy_loop_does_not_lose_a_reply_that_is_there(redis: Redis) -> None:
    async with connected(redis.url) as stage:
        task = asyncio.create_task(stage.connection.call("ECHO", "there"))
        await asyncio.sleep(0)
        end = asyncio.get_running_loop().time() + PATIENCE + 0.1
        while asyncio.get_running_loop().time() < end:
            pass  # nothing else can run meanwhile, as when a large request is parsed
        assert await task == b"there"
        assert stage.connection.up


# -- away and back -----------------------------------------------------------------------------------------------------


async def test_redis_that_comes_late_is_found_without_a_restart(redis: Redis) -> None:
    """R1: the pause and the time to connect are less than two seconds together."""
    await redis.stop()
    async with connected(redis.url) as stage:
        assert not stage.connection.up
        assert stage.said("store_away") == ["nothing listens at the address of store.url"]
        await redis.start()
        await back(stage)
        assert stage.connection.says == ""
        assert PAUSE + CONNECT < 2


async def test_lease_is_written_at_each_beat_expires_and_is_given_back(redis: Redis) -> None:
    async with connected(redis.url) as stage:
        lease = stage.connection.layout.lease(stage.connection.node)
        assert 0 < await redis.ask("PTTL", lease) <= 3000
        beat = asyncio.Event()

        async def beating() -> None:
            beat.set()

        stage.connection.when_beating(beating)
        await redis.ask("DEL", lease)
        async with asyncio.timeout(PATIENT):
            await beat.wait()
        assert await redis.keys() == [lease]
    assert await redis.keys() == []


async def test_memory_of_redis_is_looked_at_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.connection.LOOK", 1)
    async with connected(redis.url) as stage:
        assert stage.count("gateway_store_memory_bytes") > 0
        assert stage.count("gateway_store_memory_limit_bytes") == 0
        await redis.ask("CONFIG", "SET", "maxmemory", "64mb", "maxmemory-policy", "allkeys-lru")
        async with asyncio.timeout(PATIENT):
            while not stage.said("store_warning"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert "allkeys-lru" in stage.connection.says
        assert stage.count("gateway_store_memory_limit_bytes") == 64 << 20
        assert stage.count("gateway_store_command_duration_seconds_count", command="info") >= 1


async def test_long_work_at_the_return_does_not_hold_the_lease_up(redis: Redis) -> None:
    async with connected(redis.url) as stage:
        connection, released = stage.connection, asyncio.Event()
        connection.when_up(released.wait)  # type: ignore[arg-type]
        await redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await away(stage)
        async with asyncio.timeout(PATIENT):
            while not connection.up:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        before = connection.last
        async with asyncio.timeout(PATIENT):
            while connection.last == before:  # noqa: ASYNC110
                await asyncio.sleep(BEAT / 10)
        released.set()


async def test_master_that_becomes_a_replica_is_left_and_found_again(redis: Redis) -> None:
    """R4: read-only."""
    async with connected(redis.url) as stage:
        await redis.ask("REPLICAOF", "127.0.0.1", str(free_port()))
        with pytest.raises(StoreAwayError, match="Redis is a replica"):
            await stage.connection.call("SET", "k", "1")
        await redis.ask("REPLICAOF", "NO", "ONE")
        await back(stage)
        assert stage.said("store_away") == [
            "Redis is a replica and takes no writes; store.url has to lead to the master"
        ]
        assert stage.count("gateway_store_errors_total", kind="read_only") >= 1


async def test_full_redis_is_away_until_there_is_room(redis: Redis) -> None:
    """R4: OOM command not allowed, as a command and in a script."""
    script = Script("return redis.call('SET', KEYS[1], '1')")
    async with connected(redis.url) as stage:
        for attempt in (stage.connection.call("SET", "k", "1"), stage.connection.run(script, ["k"], [])):
            await redis.ask("CONFIG", "SET", "maxmemory", "1mb")
            with pytest.raises(StoreAwayError, match="Redis has no room left"):
                await attempt
            await redis.ask("CONFIG", "SET", "maxmemory", "0")
            await back(stage)


async def test_user_who_loses_a_right_is_told(redis: Redis) -> None:
    await redis.ask("ACL", "SETUSER", "g", "on", "nopass", "~*", "+@all")
    script = Script("return redis.call('ZCARD', KEYS[1])")
    async with connected(f"redis://g@127.0.0.1:{redis.port}") as stage:
        await redis.ask("ACL", "SETUSER", "g", "-zcard")
        with pytest.raises(StoreAwayError, match="may not use all commands"):
            await stage.connection.run(script, ["k"], [])
        async with asyncio.timeout(PATIENT):
            while len(stage.said("store_away")) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert stage.said("store_away")[1] == "the user of store.url may not use these commands: zcard"
        await redis.ask("ACL", "SETUSER", "g", "+@all")
        await back(stage)


# -- no storm ----------------------------------------------------------------------------------------------------------


async def test_failing_connections_keep_a_pause() -> None:
    """However many commands fail, and however fast, each connection comes after a pause, and one line says why."""
    now, made = asyncio.get_running_loop().time, list[float]()
    four = asyncio.Event()

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(now())
        writer.close()
        if len(made) == 4:
            four.set()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with connected(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as stage, asyncio.timeout(PATIENT):
        while not four.is_set():
            with pytest.raises(StoreAwayError):
                await stage.connection.call("GET", "k")
            await asyncio.sleep(0.001)
        assert len(stage.said("store_away")) == 1
    server.close()
    await server.wait_closed()
    gaps = [later - earlier for earlier, later in pairwise(made)]
    assert min(gaps) >= PAUSE / 2 * 0.9


async def test_store_that_is_lost_again_and_again_is_asked_less_often(redis: Redis, network: TCPProxy) -> None:
    async with connected(redis.url_by(network.port)) as stage:
        now, ups = asyncio.get_running_loop().time, list[float]()

        async def fail() -> None:
            ups.append(now())
            raise StoreAwayError("what is written at the return is refused")

        stage.connection.when_up(fail)
        network.cut()
        async with asyncio.timeout(PATIENT):
            while len(ups) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert ups[1] - ups[0] >= PAUSE * 0.9
        assert ups[2] - ups[1] >= 2 * PAUSE * 0.9
        assert network.connections == 4


def test_pause_grows_for_losses_in_a_row_and_has_a_bound() -> None:
    state = _State()
    pauses = []
    for second in range(12):
        state.since = float(second)
        state.lost(second + 0.5)
        pauses.append(state.pause())
    assert all(PAUSE <= pause <= MAX_PAUSE for pause in pauses)
    assert pauses[-1] >= MAX_PAUSE / 2
    assert state.pause() <= PAUSE, "only the first pause after a loss is long"
    state.since = 100.0
    state.lost(200.0)
    assert state.pause() <= PAUSE


async def test_bug_in_what_is_told_does_not_end_the_beat(redis: Redis) -> None:
    async with connected(redis.url) as stage:
        beats = asyncio.Event()

        async def wrong() -> None:
            raise ZeroDivisionError

        stage.connection.when_beating(wrong)
        async with asyncio.timeout(PATIENT):
            while not any(line["event"] == "store_told_failed" for line in stage.lines):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        stage.connection._beating.clear()
        stage.connection.when_up(lambda: _set(beats))
        async with asyncio.timeout(PATIENT):
            await beats.wait()


async def _set(event: asyncio.Event) -> None:
    event.set()
