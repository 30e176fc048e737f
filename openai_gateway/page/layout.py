"""What is on the status page, in its order: charts with their lines, tables with their columns.

See also: view and charts (the figures in it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its lines as (figure of `charts.make_charts`, label); `unit` is count, ms or usd."""

    title: str
    unit: str
    empty: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: in `header` columns are parted by `|`; `#` marks a numeric one.

    `+` marks a column that is left out on narrow screens, `-` one that takes part only on wide ones.

    `note` says what to know of it; the rows of one that `moves` stand still while they are pointed at.
    """

    id: str
    title: str
    header: str
    empty: str
    note: str = ""
    moves: bool = False

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Return the heading and the CSS classes of each column."""
        marks = (("#", "n"), ("+", "w"), ("-", "x"))
        names = [name.strip() for name in self.header.split("|")]
        return [(name.lstrip("#+-"), " ".join(word for mark, word in marks if mark in name)) for name in names]


CHARTS: Final = (
    Chart("Calls per second", "count", "no calls", (("calls", "all"), ("errors", "errors"))),
    Chart(
        "In flight", "count", "nothing in flight", (("in_flight", "in flight"), ("queued", "queued"), ("cap", "slots"))
    ),
    Chart("Latency", "ms", "no calls", (("p50_ms", "p50"), ("p95_ms", "p95"), ("p99_ms", "p99"))),
    Chart("Time to first token", "ms", "no calls", (("first_byte_p50_ms", "p50"), ("first_byte_p95_ms", "p95"))),
    Chart("Tokens per minute", "count", "no tokens", (("input_tokens", "input"), ("output_tokens", "output"))),
    Chart("Cost per minute", "usd", "no cost known", (("cost_usd", "US dollars"),)),
)
TABLES: Final = (
    Table(
        "limits",
        "Rate limits",
        "Server | Limit on | Left | #+Left | #+Of | #-All back in | +Found out by | #+A minute | #-Free now | #-Margin"
        " | #-Others/min | #Used, 1 min | #-Used, 1 h | #429s, 1 min | #-429s, 1 h | +Waiting",
        "The upstream has told of no rate limits yet.",
        "As the upstream's last answer told them (Left, Of), and as the gateway has found them out. Used is a share of"
        " what the limit let in; 429s are a share of the attempts.",
    ),
    Table("workers", "Workers", "Process | Since | #In flight | #Queued", "No workers."),
    Table(
        "errors",
        "Last 50 errors",
        "Time | #Times | Status | Server | +Code | What to do | +Attempts | #+Duration | -API | -Rollout | -Request id"
        " | -Client's id | -Upstream's id",
        "No errors yet.",
        "Equal ones in one row, with the latest of them; times are the calls' arrivals.",
        moves=True,
    ),
    Table(
        "recent",
        "Last 50 calls",
        "Time | Status | Server | +Model | +Attempts | #+Queued | #First token | #Duration | #+Tokens in | #+Tokens out"
        " | #+Cost | -API | -Rollout | -Request id | -Client's id",
        "No calls yet.",
        "The latest first; calls in flight are not among them.",
        moves=True,
    ),
    Table(
        "minutes",
        "Last five minutes",
        "From | #Calls | #Errors | #p50 | #p95 | #+p99 | #+First token p50 | #+Tokens in | #+Tokens out | #Cost",
        "No calls yet.",
    ),
    Table(
        "clients",
        "Clients",
        "Client | Used | #Budget | #Spent | #+Reserved | #Under way | #Calls | #Errors | #+Refused | #+Tokens in"
        " | #+Tokens out",
        "No clients have names: clients_file gives them names, keys and budgets.",
        "Spent and reserved are those of the budget's period (UTC); sums are since the start.",
    ),
    Table(
        "servers",
        "Servers",
        "Server | +Model | +Endpoint | #In flight | #Slots | #Queued | #Calls | #+Failed | #+Client left | #+Retries"
        " | #Cost | #+Tokens in | #-Cached | #+Tokens out | #-Reasoning | #-No usage",
        "No servers.",
        "Sums are over all workers there were since the start. Saved is what kept answers would have cost.",
    ),
)
