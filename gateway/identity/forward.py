"""Forward authentication: the team's own application says who a cookie or token stands for.

    request --what it carries of the named cookies and headers-->  nothing: not ours, no question
                                   |
                                   v  sha256
                      answered within `ttl`? ----yes----> the principal, or the refusal, at once
                                   | no
                                   v
                      already being asked? --yes--> wait for that question
                                   | no
                                   v
                      GET url --> 200 with an id: `user:<id>`    401, 403: refused    anything else: nobody knows

While streams of a credential run, it is asked about again in the background:

    asked --yes--> good for `lifetime` --half of it--> asked again --yes--> good for another lifetime
                         |                                 |-----no--> its streams end, `auth_expired`
                         |                                 +-failed--> asked again after a pause
                         +--lifetime over, and no answer--> its streams end, `auth_expired`

Invariants:

- Nobody is let in, and no stream runs on, later than `ttl` after the application last said yes. Its failures are an
  error for whoever is not known, and let nobody in.
- The application gets the named cookies and headers and the query's credential, and nothing else of a request.
- A cookie, or a credential that browsers send by themselves, counts only from an allowed page.
- Answers are kept under a hash. What was asked with is kept only where streams rely on it.
- Everything is bounded: answers kept, questions at once, questions that wait, from one address too, bytes and time of
  an answer. Questions about running streams never wait behind those of newcomers.
"""

import asyncio
import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar

import aiohttp
import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.clock import Clock, Timer
from gateway.config import Forward as Settings
from gateway.core.cookies import clean_cookies
from gateway.core.credential import MAX_SECRET, Carriers, Facts, Presented, address_key, cookie_allowed
from gateway.core.errors import GatewayError
from gateway.core.principal import USER, Principal, Relying
from gateway.dialects.base import Call
from gateway.upstream.http import attempt

MAX_KEPT: Final = 10_000
"""Answers kept, of each sort; the one that was used least recently is dropped first."""
KEEP_REFUSAL: Final = 1.0
"""Seconds that a refusal is kept: a client that repeats itself costs one question a second, and a login counts soon."""
AT_ONCE: Final = 16
"""Questions of newcomers at once, and as many about running streams."""
MAX_WAITING: Final = 256
"""Questions of newcomers that were asked or wait to be asked."""
MAX_OF_ADDRESS: Final = 64
"""Those among them that one client address may cause, so that a flood of bad cookies leaves room for others."""
MAX_BODY: Final = 64 << 10
MAX_ID: Final = 256
SCOPES: Final = frozenset({"stream", "publish", "admin"})
NEEDED: Final = "stream"
"""The scope without which a stream may not go on."""
COME_BACK: Final = 2.0
"""`retry_after`, in seconds, where the application could not be asked."""
SHORTEST_PAUSE: Final = 0.1
"""Seconds between two questions about the same running streams, at least."""
QUIET: Final = 10.0
"""Seconds between two lines of the log that say the application failed."""
AMBIENT: Final = frozenset({"basic", "digest", "negotiate", "ntlm"})
"""Schemes of `Authorization` that browsers send by themselves, with requests of other sites too.

Source: WHATWG Fetch 4.6 (authentication entries).
"""

_SENDABLE: Final = re.compile(r"[\x20-\x7e]+")


class Allowed(NamedTuple):
    """The application knows the user.

    Attributes:
        id, plan, scopes: of the principal.
        lifetime: seconds from the answer on for which it counts; above 0.
    """

    id: str
    plan: str
    scopes: frozenset[str]
    lifetime: float


class Failed(NamedTuple):
    """The application gave no answer that can be used. `why` is for the log; it quotes nothing that was sent."""

    why: str


REFUSED: Final = "refused"
Answer = Allowed | Failed | Literal["refused"]
T = TypeVar("T")


class _Kept(NamedTuple):
    answer: Allowed
    until: float


class _Recent(OrderedDict[bytes, T]):
    """The `MAX_KEPT` entries that were used last."""

    def keep(self, key: bytes, value: T) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > MAX_KEPT:
            self.popitem(last=False)


class _Asked(NamedTuple):
    """What a question is asked with: the request's headers for the application."""

    headers: tuple[tuple[str, str], ...]

    def hash(self) -> bytes:
        return hashlib.sha256(msgspec.json.encode(self.headers)).digest()


class _Login(NamedTuple):
    """The user that a credential stood for when a stream began; later, the same cookie may be somebody else's."""

    key: bytes
    id: str


