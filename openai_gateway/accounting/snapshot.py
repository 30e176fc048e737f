"""Puts the books of all workers together, keeps this worker's on the shelf, and shows them to the status page.

Prometheus' text is `metrics`'.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from openai_gateway import __version__
from openai_gateway.accounting.aggregate import Aggregate
from openai_gateway.accounting.shared_files import SharedFiles
from openai_gateway.accounting.spans import to_series, to_span, to_spans
from openai_gateway.accounting.totals import KEPT_SECONDS, Consumption, ServerState, Totals
from openai_gateway.remedies import to_advice
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.rate_limits import RateLimit

_log = logging.getLogger("openai_gateway")
_INTERVAL_S: Final = 0.5


class Snapshots:
    """What all workers of a master have done and are doing; with no shelf, this worker only."""

    def __init__(self, keeper: Aggregate) -> None:
        self._keeper = keeper
        self._shelf: SharedFiles | None = None
        self._published: Any = None
        self._is_failing = False

    def share(self, shelf: SharedFiles) -> None:
        """Keep this worker's books on a shelf from now on, twice a second while they change."""
        self._shelf = shelf
        self.publish()
        threading.Thread(target=self._publish_on, name="books", daemon=True).start()

    def publish(self) -> None:
        """Put the books on the shelf if they have changed; a failure is logged once until it is over."""
        try:
            states = self._keeper.look()
            now = (self._keeper.entries, [(state.in_flight, state.queued) for state in states.values()])
            if self._shelf is not None and now != self._published:
                self._shelf.write(self._keeper.books)
                self._published = now
        # Whatever it is: the rounds to come must not end with this one.
        except Exception as error:
            if not self._is_failing:
                self._is_failing = True
                _log.warning("other workers' /metrics and /status miss this one's latest calls: %r", error)
        else:
            self._is_failing = False

    def _publish_on(self) -> None:
        while True:
            time.sleep(_INTERVAL_S)
            self.publish()

    def total(self) -> tuple[Totals, list[Totals]]:
        """Return the sums over all workers there are and were, and the books of each that lives."""
        self._keeper.look()
        own = self._keeper.books
        living, ended = self._shelf.read_others() if self._shelf is not None else ([], [])
        total = Totals(pid=0, started=own.started)
        for books in (own, *living, *ended):
            total.add(books)
        return total, [own, *living]

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain values, as the status page wants it."""
        total, workers = self.total()
        now = time.time()
        return {
            "time": now,
            "version": __version__,
            "started": total.started,
            "workers": [_show_worker(books) for books in sorted(workers, key=lambda books: books.pid)],
            "servers": [_show_server(name, state, total) for name, state in to_states(workers).items()],
            "last_10_s": to_span(second for second in total.seconds if now - 11 < second.t <= now - 1),
            "last_minute": to_span(second for second in total.seconds if second.t > now - 60),
            "minutes": to_spans(total.seconds, int(now), length_s=KEPT_SECONDS, step_s=60)[::-1],
            "series": to_series(total.seconds, int(now)),
            "recent": [_show_call(record) for record in reversed(total.recent)],
            "errors": [_show_error(record) for record in reversed(total.errors)],
        }


def to_states(workers: Iterable[Totals]) -> dict[str, ServerState]:
    """Return how each server is now over all workers: sums, any open breaker, the latest rate limits."""
    states: dict[str, ServerState] = {}
    for books in workers:
        for name, theirs in books.states.items():
            state = states.setdefault(name, ServerState(theirs.model, theirs.base_url))
            state.in_flight += theirs.in_flight
            state.queued += theirs.queued
            state.cap = None if theirs.cap is None else (state.cap or 0) + theirs.cap
            state.is_breaker_open = state.is_breaker_open or theirs.is_breaker_open
            if theirs.limits_at >= state.limits_at:
                state.rate_limits, state.limits_at = theirs.rate_limits, theirs.limits_at
    return states


def _show_worker(books: Totals) -> dict[str, Any]:
    states = books.states.values()
    return {
        "pid": books.pid,
        "started": books.started,
        "in_flight": sum(state.in_flight for state in states),
        "queued": sum(state.queued for state in states),
    }


def _show_server(name: str, state: ServerState, total: Totals) -> dict[str, Any]:
    accounts = [account for (server, _), account in total.accounts.items() if server == name]
    outcomes = [(outcome, count) for account in accounts for (_, outcome), count in account.calls.items()]
    used = Consumption()
    for (server, _), consumption in total.consumption.items():
        if server == name:
            used.add(consumption)
    return {
        "name": name,
        "model": state.model,
        "base_url": state.base_url,
        "in_flight": state.in_flight,
        "queued": state.queued,
        "cap": state.cap,
        "breaker_open": state.is_breaker_open,
        "rate_limits": {kind: _show_limit(limit) for kind, limit in state.rate_limits.items()},
        "calls": sum(count for _, count in outcomes),
        "failed": sum(count for outcome, count in outcomes if outcome == "failed"),
        "client_gone": sum(account.client_gone for account in accounts),
        "retries": sum(sum(account.retries.values()) for account in accounts),
        "input_tokens": used.input_tokens,
        "cached_tokens": used.cached_tokens,
        "output_tokens": used.output_tokens,
        "reasoning_tokens": used.reasoning_tokens,
        "cost_usd": used.cost_usd if used.priced_calls else None,
        "calls_without_usage": sum(account.without_usage for account in accounts),
    }


def _show_limit(limit: RateLimit) -> dict[str, float | None]:
    return {"limit": limit.limit, "remaining": limit.remaining, "reset_s": limit.reset_s}


def _show_error(record: CallRecord) -> dict[str, Any]:
    return {**_show_call(record), "advice": to_advice(record.status, record.error_code, record.outcome)}


def _show_call(record: CallRecord) -> dict[str, Any]:
    usage = record.usage
    return {
        "time": record.time,
        "server": record.server,
        "api": record.api,
        "status": record.status,
        "outcome": record.outcome,
        "error_code": record.error_code,
        "attempts": record.attempts,
        "queue_ms": round(record.queue_wait_s * 1000, 1),
        "first_byte_ms": None if record.first_byte_s is None else round(record.first_byte_s * 1000, 1),
        "duration_ms": round(record.duration_s * 1000, 1),
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "cost_usd": record.cost_usd,
        "model": record.model,
        "finish_reason": record.finish_reason,
        "rollout_id": record.rollout_id,
        "request_id": record.request_id,
        "client_request_id": record.client_request_id,
        "upstream_request_id": record.upstream_request_id,
    }
