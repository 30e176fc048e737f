"""Adds each finished call of this worker to its totals.

This runs for every call, so it only counts and adds; percentiles and rates are worked out when somebody asks for
them. See also: totals, the structs that are counted in; spans, which makes percentiles of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from openai_gateway.accounting.tally import to_step
from openai_gateway.accounting.totals import (
    KEPT_CALLS,
    KEPT_MINUTES,
    KEPT_SECONDS,
    Account,
    ClientSums,
    Consumption,
    Saved,
    Second,
    ServerState,
    Totals,
)
from openai_gateway.wire.call import CallRecord

# No upstream has more models; one that makes up a name for each call must not fill the memory.
_MOST_MODELS: Final = 200
_MOST_CODES: Final = 100
_OTHER: Final = "other"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Aggregate:
    """The totals of this worker.

    `models` has the configured model of each server, `get_states` returns their states, `count_lost` how many records
    could not be written, by where, `count_websockets` how many are open.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        get_states: Callable[[], dict[str, ServerState]],
        count_lost: Callable[[], dict[str, int]] = dict,
        count_websockets: Callable[[], int] = int,
    ) -> None:
        self._models = models
        self._get_states = get_states
        self._count_lost = count_lost
        self._count_websockets = count_websockets
        self._codes = {""}
        self.totals = Totals(pid=os.getpid(), started=time.time())
        self.calls = 0

    def observe(self, record: CallRecord) -> None:
        """Count a call that is over."""
        self.calls += 1
        if record.client is not None:
            self.totals.clients.setdefault(record.client, ClientSums()).observe(record)
        account = self._account(record)
        status = record.status
        code = record.error_code or ""
        if code not in self._codes:
            code = self._learn(code)
        key = (f"{status // 100}xx" if status is not None else "none", record.outcome, code)
        account.calls[key] = account.calls.get(key, 0) + 1
        account.attempts += record.attempts
        for reason in record.retries:
            account.retries[reason] = account.retries.get(reason, 0) + 1
        account.request_bytes += record.request_bytes
        account.answer_bytes += record.answer_bytes
        account.queue_wait.observe(record.queue_wait_s)
        account.duration.observe(record.duration_s)
        second = self.second()
        second.calls += 1
        step = to_step(record.duration_s)
        second.durations[step] = second.durations.get(step, 0) + 1
        # An error's first byte is no first token.
        if record.first_byte_s is not None and status is not None and status < 400:
            account.first_byte.observe(record.first_byte_s)
            step = to_step(record.first_byte_s)
            second.first_bytes[step] = second.first_bytes.get(step, 0) + 1
        if record.is_replayed:
            self.totals.saved.setdefault(record.server, Saved()).observe(record)
        elif record.usage is not None:
            self._consume(record, second)
        elif record.is_metered:
            account.without_usage += 1
        if record.outcome == "client_gone":
            account.client_gone += 1
        elif record.outcome == "failed" or (status or 0) >= 400:
            second.errors += 1
            _push(self.totals.errors, record)
        _push(self.totals.recent, record)

    def second(self) -> Second:
        """Return the count of the present second."""
        seconds = self.totals.seconds
        now = int(time.time())
        # A clock that was set back goes on in the last second there is.
        if not seconds or seconds[-1].t < now:
            seconds.append(Second(now))
            if len(seconds) > KEPT_SECONDS:
                self._roll_up(seconds.pop(0))
        return seconds[-1]

    def look(self) -> dict[str, ServerState]:
        """Note in the totals how the servers are now, and return it."""
        states = self.totals.states = self._get_states()
        self.totals.lost = self._count_lost()
        self.totals.websockets = self._count_websockets()
        in_flight = sum(state.in_flight for state in states.values())
        queued = sum(state.queued for state in states.values())
        if in_flight or queued:
            second = self.second()
            second.in_flight, second.queued = max(second.in_flight, in_flight), max(second.queued, queued)
        # With no descriptor left, the last figure stays.
        with contextlib.suppress(OSError):
            self.totals.resident_bytes = _resident_bytes()
        return states

    def _roll_up(self, second: Second) -> None:
        minutes, minute = self.totals.minutes, second.t - second.t % 60
        if not minutes or minutes[-1].t < minute:
            minutes.append(Second(minute))
            if len(minutes) > KEPT_MINUTES:
                del minutes[0]
        minutes[-1].extend(second)

    def _learn(self, code: str) -> str:
        if len(self._codes) >= _MOST_CODES:
            return _OTHER
        self._codes.add(code)
        return code

    def _account(self, record: CallRecord) -> Account:
        key = (record.server, record.api)
        account = self.totals.accounts.get(key)
        if account is None:
            account = self.totals.accounts[key] = Account()
        return account

    def _consume(self, record: CallRecord, second: Second) -> None:
        usage = record.usage
        assert usage is not None
        key = (record.server, record.model or self._models[record.server])
        consumption = self.totals.consumption.get(key)
        if consumption is None:
            if len(self.totals.consumption) >= _MOST_MODELS:
                key = (record.server, _OTHER)
            consumption = self.totals.consumption.setdefault(key, Consumption())
        consumption.add_usage(usage)
        second.input_tokens += usage.input_tokens
        second.output_tokens += usage.output_tokens
        if record.cost_usd is not None:
            consumption.cost_usd += record.cost_usd
            consumption.priced_calls += 1
            second.cost_usd += record.cost_usd


def _push(records: list[CallRecord], record: CallRecord) -> None:
    records.append(record)
    if len(records) > KEPT_CALLS:
        del records[0]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
