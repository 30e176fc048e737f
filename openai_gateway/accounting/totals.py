"""What the calls of one worker, or of all workers, add up to: counts, sums and histograms that can be added.

Structs, so that they go between workers as msgpack. See also: aggregate (which counts each call), metrics and
snapshot (which show the totals), shared_files (which carries them from worker to worker).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from openai_gateway.accounting.tally import TokenSums, to_step
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.rate_limits import Attempts, LearnedLimit, RateLimit

# Calls last from 10 ms to half an hour.
BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
_Key = TypeVar("_Key")
KEPT_SECONDS: Final = 300
KEPT_MINUTES: Final = 61
KEPT_CALLS: Final = 50


_REFUSALS: Final = frozenset({"gateway_budget_exceeded", "gateway_client_busy"})


class Histogram(msgspec.Struct):
    """How many values lie up to each of BOUNDS_S (the last count: above), and their sum."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(BOUNDS_S, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Add another histogram."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class Account(msgspec.Struct):
    """The calls to one server through one API; `calls` by (status class, outcome, error code), `retries` by reason."""

    calls: dict[tuple[str, str, str], int] = {}
    retries: dict[str, int] = {}
    attempts: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0
    client_gone: int = 0
    without_usage: int = 0
    queue_wait: Histogram = msgspec.field(default_factory=Histogram)
    first_byte: Histogram = msgspec.field(default_factory=Histogram)
    duration: Histogram = msgspec.field(default_factory=Histogram)

    def observe(self, record: CallRecord, code: str) -> None:
        """Count a call; `code` is its error code as it is counted, "" for none."""
        status = record.status
        key = (f"{status // 100}xx" if status is not None else "none", record.outcome, code)
        self.calls[key] = self.calls.get(key, 0) + 1
        self.attempts += record.attempts
        for reason in record.retries:
            self.retries[reason] = self.retries.get(reason, 0) + 1
        self.request_bytes += record.request_bytes
        self.answer_bytes += record.answer_bytes
        self.client_gone += record.outcome == "client_gone"
        self.without_usage += record.usage is None and record.is_metered and not record.is_replayed
        self.queue_wait.observe(record.queue_wait_s)
        self.duration.observe(record.duration_s)
        # An error's first byte is no first token.
        if record.first_byte_s is not None and status is not None and status < 400:
            self.first_byte.observe(record.first_byte_s)

    def add(self, other: Account) -> None:
        """Add another account."""
        add_counts(self.calls, other.calls)
        add_counts(self.retries, other.retries)
        self.attempts += other.attempts
        self.request_bytes += other.request_bytes
        self.answer_bytes += other.answer_bytes
        self.client_gone += other.client_gone
        self.without_usage += other.without_usage
        self.queue_wait.add(other.queue_wait)
        self.first_byte.add(other.first_byte)
        self.duration.add(other.duration)


