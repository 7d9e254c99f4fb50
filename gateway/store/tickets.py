"""Tickets that several nodes share: issued at one, used at any. `identity/tickets.py` says what a ticket is worth.

    issued --REDEEM at any node--> bound --CLAIM, one node wins--> claimed --its stream was started--> used
      |                              ^                                |
      |                              +--------no stream was started---+
      +--for reading one stream: bound --the stream was found--> used

    <prefix>:t:<digest of the ticket>      hash   `p` the principal, sealed; `s` the id of its stream, empty before;
                                                  `b` a digest of route and address; `c` who claims it, and since when;
                                                  `u` it was used; `w` until when (ms) it needs no proof; `o` its stream
                                                  was read to the end; `x` when (ms) it would have expired unused
    <prefix>:tp:<digest of the principal>  zset   its tickets by their end (ms); those in use `IN_USE` later, so that a
                                                  flood of new ones does not end streams that run

Invariants:

- One ticket starts one stream over all nodes: only who has claimed it may start one, and a claim never lapses. If its
  node dies between claim and start, the ticket is lost.
- The principal is sealed with a key made of the ticket itself, and of `store.secret` where there is one. So Redis alone
  knows neither who may come nor how.
- While Redis is away no ticket is issued and none is good, but one whose stream this node has: that may resume here.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger

from gateway.core.errors import GatewayError
from gateway.core.principal import Principal
from gateway.identity.tickets import MAX_TICKETS, SHARE, Ticket, Tickets, is_ticket, ticket_key
from gateway.store.backlog import Backlog
from gateway.store.connection import Connection, StoreAwayError
from gateway.store.layout import Script
from gateway.store.sealed import Seal

COME_BACK: Final = 2.0
"""`retry_after`, in seconds, while Redis is away."""
STARTING_MS: Final = 10_000
"""Milliseconds after a claim in which its stream may still be about to start, so that others come back for it."""
MAX_ASSURANCES: Final = 10_000
"""Tickets issued here whose credential has to be asked about while streams run. Only the node that was shown the
credential can ask again: elsewhere, such a stream ends when the credential does, as far as was known at the issue."""
SOON: Final = 1.0
"""`retry_after`, in seconds, for a request that comes while the stream of its ticket is being started."""

_INDEX: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local in_use = 1e13
local function live(ms)
  redis.call('PEXPIRE', KEYS[2], ms, 'NX')
  redis.call('PEXPIRE', KEYS[2], ms, 'GT')
end
"""

ISSUE: Final = Script(f"""{_INDEX}
-- KEYS: ticket, its principal's   ARGV: digest, sealed principal, stream, ms, tickets of a principal at most, prefix
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], in_use, in_use + now)
while redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) do
  redis.call('DEL', ARGV[6] .. redis.call('ZPOPMIN', KEYS[2])[1])
end
redis.call('HSET', KEYS[1], 'p', ARGV[2], 's', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[1])
live(ARGV[4])
return 1
""")

REDEEM: Final = Script("""
-- What a ticket is; it is bound from now on.
-- KEYS: ticket   ARGV: digest of route and address, whether a stream can be started, what names of streams begin with
local found = redis.call('HMGET', KEYS[1], 'p', 's', 'b', 'u', 'o', 'w', 'c')
local stream = found[2]
if not found[1] or (found[3] and found[3] ~= ARGV[1]) or (stream == '' and ARGV[2] == '0') then return {} end
if not found[3] then redis.call('HSET', KEYS[1], 'b', ARGV[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local proof = found[4] and (found[5] or now >= tonumber(found[6]))
local there = stream ~= '' and redis.call('EXISTS', ARGV[3] .. stream) or 0
local claimed = found[7] and now - tonumber(string.match(found[7], ':(%d+)$')) or -1
return {found[1], stream, found[4] and 1 or 0, proof and 1 or 0, there, claimed}
""")
"""Nothing; or the sealed principal, the stream, whether it was used, whether it needs a proof, whether Redis knows the
stream, and the milliseconds since it was claimed, -1 before."""

CLAIM: Final = Script(f"""{_INDEX}
-- KEYS: ticket, its principal's   ARGV: digest, claim, ms that the ticket is kept
local found = redis.call('HMGET', KEYS[1], 's', 'c')
if found[1] ~= '' or found[2] then return 0 end
redis.call('HSET', KEYS[1], 'c', ARGV[2] .. ':' .. now, 'x', now + redis.call('PTTL', KEYS[1]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], 'XX', in_use + now + ARGV[3], ARGV[1])
live(ARGV[3])
return 1
""")

RELEASE: Final = Script(f"""{_INDEX}
-- No stream was started.   KEYS: ticket, its principal's   ARGV: digest, claim
local found = redis.call('HMGET', KEYS[1], 's', 'c', 'x')
if found[1] ~= '' or not found[2] or string.match(found[2], '^[^:]*') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'c')
redis.call('PEXPIRE', KEYS[1], math.max(1, found[3] - now))
redis.call('ZADD', KEYS[2], 'XX', found[3], ARGV[1])
return 1
""")

USE: Final = Script(f"""{_INDEX}
-- The ticket gives this stream and no other.
-- KEYS: ticket, its principal's   ARGV: digest, stream, ms without a proof, ms that the ticket is kept, claim
local found = redis.call('HMGET', KEYS[1], 's', 'u', 'c')
if not found[1] or found[2] or (found[1] ~= '' and found[1] ~= ARGV[2]) then return 0 end
if found[3] and string.match(found[3], '^[^:]*') ~= ARGV[5] then return 0 end
redis.call('HSET', KEYS[1], 's', ARGV[2], 'u', 1, 'w', now + ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], 'XX', in_use + now + ARGV[4], ARGV[1])
live(ARGV[4])
return 1
""")

READ_OUT: Final = Script("""
-- Its stream was read to the end.   KEYS: ticket
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'o', 1) end
return 1
""")

FORGET: Final = """
local tickets = 0
for _, digest in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  tickets = tickets + redis.call('DEL', ARGV[1] .. digest)
end
redis.call('DEL', KEYS[1])
"""
"""A part of scripts: forgets all tickets of a principal. KEYS[1]: its tickets. ARGV[1]: what names of tickets begin
with. Leaves their number in `tickets`."""


class SharedTicket(Ticket):
    """A ticket as Redis has it, for one request.

    Attributes:
        digest: what Redis calls it by.
        claim: this request's right to start its stream, "" without.
    """

    __slots__ = ("claim", "digest")

    def __init__(self, key: bytes, principal: Principal, stream_id: str, digest: str) -> None:
        super().__init__(key, principal, stream_id, 0.0)
        self.digest = digest
        self.claim = ""


class SharedTickets:
    """The tickets of all nodes.

    Args:
        connection: this process's way to Redis.
        secret: `store.secret`, "" for none.
        local: those whose streams this node has started or read.
        logger: the process's log.
        share: tickets of one principal, at most.
    """

    def __init__(
        self,
        connection: Connection,
        secret: str,
        local: Tickets,
        logger: FilteringBoundLogger,
        share: int = MAX_TICKETS // SHARE,
    ) -> None:
        self.local = local
        self._connection = connection
        self._secret = secret
        self._seal = Seal(secret)
        self._share = share
        self._assured: OrderedDict[str, Principal] = OrderedDict()  # issued here, by digest
        self._backlog = Backlog(connection, logger, "tickets", MAX_TICKETS)

    async def issue(self, principal: Principal, ttl: float, stream_id: str = "") -> str:
        """A new ticket; see `Tickets.issue`.

        Raises:
            GatewayError: `auth_unavailable`, Redis is away.
        """
        text = self.local.new_text()
        digest = self._digest(text)
        key = self._name(digest)
        facts = [principal.kind, principal.id, principal.plan, sorted(principal.scopes), principal.expires]
        sealed = self._seal_of(text).seal(key, msgspec.json.encode(facts))
        keys = (key, self.of(str(principal)))
        arguments = (digest, sealed, stream_id, _ms(ttl), self._share, self._name(""))
        await self._run(ISSUE, keys, arguments)
        if principal.assurance is not None:
            self._assured[digest] = principal
            if len(self._assured) > MAX_ASSURANCES:
                self._assured.popitem(last=False)
        return text

    async def redeem(
        self, text: str, route: str, address: str, now: float, proof: Callable[[str], bool], *, starts: bool = True
    ) -> Ticket | None:
        """The ticket, bound to this route and address; see `Tickets.redeem`.

        Raises:
            GatewayError: `auth_unavailable`: Redis is away, or the ticket's stream is being started.
        """
        if not is_ticket(text):
            return None
        known = self.local.knows(text)
        digest = self._digest(text)
        key, bound = self._name(digest), self._seal.digest("bound", route, address)
        try:
            found = await self._run(REDEEM, (key,), (bound, int(starts), self._connection.layout.stream("")))
        except GatewayError:
            if not known:
                raise
            found = ()
        if not found:  # Redis is away or has lost it: it is still good for the stream that this node has
            return self.local.redeem(text, route, address, now, proof, starts=starts) if known else None
        sealed, stream, used, needs_proof, there, claimed = found
        principal = _principal(self._seal_of(text).unseal(key, sealed))
        if principal is None or (principal.expires is not None and now >= principal.expires):
            return None
        stream_id = stream.decode()
        if stream_id and not there and not self.local.exists(stream_id, principal.owner):
            return None
        if needs_proof and not proof(stream_id):
            return None
        if not stream_id and claimed >= 0:
            if claimed > STARTING_MS:
                return None
            raise GatewayError("auth_unavailable", retry_after=SOON, detail="the stream of the ticket is being started")
        ticket = SharedTicket(ticket_key(text), self._assured.get(digest, principal), stream_id, digest)
        ticket.route, ticket.address, ticket.used = route, address, bool(used)
        return ticket

    async def claim(self, ticket: Ticket, life: float) -> None:
        """This request may start the ticket's stream, and no other one. You must call `use` or `release` afterwards.

        Args:
            ticket: as `redeem` gave it.
            life: seconds for which the stream can be read at most.

        Raises:
            GatewayError: `auth_unavailable`: another request was first, whose stream this one may come back for; or
                Redis is away.
        """
        if not isinstance(ticket, SharedTicket):
            raise GatewayError("unauthorized")
        claim = secrets.token_urlsafe(9)
        try:
            won = await self._run(CLAIM, self._keys(ticket), (ticket.digest, claim, _ms(life)))
        except BaseException:  # also of a client that left: nobody knows whether Redis did it
            self._release(ticket, claim)
            raise
        if not won:
            raise GatewayError("auth_unavailable", retry_after=SOON, detail="the stream of the ticket is being started")
        ticket.claim = claim

    def release(self, ticket: Ticket) -> None:
        """No stream was started, so that the ticket may be used again."""
        if isinstance(ticket, SharedTicket) and ticket.claim:
            claim, ticket.claim = ticket.claim, ""
            self._release(ticket, claim)

    def starts(self, ticket: Ticket) -> bool:
        """Whether the ticket may start a stream now."""
        return isinstance(ticket, SharedTicket) and ticket.claim != "" and not ticket.stream_id

    def use(self, ticket: Ticket, stream_id: str, ttl: float, life: float) -> None:
        """The ticket gives this stream and no other from now on; for `ttl` seconds without a proof."""
        if not isinstance(ticket, SharedTicket):
            return
        if not ticket.used:
            keys, arguments = self._keys(ticket), (ticket.digest, stream_id, _ms(ttl), _ms(life), ticket.claim)
            self._later(("use", ticket.digest), USE, keys, arguments)
        ticket.used, ticket.stream_id, ticket.until, ticket.claim = True, stream_id, time.time() + ttl, ""
        self.local.keep(ticket)

    def read_out(self, ticket: Ticket) -> None:
        """The ticket's stream was read to its end."""
        self.local.read_out(ticket)
        if isinstance(ticket, SharedTicket):
            self._later(("out", ticket.digest), READ_OUT, (self._name(ticket.digest),), ())

    def of(self, principal: str) -> str:
        """The name of the key with the tickets of this principal, `kind:id`."""
        return f"{self._connection.layout.prefix}:tp:{self._seal.digest('principal', principal)}"

    @property
    def prefix(self) -> str:
        """What the names of all tickets begin with."""
        return self._name("")

    async def begin(self) -> None:
        """Redis is there: what waits is written."""
        await self._backlog.begin()

    async def written(self) -> None:
        """Returns when nothing is on its way to Redis."""
        await self._backlog.written()

    async def close(self) -> None:
        """Waits a moment for what can still be written."""
        await self._backlog.close()

    def _release(self, ticket: SharedTicket, claim: str) -> None:
        self._later(("release", ticket.digest), RELEASE, self._keys(ticket), (ticket.digest, claim))

    def _later(
        self, key: tuple[str, str], script: Script, keys: tuple[str, ...], arguments: tuple[str | int, ...]
    ) -> None:
        async def write() -> None:
            await self._connection.run(script, keys, arguments)

        self._backlog.put(key, write)

    async def _run(self, script: Script, keys: tuple[str, ...], arguments: tuple[bytes | str | int, ...]) -> Any:
        try:
            return await self._connection.run(script, keys, arguments)
        except StoreAwayError as error:
            raise _away(error) from None

    def _keys(self, ticket: SharedTicket) -> tuple[str, str]:
        return self._name(ticket.digest), self.of(str(ticket.principal))

    def _name(self, digest: str) -> str:
        return f"{self._connection.layout.prefix}:t:{digest}"

    def _digest(self, text: str) -> str:
        return self._seal.digest("ticket", text)

    def _seal_of(self, text: str) -> Seal:
        return Seal(f"{self._secret}\0{text}")


def _principal(facts: bytes | None) -> Principal | None:
    if facts is None:
        return None
    kind, id_, plan, scopes, expires = msgspec.json.decode(facts)
    return Principal(kind, id_, plan, frozenset(scopes), expires)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _away(error: Exception) -> GatewayError:
    return GatewayError("auth_unavailable", retry_after=COME_BACK, detail=f"the store of tickets is away: {error}")
