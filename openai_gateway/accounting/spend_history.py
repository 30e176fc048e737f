"""Sums up from the usage logs what clients have spent, when the gateway starts.

A log may have been rotated to `<path>.<anything>` or `<path>-<date>`, gzipped or not; all its parts are read, a line at
a time. See also: budgets (what becomes of the sums).
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from openai_gateway.accounting.spend import NANO, to_periods


class _Line(msgspec.Struct):
    time: float
    client: str | None = None
    charged_usd: float | None = None


_decoder = msgspec.json.Decoder(_Line)
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def sum_up_spend(paths: Iterable[str], now: float) -> dict[str, dict[str, int]]:
    """Return the nano-dollars that each client was charged this day, this month and in all. Raises OSError."""
    this_day, this_month = to_periods(now)
    sums: dict[str, dict[str, int]] = {}
    for line in _read_all(paths):
        # Most lines of most logs are of nobody with a name.
        if b'"client":"' not in line:
            continue
        try:
            found = _decoder.decode(line)
        except _BROKEN:
            continue
        if found.client is None or not found.charged_usd:
            continue
        nano = round(found.charged_usd * NANO)
        day, month = to_periods(found.time)
        spent = sums.setdefault(found.client, {"day": 0, "month": 0, "total": 0})
        spent["day"] += nano if day == this_day else 0
        spent["month"] += nano if month == this_month else 0
        spent["total"] += nano
    return sums


def _read_all(paths: Iterable[str]) -> Iterator[bytes]:
    for path in paths:
        # logrotate's `dateext` puts a hyphen between.
        for part in [*sorted(glob.glob(f"{glob.escape(path)}[.-]*")), *glob.glob(glob.escape(path))]:
            try:
                with gzip.open(part, "rb") if part.endswith(".gz") else open(part, "rb") as file:
                    yield from file
            except (EOFError, zlib.error) as error:
                raise OSError(f"{part} can't be read ({error})") from None
