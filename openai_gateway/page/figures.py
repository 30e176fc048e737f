"""Numbers as people read them on the status page.

Three digits that count; an unknown number is a dash, never zero. See also: view, charts, limit_rows (who shows them).
"""

from __future__ import annotations

import time
from typing import Any, Final

# A text from outside may be thousands of signs long.
_MOST_SIGNS: Final = 100
UNKNOWN: Final = "\N{EN DASH}"
_UNITS: Final = ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k"))

# A cell is a text, or [text, class], or [text, "meter", share of 1].
Cell = str | list[Any]
Row = list[Cell]


def to_count(number: float | None) -> str:
    """Return a number of three digits or more, such as `12.3 k`."""
    if number is None:
        return UNKNOWN
    for bound, divisor, unit in _UNITS:
        if number >= bound:
            return f"{_to_three(number / divisor)}{unit}"
    return f"{number:,.0f}"


def to_rate(number: float) -> str:
    """Return a rate, with a decimal if it is small."""
    return f"{number:.1f}" if number < 100 else to_count(number)


def to_duration(milliseconds: float | None) -> str:
    """Return a duration in the unit that fits it."""
    if milliseconds is None:
        return UNKNOWN
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 99.5:
        return f"{_to_three(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{seconds / 3600:.1f} h"


def to_usd(dollars: float | None) -> str:
    """Return US dollars, small amounts with two digits that count."""
    if dollars is None:
        return UNKNOWN
    return (
        f"${dollars:,.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.2g}" if dollars >= 0.0001 else "<$0.0001"
    )


def to_clock(seconds: float) -> str:
    """Return a Unix time as a time of day, UTC as in the log."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


def to_day_and_clock(seconds: float) -> str:
    """Return a Unix time with its day, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _to_three(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"


def clip(text: str | None) -> str:
    """Return a text from outside, cut off if it is long."""
    if not text:
        return ""
    return text if len(text) <= _MOST_SIGNS else text[:_MOST_SIGNS] + "\N{HORIZONTAL ELLIPSIS}"
