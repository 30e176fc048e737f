"""What clients and runs spend, as values: what bounds one of them, how it stands, and that a bound is met.

See also: spend_file (the table of all of them), budgets (what becomes of it).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Final

import msgspec

NANO: Final = 1_000_000_000


class Limit(msgspec.Struct, frozen=True):
    """What bounds a row: nano-dollars in its period, and calls at a time; None: nothing."""

    name: str
    nano_usd: int | None = None
    per: str = "total"
    most_in_flight: int | None = None
    is_run: bool = False


class RowSums(msgspec.Struct, frozen=True, array_like=True):
    """What one host, or several together, have spent and reserved in a row; `day` and `month` are those counted in."""

    day: int = 0
    month: int = 0
    of_day: int = 0
    of_month: int = 0
    total: int = 0
    reserved: int = 0
    in_flight: int = 0


class Spend(msgspec.Struct, frozen=True):
    """A row as it stands, in nano-dollars; `spent` by period."""

    spent: Mapping[str, int]
    reserved: int
    in_flight: int


class Full(Exception):
    """A limit leaves no room for a call; `spend` is how its row stands."""

    def __init__(self, limit: Limit, spend: Spend, *, is_busy: bool) -> None:
        super().__init__(limit.name)
        self.limit = limit
        self.spend = spend
        self.is_busy = is_busy


def to_periods(moment: float) -> tuple[int, int]:
    """Return the numbers of the day and the month (UTC) of a moment in Unix time."""
    date = time.gmtime(moment)
    return int(moment // 86_400), date.tm_year * 12 + date.tm_mon


def hash_name(name: str) -> bytes:
    """Return what tells the row of a client or run from the others."""
    return hashlib.sha256(name.encode()).digest()[:16]
