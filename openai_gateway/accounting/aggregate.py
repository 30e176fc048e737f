"""Adds each finished call of this worker to its totals.

This runs for every call, so it only counts and adds; percentiles and rates are worked out when somebody asks for
them. See also: totals (the structs that are counted in), spans (which makes percentiles of them).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

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

# More than any upstream has. Bounded, for one that makes up a name for each call would fill the memory.
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
        totals, second = self.totals, self.second()
        code = record.error_code or ""
        if code not in self._codes:
            code = self._learn(code)
        key = (record.server, record.api)
        account = totals.accounts.get(key)
        if account is None:
            account = totals.accounts[key] = Account()
        consumption = self._find_consumption(record) if record.usage is not None and not record.is_replayed else None
        account.observe(record, code)
        second.observe(record)
        if consumption is not None and record.usage is not None:
            consumption.add_usage(record.usage)
            if record.cost_usd is not None:
                consumption.cost_usd += record.cost_usd
                consumption.priced_calls += 1
        elif record.is_replayed:
            totals.saved.setdefault(record.server, Saved()).observe(record)
        if record.client is not None:
            totals.clients.setdefault(record.client, ClientSums()).observe(record)
        if record.outcome == "failed" or (record.outcome != "client_gone" and (record.status or 0) >= 400):
            second.errors += 1
            _push(totals.errors, record)
        _push(totals.recent, record)

    def second(self) -> Second:
        """Return the count of the present second."""
        seconds = self.totals.seconds
        now = int(time.time())
        # While a clock that was set back catches up, calls are counted in the last second there is.
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

    def _find_consumption(self, record: CallRecord) -> Consumption:
        key = (record.server, record.model or self._models[record.server])
        consumption = self.totals.consumption.get(key)
        if consumption is None:
            if len(self.totals.consumption) >= _MOST_MODELS:
                key = (record.server, _OTHER)
            consumption = self.totals.consumption.setdefault(key, Consumption())
        return consumption


def _push(records: list[CallRecord], record: CallRecord) -> None:
    records.append(record)
    if len(records) > KEPT_CALLS:
        del records[0]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
