"""What clients and runs have spent on other hosts: each host says its own sums, through Redis, and adds up the others'.

The strategy. In Redis, a client or run has a hash with a field for each host: what that host has spent and reserved. A
host writes its own field only, whole each time, from the table that it keeps anyway: nothing is counted twice, and what
Redis forgets is written again, also what a host said that has ended, by whoever heard it. The others' sum goes into the
table, where every worker finds it. So a budget is exceeded at most by what is admitted on other hosts between two
rounds. What a host reserves counts as long as it keeps saying so.

The money of a host whose table was lost stays in Redis under that table's name. See also: spend_file (the table),
budgets, limits.redis_exchange (when).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from openai_gateway.accounting.spend import RowSums
from openai_gateway.accounting.spend_file import SpendFile
from openai_gateway.limits.host_limiter import PERIOD_S
from openai_gateway.limits.leadership import Leadership
from openai_gateway.limits.redis_link import Command

_KEY: Final = "openai-gateway:spend:"
_KEPT_S: Final = 400 * 86_400
# What a host that says nothing more had reserved is free after so long.
_RESERVED_S: Final = 10.0
# Clients with nothing under way take turns if there are more.
_MOST_IDLE: Final = 100
_NOTHING: Final = RowSums()


class _Said(msgspec.Struct, array_like=True, frozen=True):
    at: float
    sums: RowSums


class _Row:
    """A client or run: what each other host said of it, and what this one last said."""

    __slots__ = ("others", "said", "unsaid")

    def __init__(self) -> None:
        self.others: dict[str, _Said] = {}
        self.said: RowSums | None = None
        # Hosts whose word Redis has lost.
        self.unsaid: list[str] = []


class SpendPart:
    """This host's part in sharing budgets; `path` is that of the table, `names` are clients with a budget."""

    name = "spend"
    period_s = PERIOD_S
    channel = ""
    is_listening = False

    def __init__(self, path: str, open_file: Callable[[], SpendFile], names: Iterable[str]) -> None:
        self._path = Path(path)
        self._open_file = open_file
        self._names = tuple(names)
        self._leadership: Leadership | None = None
        self._rows: dict[bytes, _Row] = {}
        self._own: dict[bytes, RowSums] = {}
        self._asked: list[bytes] = []
        self._turn = 0
        self._is_away = False
        self.wake: Callable[[], None] = lambda: None

    def lead(self, now: float) -> bool:
        """Tell whether this worker speaks for its host; as long as nobody has a budget, there is nothing to say."""
        if not self._names and not self._path.exists():
            return False
        if self._leadership is None:
            self._leadership = Leadership(self._path.with_name(f"{self._path.name}.leader"))
        return self._leadership.confirm(now)

    def is_urgent(self, now: float) -> bool:
        """Tell whether the next round has to be at once: none of these has."""
        return False

    def hear(self, message: bytes, now: float, clock: float) -> None:
        """Write down what was said at once: nothing is."""

    def make_commands(self, now: float, clock: float) -> list[Command]:
        """Return what to ask Redis, whose time is `clock`."""
        file = self._open_file()
        self._own = file.read_own(self._names, time.time())
        self._rows = {key: self._rows.get(key) or _Row() for key in self._own}
        self._asked = self._choose()
        commands: list[Command] = []
        for key in self._asked:
            row, own, name = self._rows[key], self._own[key], _KEY + key.hex()
            commands += [("HSETNX", name, host, msgspec.json.encode(row.others[host])) for host in row.unsaid]
            # Nothing is said before the first answer: if the table is new, Redis knows more of this host than it.
            if row.said is not None and (row.said != own or own.in_flight):
                commands.append(("HSET", name, file.host, msgspec.json.encode(_Said(clock, own))))
                commands.append(("EXPIRE", name, _KEPT_S))
            commands.append(("HGETALL", name))
        return commands

    def take(self, replies: list[Any], now: float, clock: float) -> list[Command]:
        """Write down what Redis said; return what to tell it next time, besides: nothing."""
        file = self._open_file()
        others: dict[bytes, RowSums] = {}
        own: dict[bytes, RowSums] = {}
        found = [reply for reply in replies if isinstance(reply, dict)]
        for key, texts in zip(self._asked, found, strict=True):
            row, said = self._rows[key], _read(texts)
            earlier = said.pop(file.host, None)
            if row.said is None and earlier is not None:
                own[key] = earlier.sums
            row.said = self._own[key] if earlier is not None and row.said is not None else _NOTHING
            row.unsaid = [host for host in row.others if host not in said]
            row.others.update(said)
            others[key] = _add(row.others.values(), self._own[key], clock)
        file.write_others(others, own, time.time())
        self._is_away = False
        return []

    def miss(self, now: float) -> None:
        """Go on without, for Redis is away: with the others' money as last heard, and none of their calls."""
        if self._is_away:
            return
        self._is_away = True
        others = {
            key: msgspec.structs.replace(_add(row.others.values(), self._own[key], -math.inf), in_flight=0)
            for key, row in self._rows.items()
            if row.others
        }
        self._open_file().write_others(others, {}, time.time())

    def _choose(self) -> list[bytes]:
        """Return the rows of this round: those in use, and of the others as many as it is their turn."""
        busy = [key for key, own in self._own.items() if own.in_flight or own.reserved or self._rows[key].said is None]
        idle = sorted(self._own.keys() - set(busy))
        begin = self._turn % max(1, len(idle))
        self._turn += _MOST_IDLE
        return [*busy, *(idle[begin:] + idle[:begin])[:_MOST_IDLE]]


def _read(texts: Mapping[bytes, bytes]) -> dict[str, _Said]:
    found: dict[str, _Said] = {}
    for host, text in texts.items():
        try:
            found[host.decode("latin-1")] = msgspec.json.decode(text, type=_Said)
        except msgspec.MsgspecError:
            continue
    return found


def _add(said: Iterable[_Said], own: RowSums, clock: float) -> RowSums:
    """Return the sum of what hosts have spent in this host's day and month, and reserve now."""
    sums = [each.sums for each in said]
    alive = [each.sums for each in said if clock - each.at < _RESERVED_S]
    return RowSums(
        own.day,
        own.month,
        sum(each.of_day for each in sums if each.day == own.day),
        sum(each.of_month for each in sums if each.month == own.month),
        sum(each.total for each in sums),
        sum(each.reserved for each in alive),
        sum(each.in_flight for each in alive),
    )