class _Assurance:
    """A credential that the application said yes to, for the streams that rely on it. See `core.principal`."""

    __slots__ = ("_asked", "_forward", "_login")

    def __init__(self, forward: "Forward", login: _Login, asked: _Asked) -> None:
        self._forward = forward
        self._login = login
        self._asked = asked

    def left(self) -> float:
        return self._forward.left(self._login)

    def rely(self, stream: Relying) -> None:
        self._forward.watch(self._login, self._asked).streams.add(stream)

    def leave(self, stream: Relying) -> None:
        self._forward.unwatch(self._login, stream)


class _Watch:
    """The running streams that rely on one login, and what comes next for them: a timer or a question."""

    __slots__ = ("asked", "streams", "task", "timer")

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked
        self.streams: set[Relying] = set()
        self.timer: Timer | None = None
        self.task: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Nothing comes next."""
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()
        self.timer = self.task = None


class Forward:
    """The verifier that asks the application. You must call `close` when it is not needed any more.

    Args:
        settings: `auth.forward`.
        origins: `cors.origins`, from whose pages a cookie counts.
        session: the HTTP client, from `upstream.http.new_session`.
        clock: the process's timers.
        logger: the process's log.
    """

    def __init__(
        self,
        settings: Settings,
        origins: frozenset[str],
        session: aiohttp.ClientSession,
        clock: Clock,
        logger: FilteringBoundLogger,
    ) -> None:
        self.settings = settings
        self.origins = origins
        self._session = session
        self._clock = clock
        self._logger = logger
        self._known: _Recent[_Kept] = _Recent()
        self._refused: _Recent[float] = _Recent()
        self._asking: dict[bytes, asyncio.Task[Answer]] = {}
        self._overtaken: set[asyncio.Task[Answer]] = set()  # questions whose answer is for those alone that wait for it
        self._of_address: Counter[str] = Counter()
        self._newcomers = asyncio.Semaphore(AT_ONCE)
        self._renewals = asyncio.Semaphore(AT_ONCE)
        self._watched: dict[_Login, _Watch] = {}
        self._quiet_until = 0.0

    def verify(
        self, presented: Presented | None, facts: Facts, now: float
    ) -> Principal | Awaitable[Principal | None] | None:
        """See `Verifier`. None, and no question, for a request without any of what the application is asked with.

        Raises:
            GatewayError: `auth_unavailable`, also from the awaitable: the application gave no answer that can be used,
                or too many questions wait already.
        """
        asked = self._carried(presented, facts)
        if asked is None:
            return None
        key, moment = asked.hash(), self._clock.now()
        kept = self._known.get(key)
        if kept is not None and kept.until > moment:
            self._known.move_to_end(key)
            return self._principal(key, asked, kept.answer, now + kept.until - moment)
        if self._refused.get(key, 0.0) > moment:
            return None
        return self._find_out(key, asked, self._question(key, asked, address_key(facts.address)), now - moment)

    @property
    def carriers(self) -> Carriers:
        """See `Reading`."""
        return Carriers(frozenset(self.settings.headers), frozenset(self.settings.cookies))

    @property
    def watching(self) -> bool:
        """Whether running streams rely on it."""
        return bool(self._watched)

    def forget(self, principal: str) -> None:
        """See `Remembering`. What is being asked now is not remembered either, as nobody knows yet whom it is about."""
        kind, _, id_ = principal.partition(":")
        if kind == USER:
            for key in [key for key, kept in self._known.items() if kept.answer.id == id_]:
                del self._known[key]
            self._overtaken.update(self._asking.values())

    def close(self) -> None:
        """Ends every question, and the streams that rely on it."""
        for task in list(self._asking.values()):
            task.cancel()
        for watch in list(self._watched.values()):
            watch.end()
            _tell(watch, 0.0)
        self._watched.clear()

    # -- what a request carries ----------------------------------------------------------------------------------

    def _carried(self, presented: Presented | None, facts: Facts) -> _Asked | None:
        settings, allowed = self.settings, self._page_allowed(facts)
        headers: dict[str, str] = {}
        if allowed and settings.cookies:
            cookies = clean_cookies("; ".join(facts.headers.getall("cookie", ())), settings.cookies)
            if cookies:
                headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        for name in (name.lower() for name in settings.headers):
            values = facts.headers.getall(name, ())
            if len(values) == 1 and _is_sendable(values[0]) and (allowed or not _is_ambient(name, values[0])):
                headers[name] = values[0]
        in_query = presented.secret if presented is not None and presented.source == "query" else ""
        if "authorization" not in headers and _is_sendable(in_query):
            headers["authorization"] = f"Bearer {in_query}"
        return _Asked(tuple(headers.items())) if headers else None

    def _page_allowed(self, facts: Facts) -> bool:
        # All lines of a header: of two origins, a proxy in front may have judged the other one.
        origin, site = (", ".join(facts.headers.getall(name, ())) for name in ("origin", "sec-fetch-site"))
        return cookie_allowed(origin, site, self.origins)

    # -- questions of newcomers ----------------------------------------------------------------------------------

    def _question(self, key: bytes, asked: _Asked, address: str) -> "asyncio.Task[Answer]":
        """The question about this credential, which is one for all requests that wait for it."""
        if (task := self._asking.get(key)) is not None:
            return task
        if len(self._asking) >= MAX_WAITING or self._of_address[address] >= MAX_OF_ADDRESS:
            raise _unavailable("too many questions wait already")
        # A task, so that a client that leaves does not take the answer from the others.
        task = self._asking[key] = asyncio.get_running_loop().create_task(self._ask_in_turn(asked))
        self._of_address[address] += 1

        def done(task: "asyncio.Task[Answer]") -> None:
            del self._asking[key]
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]
            overtaken = task in self._overtaken
            self._overtaken.discard(task)
            if not (task.cancelled() or overtaken):
                self._keep(key, task.result())

        task.add_done_callback(done)
        return task

    async def _ask_in_turn(self, asked: _Asked) -> Answer:
        try:
            async with asyncio.timeout(self.settings.timeout), self._newcomers:
                answer = await self._ask(asked)
        except TimeoutError:
            answer = Failed(f"no answer within {self.settings.timeout:g} s")
        self._report(answer)
        return answer

    async def _find_out(
        self, key: bytes, asked: _Asked, question: "asyncio.Task[Answer]", wall: float
    ) -> Principal | None:
        await asyncio.wait([question])
        answer = Failed("it is asked no more") if question.cancelled() else question.result()
        if isinstance(answer, Failed):
            raise _unavailable(answer.why)
        if not isinstance(answer, Allowed):
            return None
        return self._principal(key, asked, answer, self._clock.now() + wall + answer.lifetime)

    def _keep(self, key: bytes, answer: Answer) -> None:
        now = self._clock.now()
        if isinstance(answer, Allowed):
            self._known.keep(key, _Kept(answer, now + answer.lifetime))
        elif answer == REFUSED:
            self._known.pop(key, None)
            self._refused.keep(key, now + KEEP_REFUSAL)

    def _principal(self, key: bytes, asked: _Asked, answer: Allowed, expires: float) -> Principal:
        assurance = _Assurance(self, _Login(key, answer.id), asked)
        return Principal(USER, answer.id, answer.plan, answer.scopes, expires, assurance)

    # -- streams that run ----------------------------------------------------------------------------------------

    def left(self, login: _Login) -> float:
        """Seconds for which a login counts without another question. If its time was over while its request was read,
        it is asked about at once, and counts for the longest time that this can take."""
        kept = self._kept(login)
        left = kept.until - self._clock.now() if kept is not None else 0.0
        return left if left > 0 else self.settings.timeout

    def watch(self, login: _Login, asked: _Asked) -> _Watch:
        """The streams that rely on this login; from now on it is asked about again while there are any."""
        watch = self._watched.get(login)
        if watch is None:
            watch = self._watched[login] = _Watch(asked)
            kept = self._kept(login)
            due = kept.until - kept.answer.lifetime / 2 if kept is not None else 0.0
            self._later(login, watch, max(0.0, due - self._clock.now()))
        return watch

    def unwatch(self, login: _Login, stream: Relying) -> None:
        """This stream relies on it no more."""
        watch = self._watched.get(login)
        if watch is None:
            return
        watch.streams.discard(stream)
        if not watch.streams:
            watch.end()
            del self._watched[login]

    def _kept(self, login: _Login) -> _Kept | None:
        kept = self._known.get(login.key)
        return kept if kept is not None and kept.answer.id == login.id else None

    def _later(self, login: _Login, watch: _Watch, seconds: float) -> None:
        def begin() -> None:
            watch.timer = None
            watch.task = asyncio.get_running_loop().create_task(self._renew(login, watch))

        watch.timer = self._clock.wheel.after(seconds, begin)

    async def _renew(self, login: _Login, watch: _Watch) -> None:
        """Asks again, tells the streams, and sees to the next question."""
        async with self._renewals:
            try:
                async with asyncio.timeout(self.settings.timeout):
                    answer = await self._ask(watch.asked)
            except TimeoutError:
                answer = Failed(f"no answer within {self.settings.timeout:g} s")
        self._report(answer)
        self._keep(login.key, answer)
        watch.task = None
        if isinstance(answer, Failed):  # the streams have what is left of their time
            self._later(login, watch, max(SHORTEST_PAUSE, self.settings.ttl / 10))
        elif isinstance(answer, Allowed) and answer.id == login.id and NEEDED in answer.scopes:
            self._later(login, watch, max(SHORTEST_PAUSE, answer.lifetime / 2))
            _tell(watch, answer.lifetime)
        else:
            del self._watched[login]
            _tell(watch, 0.0)

    # -- the application -----------------------------------------------------------------------------------------

    async def _ask(self, asked: _Asked) -> Answer:
        """One question. Its time is the caller's to limit."""
        call = Call("GET", self.settings.url, {"accept": "application/json", **dict(asked.headers)}, b"")
        try:
            with await attempt(self._session, call, connect_timeout=self.settings.timeout, again=True) as response:
                if response.status in (401, 403):
                    return REFUSED
                if response.status != 200:
                    return Failed(f"status {response.status}")
                users = response.headers.getall("X-User", ())
                if len(users) > 1:
                    return Failed("several X-User headers")
                if users:
                    said: Mapping[str, Any] = {"id": users[0], "plan": response.headers.get("X-Plan")}
                else:
                    said = _object(await _read(response))
                return _allowed(said, self.settings.ttl)
        except GatewayError as error:
            return Failed(f"{error.code.removeprefix('upstream_')} {error.detail}".strip())
        except ValueError as error:
            return Failed(str(error))

    def _report(self, answer: Answer) -> None:
        now = self._clock.now()
        if isinstance(answer, Failed) and now >= self._quiet_until:
            self._quiet_until = now + QUIET
            self._logger.warning("auth_forward_failed", detail=answer.why)


