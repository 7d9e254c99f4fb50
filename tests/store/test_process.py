"""The real program with a store: it serves without Redis, says how it stands, and shows nothing secret."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.kit.program import ROOT, Gateway
from tests.kit.redis import Redis, nodes

PASSWORD = "pw-4711-of-the-store"
SECRET = "0123456789abcdef-of-the-store"
CONFIG = {
    "upstreams": {"demo": {"dialect": "openai", "targets": [{"url": "demo:"}]}},
    "routes": [{"path": "/chat", "api": "chat", "upstream": "demo"}],
    "auth": {"anonymous": True},
}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


async def ready(client: aiohttp.ClientSession, gateway: Gateway) -> tuple[int, str]:
    async with client.get(f"{gateway.admin}/readyz") as answer:
        return answer.status, await answer.text()


async def metrics(client: aiohttp.ClientSession, gateway: Gateway) -> str:
    async with client.get(f"{gateway.admin}/metrics") as answer:
        return await answer.text()


async def test_gateways_serve_without_redis_and_say_how_it_stands(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    """R1: down at the start, and again later; one gateway that requires it, and one that does not."""
    redis = Redis(tmp_path / "redis", password=PASSWORD)
    config = CONFIG
    store = {"url": redis.url, "secret": SECRET}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        nodes(1, config, tmp_path / "a", store) as (easy,),
        nodes(1, config, tmp_path / "b", store | {"required": True, "prefix": "other"}) as (strict,),
    ):
        why = "store away: nothing listens at the address of store.url\n"
        assert await ready(client, easy) == (200, f"ok, but {why}")
        assert await ready(client, strict) == (503, why)
        assert "\ngateway_store_up 0.0\n" in await metrics(client, easy)
        async with client.get(f"{easy.url}/chat?message=hi") as answer:
            assert answer.status == 200
            assert b"data: " in await answer.content.readuntil(b"\n\n")
        async with redis:
            for gateway in (easy, strict):
                await gateway.logged("store_up")
                assert await ready(client, gateway) == (200, "ok\n")
            assert [key.partition(":")[0] for key in await redis.keys("*:n:*")] == ["gateway", "other"]
            assert "\ngateway_store_up 1.0\n" in await metrics(client, easy)
            await redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            await redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await easy.logged("store_warning")
            doubt = "Redis may throw away what streams and chats need (maxmemory-policy allkeys-lru); set noeviction"
            assert await ready(client, easy) == (200, f"ok\nstore: {doubt}\n")
            changed = config | {"store": store | {"prefix": "changed"}}
            await easy.reload(changed)
            assert [line["setting"] for line in easy.log_lines("needs_restart")] == ["store"]
            assert await redis.keys("changed:*") == []
        said = "\n".join([*easy.stdout, *strict.stdout, await metrics(client, easy)])
        assert PASSWORD not in said
        assert SECRET not in said


async def test_lease_is_gone_when_a_gateway_has_ended(tmp_path: Path) -> None:
    async with Redis(tmp_path / "redis") as redis:
        async with nodes(2, CONFIG, tmp_path, redis.url):
            assert len(await redis.keys("gateway:n:*")) == 2
        assert await redis.keys() == []


def test_memory_needs_no_library_and_makes_no_series(tmp_path: Path) -> None:
    program = """
import asyncio, sys
sys.modules["redis"] = sys.modules["hiredis"] = None
from gateway.app import make_app
from gateway.config import load
async def main():
    app = await make_app(load("config.yaml"))
    assert app.gateway.shared is None
    assert b"gateway_store" not in app.gateway.metrics.render()
    await app.close()
asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("gateway.store")]
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
