"""What must hold of Redis before it is used: permissions and room to write; and what should: that it keeps every key.

It is found out by trying, as a user without rights may ask for none of its own rights either: each command that the
gateway uses is sent once, to a key that nobody else uses.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import hiredis

from gateway.store.trouble import WORDS, Trouble, of_reply

Command = tuple[str | int, ...]

_KEY: Final = "KEY"
"""Stands for the key that is tried."""

USED: Final[tuple[Command, ...]] = (
    ("DEL", _KEY),
    ("SET", _KEY, "1", "PX", 5000),
    ("GET", _KEY),
    ("EXISTS", _KEY),
    ("PEXPIRE", _KEY, 5000),
    ("PTTL", _KEY),
    ("HSET", _KEY, "f", "1"),
    ("HGET", _KEY, "f"),
    ("HMGET", _KEY, "f"),
    ("HINCRBY", _KEY, "f", 1),
    ("HDEL", _KEY, "f"),
    ("SADD", _KEY, "m"),
    ("SMEMBERS", _KEY),
    ("SPOP", _KEY, 1),
    ("SREM", _KEY, "m"),
    ("ZADD", _KEY, 1, "m"),
    ("ZCARD", _KEY),
    ("ZRANGE", _KEY, 0, 0),
    ("ZRANGEBYLEX", _KEY, "-", "+"),
    ("ZRANGEBYSCORE", _KEY, 0, 0),
    ("ZREM", _KEY, "m"),
    ("ZREMRANGEBYLEX", _KEY, "-", "+"),
    ("ZREMRANGEBYRANK", _KEY, 0, 0),
    ("ZREMRANGEBYSCORE", _KEY, 0, 0),
    ("ZSCORE", _KEY, "m"),
    ("ZPOPMIN", _KEY),
    ("XADD", _KEY, "1-1", "f", "1"),
    ("XRANGE", _KEY, "-", "+", "COUNT", 1),
    ("XREVRANGE", _KEY, "+", "-", "COUNT", 1),
    ("XREAD", "COUNT", 1, "STREAMS", _KEY, "0"),
    ("XTRIM", _KEY, "MAXLEN", 0),
    ("TIME",),
    ("SCRIPT", "LOAD", "return 1"),
    ("EVALSHA", "0" * 40, 1, _KEY),
    ("EVAL", "return redis.call('GET', KEYS[1])", 1, _KEY),
    ("DEL", _KEY),
)
"""The commands that are used, each with arguments that do no harm. The key is a text that expires, also if the
connection breaks in between, so most commands are answered with an error: it is of the wrong type. Only errors that say
that nothing can be done here matter. tests/store/test_health.py compares this list to what is sent."""

NAMES: Final = frozenset(str(command[0]) for command in USED)
MEMORY: Final[Command] = ("INFO", "memory")
_SHOWN: Final = 6
"""Commands that a sentence names, at most."""


class Memory(NamedTuple):
    """What Redis says of its memory.

    Attributes:
        used: bytes.
        limit: bytes; 0 for none.
        warning: what is doubtful, "" for nothing.
    """

    used: int
    limit: int
    warning: str


def probes(key: str) -> list[Command]:
    """Every command that is used, on this key."""
    return [tuple(key if part is _KEY else part for part in command) for command in USED]


def judge(replies: Sequence[Any]) -> Trouble | None:
    """What the replies to `probes` say; None if everything can be done."""
    found = [
        (str(command[0]), trouble, str(reply))
        for command, reply in zip(USED, replies, strict=True)
        if isinstance(reply, hiredis.ReplyError) and (trouble := of_reply(reply)) is not None
    ]
    if not found:
        return None
    denied = [(name, text) for name, trouble, text in found if trouble is WORDS["NOPERM"]]
    if not denied:
        return found[0][1]
    if any(" key" in text for _, text in denied):
        return Trouble("permission", "the user of store.url may not use keys that begin with store.prefix and a colon")
    names = list(dict.fromkeys(name.lower() for name, _ in denied))
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return Trouble("permission", f"the user of store.url may not use these commands: {shown}")


def memory(reply: Any) -> Memory:
    """What the reply to `MEMORY` says."""
    if not isinstance(reply, bytes):
        return Memory(0, 0, "its maxmemory-policy cannot be read (the user may not use info); noeviction is needed")
    said = dict(re.findall(r"^(used_memory|maxmemory|maxmemory_policy):([a-z0-9-]+)\r?$", reply.decode(), re.MULTILINE))
    policy, warning = said.get("maxmemory_policy", ""), ""
    if policy != "noeviction":
        warning = f"Redis may throw away what streams and chats need (maxmemory-policy {policy}); set noeviction"
    return Memory(int(said.get("used_memory", 0)), int(said.get("maxmemory", 0)), warning)
