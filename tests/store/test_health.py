"""What Redis must allow, judged by its replies; and that no command is used which is not tried."""

import re

import hiredis
import pytest

from gateway.store import health
from gateway.store.health import NAMES, USED, judge, memory, probes
from tests.kit.program import ROOT


def replies(**errors: str) -> list[object]:
    return [
        hiredis.ReplyError(errors[str(command[0]).lower()]) if str(command[0]).lower() in errors else b"OK"
        for command in USED
    ]


DENIED = "NOPERM this user has no permissions to run the '{}' command"
KEYS = "NOPERM this user has no permissions to access one of the keys used as arguments"


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ({}, None),
        ({"hset": "WRONGTYPE Operation against a key", "evalsha": "NOSCRIPT No matching script"}, None),
        ({"xadd": DENIED}, "the user of store.url may not use these commands: xadd"),
        (
            dict.fromkeys(("get", "hget", "hmget", "sadd", "zadd", "xadd", "xread"), DENIED),
            "the user of store.url may not use these commands: get, hget, hmget, sadd, zadd, xadd, …",
        ),
        (
            {"get": KEYS, "xadd": KEYS},
            "the user of store.url may not use keys that begin with store.prefix and a colon",
        ),
        (
            {"set": "OOM command not allowed when used memory > 'maxmemory'."},
            "Redis has no room left; raise its maxmemory",
        ),
        (
            {"set": "MISCONF Redis is configured to save RDB snapshots, but"},
            "Redis takes no writes, as it cannot save its data to the disk",
        ),
        (
            {"eval": "ERR ACL failure in script: User g has no permissions to run the 'get' command"},
            "the user of store.url may not use these commands: eval",
        ),
    ],
)
def test_replies_are_judged(errors: dict[str, str], says: str | None) -> None:
    found = judge(replies(**errors))
    assert (found.says if found else None) == says


def test_key_that_is_tried_expires_from_its_first_moment() -> None:
    """A connection that breaks in between leaves nothing behind for ever."""
    tried = probes("gateway:probe:n")
    writing = [command[0] for command in tried if command[0] != "DEL"]
    assert writing[0] == "SET"
    assert ("SET", "gateway:probe:n", "1", "PX", 5000) in tried
    assert tried[-1] == ("DEL", "gateway:probe:n")


def test_memory_is_read_and_the_policy_is_judged() -> None:
    said = b"# Memory\r\nused_memory:1024\r\nused_memory_human:1K\r\nmaxmemory:%d\r\nmaxmemory_policy:%s\r\n"
    assert memory(said % (4096, b"noeviction")) == (1024, 4096, "")
    assert memory(said % (0, b"volatile-ttl")).warning.endswith("(maxmemory-policy volatile-ttl); set noeviction")
    assert "cannot be read" in memory(hiredis.ReplyError("NOPERM")).warning


SENT = re.compile(
    r"redis\.p?call\('(\w+)'"  # by a script
    r"|(?:\bcall\(|\bask\(|\bexecute_command\(|\bpack\(\(|\bsend\(\(|= \()b?\"([A-Z]+)\""  # as a command
    r"|\bb?\"(EVAL|EVALSHA)\""
)


def test_every_command_that_is_used_is_tried_and_no_other() -> None:
    """A user who lacks what nothing sends is not refused."""
    rooms = [path for path in (ROOT / "gateway" / "store").glob("*.py") if path.name != "health.py"]
    used = {name for path in rooms for found in SENT.findall(path.read_text("utf-8")) for name in found if name}
    assert {"EVALSHA", "HMGET", "SCRIPT", "TIME", "XADD", "XREAD"} <= used
    assert sorted(used) == sorted(NAMES)
    assert health.MEMORY[0] == "INFO"
