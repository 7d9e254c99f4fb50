"""The ledger of a principal in Redis, and the one script that decides and counts there.

    <prefix>:q:<digest>            hash   one field for each rate and budget, by the limit's name: `level at held last`
                                          (see `core/bucket.py`; `last` is the number of the last holder); for each
                                          holder of a budget `<name>><lease>`: what it may hand back, and what it took;
                                          for each node `d:<node>`: the number of the last batch that was counted
    <prefix>:q:<digest>:<name>     zset   of a slot limit: a member for each slot, the lease that has it
                                          of a budget: its holders, oldest first

The name of a lease is `<node>:<number>`; `.2` stands behind it for its second slot, and so on.

Invariants:

- The script decides as `core/limiter.py` does. Time is Redis's own, so that the nodes' clocks do not matter.
- The slots of a node whose lease has lapsed are gone for whoever looks next.
- A batch is counted once, however often it is sent: batches of a node are numbered.
- All keys of a ledger expire when nothing is used any more; those of slots also when their node is silent for long.
"""

from typing import Any, Final

from gateway.core.bucket import SLACK
from gateway.core.limits import AHEAD, SHARE_AHEAD, SLOT_WAIT
from gateway.store.layout import ALIVE_MS, WALK, Script

RATE: Final = 1
SLOTS: Final = 2
BUDGET: Final = 3
"""Kinds of limits that have a shared form."""

UNLIMITED: Final = -1
"""Written as the amount of slots that are counted without a limit."""
NEVER: Final = -1
"""The wait for what will never fit."""
DEDUPE_MS: Final = 3000
"""Milliseconds that a ledger lives at least after a numbered batch, so that its repetition is noticed."""

Operation = tuple[Any, ...]
"""
    ("start", lease, units by limit, take)       decides; takes everything if it fits and `take` is true
    ("force", lease, units by limit)             takes everything, unless the lease is known here
    ("more", name, lease, reserved, used)        a running stream takes what it has used beyond, and a share ahead
    ("settle", name, lease, used, reserved)      what was not used is handed back
    ("add", name, units, lease, reserved)        units that were taken while Redis was away; by no lease if it is ""
    ("open", name, members...)                   slots are taken, whether they fit or not
    ("close", name, members...)                  slots are free

`start` is answered with the waits by limit, an empty list for "it was taken"; `more` with `[fits, units]`.
"""

