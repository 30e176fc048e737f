"""How many calls each host may have in flight, so that together they never have more than the cap: leases in Redis.

The strategy. A host may have as many calls in flight as it has permits, and never starts one more. Four times a second
it asks for permits by what it has in flight and waiting, and says how many it keeps; what it doesn't keep it has
stopped to use before. Redis gives it more only of what no other host has. So at each moment the sum is at most the cap.

- A host's fair part is by its demand; if that is less than the cap, the rest is divided, so that a call finds a permit.
  Of permits that don't divide, hosts get one by turns.
- A lease ends `LEASE_S` after its last renewal. A host that couldn't renew in time, for it stood still, starts nothing
  until it has. One that can't reach Redis goes on with the permits that it has: whoever can't reach it either gets no
  more.
- A Redis that was emptied or started again knows nothing, so for `_GRACE_S` it gives nothing away, and hosts say what
  they have. (Its own memory of before may be older than theirs: it is dropped.) One that never had permits starts none
  meanwhile.

Not exact therefore: a host that is cut off from Redis, or stands still with calls under way, for longer than its
lease, while others reach it; and hosts that were never in touch with a Redis that is away, each of which takes the
cap as its own. See also: host_exchange (who asks Redis), sharing (the cap of one host).
"""

from __future__ import annotations

from typing import Final

LEASE_S: Final = 10.0
# What clocks may differ by, and a round trip may take.
_MARGIN_S: Final = 0.5
_GRACE_S: Final = 3.0

# KEYS: the table; ARGV: host, cap, permits kept, demand, number of the request, lease and grace in ms.
# An entry of the table: permits, demand, number, end of the lease (ms).
GRANT: Final = r"""
local me, cap, keep, demand = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local number, lease, grace = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
if redis.call('HGET', KEYS[1], 'run') ~= run then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'run', run, 'born', now)
end
local born = tonumber(redis.call('HGET', KEYS[1], 'born'))
if born > now then -- The clock was set back.
  born = now
  redis.call('HSET', KEYS[1], 'born', born)
end
local all = redis.call('HGETALL', KEYS[1])
local asked, taken, hosts = {[me] = demand}, 0, {me}
for i = 1, #all, 2 do
  local permits, wants, last, ends = string.match(all[i + 1], '^(%d+) (%d+) (%d+) (%d+)$')
  if permits then
    permits, wants, last, ends = tonumber(permits), tonumber(wants), tonumber(last), tonumber(ends)
    if all[i] == me then
      if last >= number and last - number < lease then return redis.error_reply('STALE request') end
    elseif ends < now then
      redis.call('HDEL', KEYS[1], all[i])
    else
      if ends > now + lease then
        redis.call('HSET', KEYS[1], all[i], permits .. ' ' .. wants .. ' ' .. last .. ' ' .. (now + lease))
      end
      taken = taken + permits
      asked[all[i]] = wants
      hosts[#hosts + 1] = all[i]
    end
  end
end
local sum = 0
for _, wants in pairs(asked) do sum = sum + wants end
local part
if sum <= cap then
  part = demand + math.floor((cap - sum) / #hosts)
else
  part = math.floor(cap * demand / sum)
  local left = cap
  for _, wants in pairs(asked) do left = left - math.floor(cap * wants / sum) end
  table.sort(hosts)
  local turn = math.floor(now / 1000)
  for i = 1, #hosts do
    local host = hosts[(i + turn) % #hosts + 1]
    if left > 0 and asked[host] > math.floor(cap * asked[host] / sum) then
      left = left - 1
      if host == me then part = part + 1 end
    end
  end
end
local mine = math.max(0, math.min(keep, cap - taken))
if now - born >= grace then mine = math.max(mine, math.min(part, cap - taken)) end
redis.call('HSET', KEYS[1], me, string.format('%d %d %d %d', mine, demand, number, now + lease))
redis.call('PEXPIRE', KEYS[1], 3600000)
return {mine, part, #hosts}
"""


class Permits:
    """What this host asks for, by what it was told; `cap` is that of all hosts."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._part: int | None = None
        self._number = 0

    def count_kept(self, permits: int, running: int, waiting: int) -> int:
        """Return how many of its permits a host keeps that has so much in flight and waiting."""
        part = self._part if self._part is not None else running + waiting
        return min(permits, self._cap, max(running, part))

    def make_command(self, table: str, host: str, kept: int, demand: int, clock: float) -> tuple[str | int, ...]:
        """Return what to ask Redis; `clock` is its time, by which a later request is told from an earlier one."""
        self._number = max(self._number + 1, int(clock * 1000))
        times = (self._number, int(LEASE_S * 1000), int(_GRACE_S * 1000))
        return ("EVAL", GRANT, 1, table, host, self._cap, kept, demand, *times)

    def take(self, reply: list[int], asked_at: float) -> tuple[int, float]:
        """Return how many permits the host has now, and until when (monotonic, as `asked_at`)."""
        granted, self._part, _ = reply
        return granted, asked_at + LEASE_S - _MARGIN_S

    def forget(self) -> None:
        """Redis is away: what it last said is no more."""
        self._part = None
