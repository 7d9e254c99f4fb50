"""Every way to a real Redis, and what an operator is told where there is none."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as library
from redis.exceptions import RedisError

from gateway.config import Store
from gateway.store.access import Access
from gateway.store.health import NAMES
from gateway.store.inquiry import inquire
from gateway.store.trouble import of
from tests.kit.program import ROOT, free_port, throwaway_certificate
from tests.kit.redis import KIT_PASSWORD, KIT_USER, Redis, Sentinel
from tests.store.serving import Stage, connected
from tests.web.stage import eventually

PASSWORD = "p/w:?#@%-not-to-be-printed"
RULES = re.findall(r"^ +ACL SETUSER gateway on >\S+ (.+)$", (ROOT / "docs/redis.md").read_text("utf-8"), re.MULTILINE)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    """One with the user that the documents tell to make."""
    async with Redis(tmp_path / "r", user="gateway", password=PASSWORD, rules=RULES[0], unix=True) as redis:
        yield redis


def unprinted(stage: Stage) -> bool:
    said = f"{stage.lines} {stage.connection.says}"
    return not any(secret in said for secret in (PASSWORD, "not-to-be", KIT_PASSWORD, "127.0.0.1"))


async def test_documented_user_may_do_what_is_needed_by_tcp_and_unix(redis: Redis) -> None:
    for url in (redis.url, redis.unix_url, redis.url.replace("/0", "/7")):
        async with connected(url) as stage:
            assert stage.connection.up, stage.lines
            assert stage.connection.says == ""
            assert f"name=gateway-{stage.connection.node} " in await redis.ask("CLIENT", "LIST")
            assert await stage.connection.call("SET", "gateway:x", "1", "PX", 9) is True
            client = stage.connection.client()
            assert await client.get("gateway:y") is None
            await client.aclose()
            wire = await stage.connection.wire(lambda error: None)
            there, error = await wire.ask(["EXISTS", "gateway:y"], ["NOSUCH"])
            assert (there, str(error)[:19]) == (0, "ERR unknown command")
            wire.close()
    await eventually(redis.keys, [].__eq__)


async def test_user_with_the_commands_that_are_sent_and_no_other_is_enough(redis: Redis) -> None:
    commands = sorted({f"+{name.lower()}" for name in NAMES})
    await redis.ask(
        "ACL", "SETUSER", "bare", "on", ">secret", "~gateway:*", "-@all", "+@connection", "+info", *commands
    )
    async with connected(f"redis://bare:secret@127.0.0.1:{redis.port}/0") as stage:
        assert (stage.connection.up, stage.connection.says) == (True, "")
    assert not await redis.ask("ACL", "LOG")


async def test_tls_is_checked_by_the_authority_of_the_url(tmp_path: Path) -> None:
    async with Redis(tmp_path / "r", password=PASSWORD, tls=True) as redis:
        async with connected(redis.url) as stage:
            assert stage.connection.up, stage.lines
            client = stage.connection.client()
            assert await client.ping()
            await client.aclose()
        bare = redis.url.partition("?")[0]
        async with connected(f"{bare}?ssl_cert_reqs=none") as stage:
            assert stage.connection.up, stage.lines
        other, _ = throwaway_certificate(tmp_path, "other")
        for query in ("", f"?ssl_ca_certs={other}"):
            async with connected(bare + query) as stage:
                assert re.fullmatch(
                    r"the certificate of Redis is not trusted \(.+\); name its authority", stage.connection.says
                )
                assert unprinted(stage)
        async with connected(f"{bare}?ssl_ca_certs=/no/such.pem") as stage:
            assert stage.connection.says == "a file that store.url names cannot be read: No such file or directory"
        async with connected(bare.replace("rediss", "redis")) as stage:
            assert stage.connection.says == "Redis closed the connection; does it speak TLS (rediss://)?"


async def test_one_sentence_says_why_redis_cannot_be_used(redis: Redis) -> None:
    port = redis.port
    for name, rules in {"few": "~gateway:* +@read +@scripting", "elsewhere": "~other:* +@all"}.items():
        await redis.ask("ACL", "SETUSER", name, "on", ">secret-of-it", *rules.split())
    cases = {
        f"redis://127.0.0.1:{port}": "Redis asks for a password, and store.url has none",
        f"redis://:secret-of-it@127.0.0.1:{port}": "Redis refuses the user or the password of store.url",
        f"redis://gateway:secret-of-it@127.0.0.1:{port}": "Redis refuses the user or the password of store.url",
        f"redis://few:secret-of-it@127.0.0.1:{port}": (
            "the user of store.url may not use these commands: del, set, pexpire, hset, hincrby, hdel, …"
        ),
        f"redis://elsewhere:secret-of-it@127.0.0.1:{port}": (
            "the user of store.url may not use keys that begin with store.prefix and a colon"
        ),
        f"{redis.url[:-1]}99": "Redis has no database of the number in store.url",
        f"rediss://127.0.0.1:{port}": "TLS with Redis fails; is it a port that speaks TLS?",
        f"redis://127.0.0.1:{free_port()}": "nothing listens at the address of store.url",
        "unix:///no/such/socket": "Redis cannot be reached: No such file or directory",
    }
    for url, says in cases.items():
        async with connected(url) as stage:
            said = stage.connection.says
            # Where the greeting of TLS has no line end by chance, Redis waits for one.
            assert said == says or (url.startswith("rediss:") and said == "Redis does not answer in time"), url
            assert not stage.connection.up
            assert stage.said("store_away") == [said]
            assert unprinted(stage)
            assert "secret-of-it" not in str(stage.lines)


async def test_replica_full_redis_and_cluster_are_refused(tmp_path: Path, redis: Redis) -> None:
    replicated: dict[str, Any] = {"masteruser": KIT_USER, "masterauth": KIT_PASSWORD}
    async with (
        Redis(tmp_path / "replica", replicaof=f"127.0.0.1 {redis.port}", **replicated) as replica,
        Redis(tmp_path / "full", maxmemory="1mb") as full,
        Redis(tmp_path / "cluster", cluster_enabled="yes", cluster_port=str(free_port())) as cluster,
    ):
        for server, says in {
            replica: "Redis is a replica and takes no writes; store.url has to lead to the master",
            full: "Redis has no room left; raise its maxmemory",
            cluster: "Redis is a cluster, which is not supported; name a single master",
        }.items():
            async with connected(server.url) as stage:
                assert (stage.connection.up, stage.connection.says) == (False, says)


async def test_doubtful_policy_is_only_said(redis: Redis) -> None:
    await redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    await redis.ask("ACL", "SETUSER", "blind", "on", "nopass", *RULES[0].replace("+info", "").split())
    doubt = "Redis may throw away what streams and chats need (maxmemory-policy allkeys-lru); set noeviction"
    blind = "its maxmemory-policy cannot be read (the user may not use info); noeviction is needed"
    for url, says in {redis.url: doubt, f"redis://blind@127.0.0.1:{redis.port}": blind}.items():
        async with connected(url) as stage:
            assert (stage.connection.up, stage.connection.says) == (True, says)
            assert stage.said("store_warning") == [says]


async def test_name_that_nobody_answers_for_is_looked_up_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, asked, answered = asyncio.get_running_loop(), list[str](), asyncio.Event()

    async def silent(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        await answered.wait()
        return []

    monkeypatch.setattr(loop, "getaddrinfo", silent)
    access = Access("redis://redis.example.com", "gateway-x")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await access.open(lambda error: None)
    assert asked == ["redis.example.com"]
    answered.set()
    with pytest.raises(socket.gaierror) as raised:
        await access.open(lambda error: None)
    assert of(raised.value).says == "the host of store.url is not known"


async def test_localhost_is_reached_at_the_address_that_listens(tmp_path: Path) -> None:
    async with Redis(tmp_path / "r") as redis, connected(redis.url.replace("127.0.0.1", "localhost")) as stage:
        assert stage.connection.up, stage.lines


async def test_check_asks_the_store(redis: Redis) -> None:
    server = await redis.info("server")
    named = f"Valkey {server['valkey_version']}" if "valkey_version" in server else f"Redis {server['redis_version']}"
    assert await inquire(Store(url=redis.url)) == (True, f"{named} allows all that is needed")
    says = "Redis refuses the user or the password of store.url"
    assert await inquire(Store(url=redis.url.replace("-not-", "-"))) == (False, says)
    other = Store(url=redis.url, prefix="other")
    assert not (await inquire(other)).serves
    assert await redis.keys() == []


def hello(server: str, version: str) -> bytes:
    fields = {"server": server, "version": version, "mode": "standalone", "role": "master"}
    return b"*%d\r\n" % (2 * len(fields)) + b"".join(
        b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name.encode(), len(value), value.encode())
        for name, value in fields.items()
    )


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (hello("redis", "6.2.14"), "Redis is too old; version 7 or newer is needed, or Valkey 8 or newer"),
        (hello("valkey", "7.9.0"), "Redis is too old; version 7 or newer is needed, or Valkey 8 or newer"),
        (b"-ERR unknown command `HELLO`\r\n", "Redis is too old; version 7 or newer is needed, or Valkey 8 or newer"),
        (b"-DENIED Redis is running in protected mode\r\n", "Redis is in protected mode and takes no connection"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "Redis is still reading its data from the disk"),
        (b"-ERR max number of clients reached\r\n", "Redis has as many clients as it takes (maxclients)"),
        (b"+OK\r\n", "what answers at the address of store.url is no Redis"),
        (b"*2\r\n$7\r\nversion\r\n$1\r\nx\r\n", "what answers at the address of store.url is no Redis"),
        (b"*1\r\n:1\r\n", "what answers at the address of store.url is no Redis"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers at the address of store.url is no Redis"),
        (b"", "Redis closed the connection"),
    ],
)
async def test_old_or_strange_server_is_refused(greeting: bytes, says: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 10)
        writer.write(greeting)
        if greeting:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with connected(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as stage:
        assert stage.connection.says.startswith(says)
    server.close()
    await server.wait_closed()


async def test_sentinels_name_the_master_and_after_a_failover_the_new_one(tmp_path: Path) -> None:
    replicated: dict[str, Any] = {"masteruser": KIT_USER, "masterauth": KIT_PASSWORD}
    async with (
        Redis(tmp_path / "a", password=PASSWORD, **replicated) as first,
        Redis(tmp_path / "b", password=PASSWORD, replicaof=f"127.0.0.1 {first.port}", **replicated) as second,
        Sentinel(tmp_path / "s", first, password="of-the-sentinel") as sentinel,
    ):
        await sentinel.knows(1)
        credential = first.url.removeprefix("redis://").partition("@")[0]
        at = f"redis+sentinel://{credential}@127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
        async with connected(f"{at}/other?sentinel_password=of-the-sentinel") as stage:
            assert stage.connection.says == "no Sentinel could be reached that knows a master of the name in store.url"
        async with connected(f"{at}/main?sentinel_password=of-the-sentinel") as stage:
            connection = stage.connection
            assert connection.up, stage.lines
            lease = connection.layout.lease(connection.node)
            assert await first.keys() == [lease]
            back = asyncio.Event()

            async def returned() -> None:
                back.set()

            connection.when_up(returned)
            await first.kill()
            async with asyncio.timeout(30):
                await back.wait()
            assert await second.keys() == [lease]
            assert await exists(connection.client(), lease)
            assert unprinted(stage)


async def exists(client: library.Redis, key: str) -> bool:
    """Whether there is this key. On a busy machine the Sentinel may take the new master for dead, for a moment."""
    async with client, asyncio.timeout(30):
        while True:
            try:
                return await client.exists(key) == 1
            except RedisError:
                await asyncio.sleep(0.1)