def _tell(watch: _Watch, seconds: float) -> None:
    for stream in list(watch.streams):
        stream.renew(seconds)


def _unavailable(why: str) -> GatewayError:
    return GatewayError("auth_unavailable", retry_after=COME_BACK, detail=f"auth.forward: {why}")


def _is_sendable(value: str) -> bool:
    return len(value) <= MAX_SECRET and _SENDABLE.fullmatch(value) is not None


def _is_ambient(name: str, value: str) -> bool:
    return name == "authorization" and value.strip().partition(" ")[0].lower() in AMBIENT


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while part := await response.content.readany():
        body += part
        if len(body) > MAX_BODY:
            raise ValueError(f"a body of more than {MAX_BODY} bytes")
    return body


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise ValueError("no X-User header, and a body that is no JSON") from None
    if not isinstance(said, dict):
        raise ValueError("JSON that is no object")
    return said


def _allowed(said: Mapping[str, Any], ttl: float) -> Allowed | Literal["refused"]:
    """The user of an answer with status 200.

    Raises:
        ValueError: a member is not what it has to be; the message names the member and quotes nothing.
    """
    user, plan, lifetime = said.get("id"), said.get("plan"), said.get("expires_in")
    if not isinstance(user, str) or not 0 < len(user) <= MAX_ID or not user.isprintable() or user != user.strip():
        raise ValueError(f"an id that is no text of 1 to {MAX_ID} printable characters")
    if plan is not None and not isinstance(plan, str):
        raise ValueError("a plan that is no text")
    if lifetime is not None and (isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or lifetime < 0):
        raise ValueError("expires_in that is no number of seconds")
    if lifetime == 0:
        return REFUSED
    counts = ttl if lifetime is None else min(ttl, lifetime)
    return Allowed(user, plan or "default", _scopes(said.get("scopes")), counts)


def _scopes(said: Any) -> frozenset[str]:
    if said is None:
        return frozenset({NEEDED})
    scopes = said.split() if isinstance(said, str) else said
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("scopes that are no list of texts")
    return SCOPES.intersection(scopes)
