"""The Redis of the tests is a real one: it keeps what it is told to keep, hangs, dies and returns."""

import asyncio
from pathlib import Path

import pytest

from tests.kit.redis import Redis, RedisError, Sentinel, nodes

CONFIG = {
    "upstreams": {"demo": {"dialect": "openai", "targets": [{"url": "demo:"}]}},
    "routes": [{"path": "/c", "api": "openai", "upstream": "demo"}],
    "auth": {"anonymous": True},
}


async def test_redis_returns_at_its_port_with_its_data_or_without(tmp_path: Path) -> None:
    async with Redis(tmp_path / "r", appendonly="yes", maxmemory="50mb") as redis:
        port = redis.port
        await redis.ask("SET", "a", "1")
        assert await redis.ask("CONFIG", "GET", "maxmemory") == {"maxmemory": str(50 << 20)}
        await redis.kill()
        await redis.start()
        assert (redis.port, await redis.keys()) == (port, ["a"])
        await redis.stop()
        await redis.start(empty=True)
        assert await redis.keys() == []


async def test_paused_redis_answers_when_it_is_resumed(tmp_path: Path) -> None:
    async with Redis(tmp_path / "r") as redis:
        assert await redis.ask("PING") is True
        redis.pause()
        answer = asyncio.create_task(redis.ask("PING"))
        done, _ = await asyncio.wait([answer], timeout=0.05)
        assert not done
        redis.resume()
        assert await answer is True
        redis.pause()  # leaving the block ends it none the less


async def test_redis_with_user_and_tls_refuses_others_and_lets_the_kit_in(tmp_path: Path) -> None:
    async with Redis(tmp_path / "r", user="gw", password="pa:ss/w@rd", rules="~gateway:* +@all", tls=True) as redis:
        assert redis.url.startswith("rediss://gw:pa%3Ass%2Fw%40rd@127.0.0.1:")
        assert await redis.ask("ACL", "WHOAMI") == "test-kit"
        with pytest.raises(RedisError, match="invalid username-password"):
            await redis.ask("AUTH", "default", "")


async def test_sentinel_names_another_master_when_the_first_dies(tmp_path: Path) -> None:
    async with (
        Redis(tmp_path / "a") as first,
        Redis(
            tmp_path / "b",
            replicaof=f"127.0.0.1 {first.port}",
            masteruser="test-kit",
            masterauth="password-of-the-test-kit",
        ) as second,
        Sentinel(tmp_path / "s", first) as sentinel,
    ):
        await sentinel.ask("SENTINEL", "SET", "main", "down-after-milliseconds", "200")
        await sentinel.knows(1)
        await first.kill()
        await sentinel.said(lambda line: "+switch-master" in line, "that there is another master")
        assert await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main") == ["127.0.0.1", str(second.port)]


async def test_nodes_are_gateways_with_one_configuration(tmp_path: Path) -> None:
    async with nodes(2, CONFIG, tmp_path, "memory") as (one, other):
        assert one.url != other.url
        assert one.config["routes"] == other.config["routes"]
        assert one.running
        assert other.running