LEDGER: Final = Script(
    """
-- KEYS: ledgers   ARGV: this node, what leases of nodes begin with,
-- MessagePack: for each ledger {{{kind, name, amount, seconds}, ...}, number of the batch or 0, operations}
local node, leases = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local function text(...)
  local parts = {...}
  for i, part in ipairs(parts) do parts[i] = string.format('%.17g', part) end
  return table.concat(parts, ' ')
end

local function numbers(packed)
  local found = {}
  for part in string.gmatch(packed, '%S+') do found[#found + 1] = tonumber(part) end
  return found
end

-- a bucket of which leases may hold a part

local function part_of(b, lease)
  local packed = redis.call('HGET', b.key, b.name .. '>' .. lease)
  if packed then return unpack(numbers(packed)) end
end

local function write_part(b, lease, held, reserved)
  redis.call('HSET', b.key, b.name .. '>' .. lease, text(held, reserved))
end

local function drop(b, lease)
  local held, reserved = part_of(b, lease)
  redis.call('HDEL', b.key, b.name .. '>' .. lease)
  redis.call('ZREM', b.order, lease)
  b.held = redis.call('ZCARD', b.order) > 0 and b.held - (held or 0) or 0
  return held or 0, reserved or 0
end

local function drain(b)
  if b.at > now + 5 then b.at = now end  -- Redis's clock was set back
  if now > b.at then
    b.level = math.max(0, b.level - (now - b.at) * b.amount / b.seconds)
    b.at = now
  end
  while b.held > b.level do
    local oldest = redis.call('ZRANGE', b.order, 0, 0)[1]
    if not oldest then b.held = 0 break end
    local held, reserved = part_of(b, oldest)
    local kept = (held or 0) - (b.held - b.level)
    if kept > SLACK then
      write_part(b, oldest, kept, reserved)
      b.held = b.level
    else
      drop(b, oldest)
    end
  end
end

local function reserve(b, lease, units, before)
  local held, reserved = part_of(b, lease)
  if not held then
    b.last = b.last + 1
    redis.call('ZADD', b.order, b.last, lease)
  end
  write_part(b, lease, (held or 0) + units, math.max(reserved or 0, before) + units)
  b.level = b.level + units
  b.held = b.held + units
end

local function overdraw(b, units)
  b.level = math.max(b.level, math.min(b.level + units, 2 * b.amount))
end

-- slots

local function members_of(lease, units)
  local members = {}
  for n = 1, units do members[n] = lease .. (n > 1 and '.' .. n or '') end
  return members
end

local function open(s, members)
  for _, member in ipairs(members) do s.level = s.level + redis.call('ZADD', s.order, 0, member) end
end

local function count(s)
  -- Members are in order of their names, so those of one node stand together: `;` comes behind `:`.
  local from = '-'
  while true do
    local first = redis.call('ZRANGEBYLEX', s.order, from, '+', 'LIMIT', 0, 1)[1]
    if not first then break end
    local owner = string.match(first, '^[^:]+')
    if owner ~= node and redis.call('EXISTS', leases .. owner) == 0 then
      redis.call('ZREMRANGEBYLEX', s.order, '[' .. owner .. ':', '(' .. owner .. ';')
    end
    from = '[' .. owner .. ';'
  end
  return redis.call('ZCARD', s.order)
end

-- limits of any kind

local function read(key, limits)
  local found, names = {}, {}
  for i, limit in ipairs(limits) do names[i] = limit[2] end
  local packed = redis.call('HMGET', key, unpack(names))
  for i, limit in ipairs(limits) do
    local l = {kind = limit[1], name = limit[2], amount = limit[3], seconds = limit[4], key = key}
    l.order = key .. ':' .. l.name
    if l.kind == SLOTS then
      l.level = count(l)
    else
      local n = packed[i] and numbers(packed[i]) or {0, now, 0, 0}
      l.level, l.at, l.held, l.last = n[1], n[2], n[3], n[4]
      drain(l)
    end
    found[i] = l
    found[l.name] = l
  end
  return found
end

local function wait(l, units)
  if units <= 0 then return 0 end
  if l.kind == SLOTS then
    if l.amount == UNLIMITED or l.level + units <= l.amount then return 0 end
    return units <= l.amount and SLOT_WAIT or NEVER
  end
  if units > l.amount then return NEVER end
  local excess = l.level + units - l.amount
  return excess > SLACK and excess * l.seconds / l.amount or 0
end

local function take(l, lease, units)
  if units <= 0 then return end
  if l.kind == SLOTS then
    open(l, members_of(lease, units))
  elseif l.kind == BUDGET then
    reserve(l, lease, units, 0)
  else
    l.level = l.level + units
  end
end

local function knows(l, lease)
  if l.kind == SLOTS then return redis.call('ZSCORE', l.order, lease) end
  return l.kind == BUDGET and part_of(l, lease)
end

local function write(key, limits, numbered)
  local lives, slots = numbered and DEDUPE_MS or 0, false
  for _, l in ipairs(limits) do
    if l.kind == SLOTS then
      redis.call('PEXPIRE', l.order, ALIVE_MS)
    elseif l.level > 0 then
      redis.call('HSET', key, l.name, text(l.level, l.at, l.held, l.last))
      if l.amount > 0 then lives = math.max(lives, math.ceil(l.level * l.seconds / l.amount * 1000) + 1) end
    else
      redis.call('HDEL', key, l.name)
    end
  end
  if lives == 0 then redis.call('DEL', key) else redis.call('PEXPIRE', key, lives) end
  for _, l in ipairs(limits) do
    if l.kind == BUDGET then redis.call('PEXPIRE', l.order, math.max(lives, 1)) end
  end
end

-- operations

local does = {}

function does.start(limits, lease, units, takes)
  local waits, fits = {}, true
  for i, l in ipairs(limits) do
    waits[i] = wait(l, units[i])
    fits = fits and waits[i] == 0
  end
  if not (fits and takes) then return waits, true end
  for i, l in ipairs(limits) do take(l, lease, units[i]) end
  return {}
end

function does.force(limits, lease, units)
  for _, l in ipairs(limits) do
    if knows(l, lease) then return end
  end
  for i, l in ipairs(limits) do take(l, lease, units[i]) end
end

function does.more(limits, name, lease, reserved, used)
  local b = limits[name]
  if not b then return {true, math.max(AHEAD, used - reserved)} end  -- a reload took the limit away
  local units = math.max(0, used - reserved)
  if wait(b, units) ~= 0 then return {false, 0} end
  local holders = redis.call('ZCARD', b.order)
  local ahead = math.min(AHEAD, math.floor(SHARE_AHEAD * b.amount / (holders + 1)))
  if wait(b, units + ahead) == 0 then units = units + ahead end
  if units > 0 then reserve(b, lease, units, reserved) end
  return {true, units}
end

function does.settle(limits, name, lease, used, reserved)
  local b = limits[name]
  if not b then return end
  local held, taken = drop(b, lease)
  local unused = math.max(taken, reserved) - used
  if unused >= 0 then
    b.level = math.max(0, b.level - math.min(unused, held))
  else
    overdraw(b, -unused)
  end
end

function does.add(limits, name, units, lease, reserved)
  local b = limits[name]
  if not b then return end
  if lease == '' then overdraw(b, units) else reserve(b, lease, units, reserved) end
end

function does.open(limits, name, ...)
  if limits[name] then open(limits[name], {...}) end
end

function does.close(limits, name, ...)
  local s = limits[name]
  if s then s.level = s.level - redis.call('ZREM', s.order, ...) end
end

local answers = {}
for k, batch in ipairs(cmsgpack.unpack(ARGV[3])) do
  local key, number = KEYS[k], batch[2]
  local limits = read(key, batch[1])
  local counted = number > 0 and tonumber(redis.call('HGET', key, 'd:' .. node) or 0) >= number
  local said, changed = {}, false
  for _, operation in ipairs(batch[3]) do
    local verb = operation[1]
    if verb == 'start' or verb == 'more' or not counted then
      local answer, refused = does[verb](limits, unpack(operation, 2))
      if verb == 'start' or verb == 'more' then said[#said + 1] = answer end
      changed = changed or not refused
    end
  end
  local stands = {}
  for i, l in ipairs(limits) do stands[i] = l.level end
  if changed then
    if number > 0 then redis.call('HSET', key, 'd:' .. node, number) end
    write(key, limits, number > 0)
  end
  answers[k] = {said, stands}
end
return cmsgpack.pack({now, answers})
""".replace("SLOT_WAIT", str(SLOT_WAIT))
    .replace("SHARE_AHEAD", str(SHARE_AHEAD))
    .replace("DEDUPE_MS", str(DEDUPE_MS))
    .replace("ALIVE_MS", str(ALIVE_MS))
    .replace("UNLIMITED", str(UNLIMITED))
    .replace("SLACK", str(SLACK))
    .replace("AHEAD", str(AHEAD))
    .replace("NEVER", str(NEVER))
    .replace("BUDGET", str(BUDGET))
    .replace("SLOTS", str(SLOTS))
)
"""The time, and for each ledger what operations were answered and how high each limit stands: a level, or the slots
that are taken."""

CENSUS: Final = Script(f"""{WALK}
-- This node is entered.   KEYS: the nodes, its mark   ARGV: this node, ms, what leases begin with
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local alive = walk(KEYS[1], ARGV[3])
local mark = redis.call('SET', KEYS[2], '1', 'PX', ARGV[2], 'GET')
return {{#alive, mark and 0 or 1}}
""")
"""How many nodes are alive, and whether the node's mark was missing: then what it wrote before may be missing, too."""