class Consumption(TokenSums):
    """The tokens used up at one server by one model, and their cost as far as it is known (`priced_calls`)."""

    cost_usd: float = 0.0
    priced_calls: int = 0

    def add(self, other: Consumption) -> None:
        """Add another one."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Saved(msgspec.Struct):
    """What kept answers have saved at one server: calls, tokens, and their cost as far as it is known."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def observe(self, record: CallRecord) -> None:
        """Count a call that a kept answer was there for."""
        self.calls += 1
        self.usd += record.saved_usd or 0.0
        if record.usage is not None:
            self.input_tokens += record.usage.input_tokens
            self.output_tokens += record.usage.output_tokens

    def add(self, other: Saved) -> None:
        """Add another one."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class ClientSums(msgspec.Struct):
    """The calls of one named client; `refused` are those that its budget, or its other calls, left no room for."""

    calls: int = 0
    errors: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0

    def observe(self, record: CallRecord) -> None:
        """Count a call."""
        self.calls += 1
        self.refused += record.error_code in _REFUSALS
        self.errors += record.outcome == "failed" or (record.status or 0) >= 400
        self.cost_usd += record.cost_usd or 0.0
        if record.usage is not None:
            self.input_tokens += record.usage.input_tokens
            self.output_tokens += record.usage.output_tokens

    def add(self, other: ClientSums) -> None:
        """Add another worker's."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Second(msgspec.Struct):
    """The calls that ended within one second of Unix time, or a minute; latencies as counts by `tally.to_step`."""

    t: int
    calls: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    in_flight: int = 0
    queued: int = 0
    durations: dict[int, int] = {}
    first_bytes: dict[int, int] = {}

    def observe(self, record: CallRecord) -> None:
        """Count a call, but not what a kept answer has saved."""
        self.calls += 1
        usage = record.usage
        if usage is not None and not record.is_replayed:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
            self.cost_usd += record.cost_usd or 0.0
        step = to_step(record.duration_s)
        self.durations[step] = self.durations.get(step, 0) + 1
        if record.first_byte_s is not None and record.status is not None and record.status < 400:
            step = to_step(record.first_byte_s)
            self.first_bytes[step] = self.first_bytes.get(step, 0) + 1

    def add(self, other: Second) -> None:
        """Add the same second of another worker."""
        self._add_calls(other)
        self.in_flight += other.in_flight
        self.queued += other.queued

    def extend(self, other: Second) -> None:
        """Add another second of the same minute: its calls, and the greater of what was in flight."""
        self._add_calls(other)
        self.in_flight = max(self.in_flight, other.in_flight)
        self.queued = max(self.queued, other.queued)

    def _add_calls(self, other: Second) -> None:
        for name in ("calls", "errors", "input_tokens", "output_tokens", "cost_usd"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        add_counts(self.durations, other.durations)
        add_counts(self.first_bytes, other.first_bytes)


class ServerState(msgspec.Struct):
    """How a server is now, in one worker; `cap` None is no cap, `total_cap` holds for all workers (and hosts) together.

    `limits_at` is the Unix time of `rate_limits`.

    `queue_reason` is why calls wait in the queue, `waiting` how many do, by that, over all workers; `retrying` how many
    wait for another attempt, by why the last one failed. `most_in_flight` is how many calls the upstream was found to
    take at a time, None if that is not its limit; `attempts` are those of the last minute and hour. `is_redis_up` tells
    whether its limits are shared with other hosts now (None: they aren't to be), and `hosts` how many there are. The
    `notes` are what its operator should know.
    """

    model: str
    base_url: str
    in_flight: int = 0
    queued: int = 0
    cap: int | None = None
    total_cap: int | None = None
    is_breaker_open: bool = False
    rate_limits: dict[str, RateLimit] = {}
    limits_at: float = 0.0
    learned_limits: dict[str, LearnedLimit] = {}
    most_in_flight: float | None = None
    attempts: Attempts = Attempts()
    waiting: dict[str, int] = {}
    queue_reason: str = ""
    paused_s: float = 0.0
    retrying: dict[str, int] = {}
    is_redis_up: bool | None = None
    hosts: int = 1
    notes: tuple[str, ...] = ()

    @property
    def slots(self) -> int | None:
        """How many calls the upstream gets at a time, at most; None without a cap."""
        return min((cap for cap in (self.cap, self.total_cap) if cap is not None), default=None)


class Totals(msgspec.Struct):
    """All of it for one worker. Keys of `accounts` are (server, API), of `consumption` (server, model).

    `minutes` has what was in seconds that are too long ago for `seconds`. `lost` has how many records could not be
    written, by where: `usage_log` or `captures`. `websockets` are open now.
    """

    pid: int
    started: float
    accounts: dict[tuple[str, str], Account] = {}
    consumption: dict[tuple[str, str], Consumption] = {}
    seconds: list[Second] = []
    minutes: list[Second] = []
    recent: list[CallRecord] = []
    errors: list[CallRecord] = []
    states: dict[str, ServerState] = {}
    clients: dict[str, ClientSums] = {}
    resident_bytes: int = 0
    lost: dict[str, int] = {}
    saved: dict[str, Saved] = {}
    websockets: int = 0

    def add(self, other: Totals) -> None:
        """Add another worker's sums and past calls; its present state stays its own."""
        for key, account in other.accounts.items():
            self.accounts.setdefault(key, Account()).add(account)
        for key, consumption in other.consumption.items():
            self.consumption.setdefault(key, Consumption()).add(consumption)
        for name, sums in other.clients.items():
            self.clients.setdefault(name, ClientSums()).add(sums)
        for name, saved in other.saved.items():
            self.saved.setdefault(name, Saved()).add(saved)
        self.seconds = _add_seconds(self.seconds, other.seconds, KEPT_SECONDS)
        self.minutes = _add_seconds(self.minutes, other.minutes, KEPT_MINUTES)
        self.recent = _latest([*self.recent, *other.recent])
        self.errors = _latest([*self.errors, *other.errors])
        self.started = min(self.started, other.started)
        add_counts(self.lost, other.lost)


def add_counts(mine: dict[_Key, int], theirs: dict[_Key, int]) -> None:
    """Add counts to counts."""
    if not mine:
        mine.update(theirs)
        return
    for key, count in theirs.items():
        mine[key] = mine.get(key, 0) + count


def _add_seconds(mine: Iterable[Second], theirs: Iterable[Second], most: int) -> list[Second]:
    by_time = {second.t: second for second in mine}
    for second in theirs:
        by_time.setdefault(second.t, Second(second.t)).add(second)
    return [by_time[t] for t in sorted(by_time)][-most:]


def _latest(records: list[CallRecord]) -> list[CallRecord]:
    return sorted(records, key=lambda record: record.time + record.duration_s)[-KEPT_CALLS:]
