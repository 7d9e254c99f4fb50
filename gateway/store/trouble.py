"""What is wrong with the store: a kind for metrics, and one sentence for the operator.

No sentence holds a user, a password, a host or a key, as they also stand in /readyz.
"""

import re
import socket
import ssl
from typing import Final, Literal, NamedTuple

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from gateway.store.wire import NoRedisError

Kind = Literal["timeout", "connection", "credential", "permission", "read_only", "full", "loading", "unfit", "other"]


class Trouble(NamedTuple):
    """Why the store counts as away.

    Attributes:
        kind: for metrics.
        says: one sentence, without a full stop.
    """

    kind: Kind
    says: str


class UnfitError(Exception):
    """Redis is there, but cannot be used as it is."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.says)
        self.trouble = trouble


_DENIED_IN_SCRIPT: Final = re.compile("ACL failure in script|The user executing the script can't")
"""How Redis says NOPERM inside a script; the second one is version 7.0's."""

NO_ANSWER: Final = Trouble("timeout", "Redis does not answer in time")

WORDS: Final[dict[str, Trouble]] = {
    "WRONGPASS": Trouble("credential", "Redis refuses the user or the password of store.url"),
    "NOAUTH": Trouble("credential", "Redis asks for a password, and store.url has none"),
    "NOPERM": Trouble("permission", "the user of store.url may not use all commands and keys that are needed"),
    "READONLY": Trouble("read_only", "Redis is a replica and takes no writes; store.url has to lead to the master"),
    "OOM": Trouble("full", "Redis has no room left; raise its maxmemory"),
    "LOADING": Trouble("loading", "Redis is still reading its data from the disk"),
    "MASTERDOWN": Trouble("read_only", "Redis is a replica that has lost its master"),
    "MISCONF": Trouble("read_only", "Redis takes no writes, as it cannot save its data to the disk"),
    "NOREPLICAS": Trouble("read_only", "Redis takes no writes, as too few replicas are connected"),
    "CLUSTERDOWN": Trouble("unfit", "Redis is a cluster, which is not supported; name a single master"),
    "MOVED": Trouble("unfit", "Redis is a cluster, which is not supported; name a single master"),
    "CROSSSLOT": Trouble("unfit", "Redis is a cluster, which is not supported; name a single master"),
    "BUSY": Trouble("timeout", "Redis is busy with a script that does not end"),
    "DENIED": Trouble("credential", "Redis is in protected mode and takes no connection from here; give it a password"),
}
"""The words that errors of Redis begin with, as far as they mean that it cannot be used now."""

_CLASSES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.AuthenticationError, "WRONGPASS"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
)
"""redis-py's errors, from which it takes that word away."""


def of_reply(error: Exception) -> Trouble | None:
    """What an error that Redis replied with says about Redis; None if it concerns the one command only."""
    text = str(error)
    if _DENIED_IN_SCRIPT.search(text):
        return WORDS["NOPERM"]
    return WORDS.get(text.partition(" ")[0])


def of(error: BaseException) -> Trouble:
    """Why the store is away, if this error was met on the way to it."""
    for cause in _causes(error):
        if isinstance(cause, UnfitError):
            return cause.trouble
        for kind, word in _CLASSES:
            if isinstance(cause, kind):
                return WORDS[word]
        if (found := _of_system(cause)) is not None:
            return found
    return (of_reply(error) if isinstance(error, Exception) else None) or _unknown(error)


def _of_system(error: BaseException) -> Trouble | None:
    if isinstance(error, MasterNotFoundError):
        return Trouble("connection", "no Sentinel could be reached that knows a master of the name in store.url")
    if isinstance(error, NoRedisError):
        return Trouble("unfit", "what answers at the address of store.url is no Redis")
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = re.sub(r"[^ -~]", "", error.verify_message or "")[:100]
        return Trouble("connection", f"the certificate of Redis is not trusted ({reason}); name its authority")
    if isinstance(error, ssl.SSLError):
        return Trouble("connection", "TLS with Redis fails; is it a port that speaks TLS?")
    if isinstance(error, socket.gaierror):
        return Trouble("connection", "the host of store.url is not known")
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return NO_ANSWER
    if isinstance(error, ConnectionRefusedError):
        return Trouble("connection", "nothing listens at the address of store.url")
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return Trouble("connection", "Redis closed the connection")
    if isinstance(error, OSError) and error.strerror:
        return Trouble("connection", f"Redis cannot be reached: {error.strerror}")
    return None


def _unknown(error: BaseException) -> Trouble:
    if isinstance(error, OSError | exceptions.ConnectionError):
        return Trouble("connection", "the connection to Redis fails")
    return Trouble("other", f"Redis cannot be used ({type(error).__name__})")


def _causes(error: BaseException) -> list[BaseException]:
    """The error, then what caused it, the nearest first."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain
