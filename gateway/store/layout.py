"""The keys in Redis, what stands in them, and the scripts that change several at once.

    <prefix>:n:<node>        string   the node's lease: it lapses when the node has not beaten for a while
    <prefix>:nodes           set      all nodes that have not been found dead
    <prefix>:o:<node>        set      ids of the streams that this node writes
    <prefix>:b:<node>        stream   the node's mailbox: what other nodes ask of it, and its own nudges
    <prefix>:s:<id>          hash     a stream: `a` what a reader needs of it (`Stream.to_json`), `n` the node that
                                      writes it, `e` the epoch, `m` the model, `s` its state,
                                      `k` the milliseconds for which it is kept after its end, `o` its takeovers,
                                      `x` the nodes that passed it on, each behind a comma;
                                      in `a`, the owner is a digest of the principal
    <prefix>:l:<id>          stream   its log; an entry has consecutive events, as `journal.py` writes them
    <prefix>:q:<digest>      hash     what a principal has used of its plan: `ledger.py`
    <prefix>:q:<node>        string   a mark: it is gone where Redis has lost what the node wrote about limits
    <prefix>:a:<digest>      stream   the newest streams of a chat, by a digest of its route, session and owner: `i` is
                                      the id of one
    <prefix>:p:<id>          string   its order (`streams/order.py`), sealed; only while it runs

An entry of a log has the id `<epoch>-<number of its last event>`. So Redis itself refuses to append a window twice, and
refuses what an owner appends that has lost the stream: its epoch is older than the one that stands there. Fields:

    f      number of its first event
    e      the events, as MessagePack: [[type, data, id], …]; the id may be missing
    t      present in the last entry of all: `1` if its last event is the terminal one, `0` if there is none
    o      in an entry without events, takeovers so far: for each, the number of the last event before, joined by commas

Invariants:

- No key names a person, a credential or a prompt: ids of streams and nodes are random.
- Every key expires. A log and its hash live for `ttl` seconds after the end; while it runs, its node lets them live on.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

MAX_DIGESTS: Final = 1024
"""Principals whose digest is kept made."""


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script.

    Attributes:
        text: the script.
        sha: what Redis calls it by.
    """

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


@lru_cache(MAX_DIGESTS)
def digest(owner: str) -> str:
    """What stands in Redis for a principal."""
    return hashlib.sha256(owner.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of the keys."""

    prefix: str

    def lease(self, node: str) -> str:
        """A node's lease."""
        return f"{self.prefix}:n:{node}"

    def owned(self, node: str) -> str:
        """The streams that a node writes."""
        return f"{self.prefix}:o:{node}"

    @property
    def nodes(self) -> str:
        """All nodes that have not been found dead."""
        return f"{self.prefix}:nodes"

    def mailbox(self, node: str) -> str:
        """What other nodes ask of a node."""
        return f"{self.prefix}:b:{node}"

    def stream(self, stream_id: str) -> str:
        """What is known of a stream."""
        return f"{self.prefix}:s:{stream_id}"

    def order(self, stream_id: str) -> str:
        """What a stream's generation was asked for."""
        return f"{self.prefix}:p:{stream_id}"

    def chat(self, route: str, session_id: str, owner: str) -> str:
        """The newest streams of a chat."""
        return f"{self.prefix}:a:{digest(f'{len(route)} {len(session_id)} {route}{session_id}{owner}')}"

    def log(self, stream_id: str) -> str:
        """A stream's events."""
        return f"{self.prefix}:l:{stream_id}"

    def counts(self, node: str) -> str:
        """The mark that what a node wrote about limits is there."""
        return f"{self.prefix}:q:{node}"

    def ledger(self, plan: str, principal: str) -> str:
        """What a principal has used of a plan. Only a digest of both is in the name."""
        digest = hashlib.sha256("\0".join((plan, principal)).encode()).hexdigest()
        return f"{self.prefix}:q:{digest}"


ALIVE_MS: Final = 120_000
"""Milliseconds for which the keys of a running stream live on without a word from its node."""

OPEN: Final = Script("""
-- A stream begins here, or is put back after Redis lost it.
-- KEYS: its hash, its log, the streams of the node, its order, the nodes
-- ARGV: id, about, node, epoch, model, number of its next event, ms,
-- ms that it is kept after its end, order or '', takeovers, '1' if what stands of its log has holes
local stands = redis.call('HMGET', KEYS[1], 'e', 's', 'n')
local epoch = tonumber(stands[1] or 0)
if epoch > tonumber(ARGV[4]) or (epoch == tonumber(ARGV[4]) and stands[3] ~= ARGV[3]) then return epoch end
redis.call('HSET', KEYS[1], 'a', ARGV[2], 'n', ARGV[3], 'e', ARGV[4], 'm', ARGV[5], 's', stands[2] or '', 'k', ARGV[8],
  'o', ARGV[10])
if ARGV[11] == '1' then redis.call('DEL', KEYS[2]) end
local before = string.format('%s-%d', ARGV[4], tonumber(ARGV[6]) - 1)
redis.pcall('XADD', KEYS[2], before, 'f', ARGV[6], 'o', ARGV[10])  -- refused where the log is there already
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[7])
redis.call('SADD', KEYS[5], ARGV[3])  -- else nobody would look for its death
redis.call('PEXPIRE', KEYS[5], ARGV[7])
if ARGV[9] ~= '' then redis.call('SET', KEYS[4], ARGV[9], 'PX', ARGV[7]) end
return 0
""")
"""0, or the epoch of a later owner: then the stream is lost to this node."""

CLOSE: Final = Script("""
-- A stream has ended.
-- KEYS: its hash, its log, the streams of the node, its order   ARGV: id, epoch, state, model, ms
if redis.call('HGET', KEYS[1], 'e') ~= ARGV[2] then return 0 end
if ARGV[5] == '0' then
  redis.call('DEL', KEYS[1], KEYS[2])
else
  redis.call('HSET', KEYS[1], 's', ARGV[3], 'm', ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[4])
return 1
""")

KEEP: Final = Script("""
-- Streams of this node go on.
-- KEYS: its streams, then hash, log and order of each, then their chats   ARGV: ms, how many streams
local function keep(first, last)
  for i = first, last do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
end
local chats = 2 + 3 * ARGV[2]
for i = 2, chats - 1, 3 do
  if redis.call('HGET', KEYS[i], 's') == '' then keep(i, i + 2) end  -- else it has ended since, and has its own time
end
keep(1, 1)
keep(chats, #KEYS)
return #KEYS
""")

STANDS: Final = Script("""
-- What Redis has of streams.   KEYS: hash and log of each
local found = {}
for i = 1, #KEYS, 2 do
  local last = redis.call('XREVRANGE', KEYS[i + 1], '+', '-', 'COUNT', 1)
  local stands = redis.call('HMGET', KEYS[i], 'e', 'n')
  found[#found + 1] = {stands[1] or '', stands[2] or '', last[1] and last[1][1] or ''}
end
return found
""")
"""For each stream: its epoch, its node, and the id of the last entry of its log; empty where they are not there."""

WALK: Final = """
-- The nodes whose lease stands, and those whose lease has lapsed.
local function walk(nodes, leases)
  local alive, dead = {}, {}
  for _, node in ipairs(redis.call('SMEMBERS', nodes)) do
    local found = redis.call('EXISTS', leases .. node) == 1 and alive or dead
    found[#found + 1] = node
  end
  return alive, dead
end
"""
"""The beginning of all scripts that ask which nodes there are."""

NODES: Final = Script(f"""{WALK}
-- This node is entered.   KEYS: the nodes   ARGV: this node, ms, what leases begin with
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {{walk(KEYS[1], ARGV[3])}}
""")
"""Two lists of names: the nodes that are alive, this one too, and those that are dead."""

PASSED: Final = "passed"
"""Stands for a node, and has never a lease: what is passed on is its until another node takes it."""

_LEFT: Final = f"""{WALK}
-- Whether a node is alive that has not passed the stream on. `passed` are those that have, each behind a comma.
local function left(passed, nodes, leases)
  for _, node in ipairs((walk(nodes, leases))) do
    if not string.find(passed .. ',', ',' .. node .. ',', 1, true) then return true end
  end
  return false
end
"""

PASS: Final = Script(f"""{_LEFT}
-- A stream that this node took, and cannot go on with, is for another node, where there is one left.
-- KEYS: its hash, the streams of this node, those that were passed on, the nodes
-- ARGV: id, this node, epoch, what stands for a node, ms, what leases begin with
local stands = redis.call('HMGET', KEYS[1], 'e', 'x')
if stands[1] ~= ARGV[3] then return 1 end
local passed = (stands[2] or '') .. ',' .. ARGV[2]
if not left(passed, KEYS[4], ARGV[6]) then return 0 end
redis.call('HSET', KEYS[1], 'n', ARGV[4], 'x', passed)
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
redis.call('SADD', KEYS[4], ARGV[4])
return 1
""")
"""0 where no other node is left."""

TAKE: Final = Script(f"""{_LEFT}
-- Streams of a dead node become this node's, each with a new epoch that no append of the dead one gets past.
-- Those that this node has passed on are left to the others, while there are any.
-- KEYS: the dead node's lease, its streams, this node's, the nodes   ARGV: dead node, this node, at most, ms, prefix
if redis.call('EXISTS', KEYS[1]) == 1 then return {{}} end
local taken, kept = {{}}, {{}}
for _, id in ipairs(redis.call('SPOP', KEYS[2], ARGV[3])) do
  local hash, log = ARGV[5] .. ':s:' .. id, ARGV[5] .. ':l:' .. id
  local stands = redis.call('HMGET', hash, 'n', 'e', 'k', 'm', 'o', 'x')
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local passed = stands[6] or ''
  local mine = string.find(passed .. ',', ',' .. ARGV[2] .. ',', 1, true)
  if stands[1] == ARGV[1] and mine and left(passed, KEYS[4], ARGV[5] .. ':n:') then
    kept[#kept + 1] = id
  elseif stands[1] == ARGV[1] and last[1] then
    local epoch = tonumber(stands[2]) + 1
    local number = tonumber(string.match(last[1][1], '-(%d+)$'))
    local takeovers = stands[5] and stands[5] ~= '' and stands[5] .. ',' or ''
    takeovers = takeovers .. string.format('%d', number)
    redis.call('HSET', hash, 'n', ARGV[2], 'e', epoch, 'o', takeovers)
    redis.call('XADD', log, string.format('%d-%d', epoch, number), 'f', string.format('%d', number + 1), 'o', takeovers)
    redis.call('PEXPIRE', hash, ARGV[4])
    redis.call('PEXPIRE', log, ARGV[4])
    redis.call('PEXPIRE', ARGV[5] .. ':p:' .. id, ARGV[4])
    redis.call('SADD', KEYS[3], id)
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
    taken[#taken + 1] = {{id, epoch, number, stands[3], stands[4], passed}}
  elseif stands[1] == ARGV[1] then
    redis.call('DEL', hash)  -- its log is lost
  end
end
for _, id in ipairs(kept) do redis.call('SADD', KEYS[2], id) end
if kept[1] then redis.call('PEXPIRE', KEYS[2], ARGV[4]) end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[4], ARGV[1]) end
return taken
""")
"""For each stream that was taken: its id, the new epoch, the number of its last event, the
milliseconds for which it is kept after its end, the model, the nodes that passed it on."""
