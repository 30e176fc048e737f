"""Adds up the totals of all workers, and makes of them the plain values that the status page shows.

Twice a second this worker's totals are written for the other workers to read, if they have changed. See also:
shared_files (which writes and reads them), metrics (which shows the same totals to Prometheus).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from openai_gateway import __version__
from openai_gateway.accounting.aggregate import Aggregate
from openai_gateway.accounting.shared_files import SharedFiles
from openai_gateway.accounting.spans import sum_up_hour, sum_up_series, sum_up_span, sum_up_spans
from openai_gateway.accounting.standings import Standing, Standings
from openai_gateway.accounting.totals import KEPT_SECONDS, Account, Consumption, Saved, ServerState, Totals, add_counts
from openai_gateway.remedies import advise
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.rate_limits import LearnedLimit, RateLimit

_log = logging.getLogger("openai_gateway")
_INTERVAL_S: Final = 0.5
_REDIS_AWAY: Final = "Redis is away. Calls go on; limits, total cap and budgets are each host's own until it is back."


class Snapshots:
    """What all workers of a master have done and are doing; until `share` is called, this worker only."""

    def __init__(self, aggregate: Aggregate, get_standings: Callable[[], Standings | None] = lambda: None) -> None:
        self._get_standings = get_standings
        self._aggregate = aggregate
        self._files: SharedFiles | None = None
        self._others: tuple[list[Totals], list[Totals]] = ([], [])
        self._published: Any = None
        self._is_failing = False

    def share(self, files: SharedFiles) -> None:
        """Write this worker's totals to `files` from now on, twice a second while they change, and read the others'."""
        self._files = files
        self.publish()
        threading.Thread(target=self._publish_on, name="publish totals", daemon=True).start()

    def publish(self) -> None:
        """Write the totals if they have changed; a failure is logged once until it is over."""
        try:
            states = self._aggregate.look()
            # These may change without a call: the used share of a limit goes down by itself.
            states_now = [
                (
                    state.in_flight,
                    state.queued,
                    state.is_redis_up,
                    state.hosts,
                    state.attempts,
                    [limit.used for limit in state.learned_limits.values()],
                )
                for state in states.values()
            ]
            now = (self._aggregate.calls, self._aggregate.totals.websockets, states_now)
            if self._files is not None and (now != self._published or not self._files.is_written()):
                self._files.write(self._aggregate.totals)
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
        """Return the sums over all workers there are and were, and the totals of each that lives."""
        self._aggregate.look()
        own = self._aggregate.totals
        living, ended = self._read_others()
        total = Totals(pid=0, started=own.started)
        for totals in (own, *living, *ended):
            total.add(totals)
        return total, [own, *living]

    def _read_others(self) -> tuple[list[Totals], list[Totals]]:
        if self._files is not None:
            # With no descriptor left, say, what was read last stays.
            with contextlib.suppress(OSError):
                self._others = self._files.read_others()
        return self._others

    def standings(self, total: Totals) -> tuple[list[Standing], list[str]]:
        """Return how the named clients stand, and what is wrong with their files."""
        standings = self._get_standings()
        # A disk in trouble must not take the page along.
        with contextlib.suppress(OSError):
            if standings is not None:
                return standings.read(total), standings.problems()
        return [], []

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain values, as the status page wants it."""
        total, workers = self.total()
        clients, problems = self.standings(total)
        now = time.time()
        return {
            "clients": [_show_client(standing) for standing in clients],
            "file_problems": problems,
            "time": now,
            "version": __version__,
            "started": total.started,
            "workers": [_show_worker(totals) for totals in sorted(workers, key=lambda totals: totals.pid)],
            "servers": [_show_server(name, state, total) for name, state in merge_states(workers).items()],
            "last_10_s": sum_up_span(second for second in total.seconds if now - 11 < second.t <= now - 1),
            "last_minute": sum_up_span(second for second in total.seconds if second.t > now - 60),
            "minutes": sum_up_spans(total.seconds, int(now), length_s=KEPT_SECONDS, step_s=60)[::-1],
            "series": sum_up_series(total.seconds, int(now)),
            "hour": sum_up_hour([*total.minutes, *total.seconds], int(now)),
            "lost": total.lost,
            "recent": [_show_call(record) for record in reversed(total.recent)],
            "errors": [_show_error(record) for record in reversed(total.errors)],
        }


def merge_states(workers: Iterable[Totals]) -> dict[str, ServerState]:
    """Return how each server is now over all workers: sums, any open breaker, the latest rate limits."""
    states: dict[str, ServerState] = {}
    for totals in workers:
        for name, theirs in totals.states.items():
            state = states.setdefault(name, ServerState(theirs.model, theirs.base_url))
            state.in_flight += theirs.in_flight
            state.queued += theirs.queued
            state.cap = None if theirs.cap is None else (state.cap or 0) + theirs.cap
            state.total_cap = theirs.total_cap
            state.is_breaker_open = state.is_breaker_open or theirs.is_breaker_open
            state.notes = theirs.notes
            state.queue_reason = state.queue_reason or theirs.queue_reason
            state.paused_s = max(state.paused_s, theirs.paused_s)
            add_counts(state.retrying, theirs.retrying)
            state.is_redis_up, state.hosts = theirs.is_redis_up, theirs.hosts
            for kind, learned in theirs.learned_limits.items():
                mine = state.learned_limits.get(kind)
                state.learned_limits[kind] = learned if mine is None else mine.merge(learned)
            state.attempts = state.attempts.merge(theirs.attempts)
            if theirs.queued:
                add_counts(state.waiting, {theirs.queue_reason or "slot": theirs.queued})
            if theirs.most_in_flight is not None:
                state.most_in_flight = max(state.most_in_flight or 0.0, theirs.most_in_flight)
            if theirs.limits_at >= state.limits_at:
                state.rate_limits, state.limits_at = theirs.rate_limits, theirs.limits_at
    return states


def _show_worker(totals: Totals) -> dict[str, Any]:
    states = totals.states.values()
    return {
        "pid": totals.pid,
        "started": totals.started,
        "in_flight": sum(state.in_flight for state in states),
        "queued": sum(state.queued for state in states),
        "websockets": totals.websockets,
    }


def _show_server(name: str, state: ServerState, total: Totals) -> dict[str, Any]:
    accounts = [account for (server, _), account in total.accounts.items() if server == name]
    outcomes = [(key, count) for account in accounts for key, count in account.calls.items()]
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
        "cap": state.slots,
        "breaker_open": state.is_breaker_open,
        "notes": [*state.notes, *([_REDIS_AWAY] if state.is_redis_up is False else ())],
        "rate_limits": {kind: _show_limit(limit) for kind, limit in state.rate_limits.items()},
        "learned_limits": {kind: _show_learned(limit) for kind, limit in state.learned_limits.items()},
        "most_in_flight": state.most_in_flight,
        "refused_shares": state.attempts.refused_shares(),
        "waiting": state.waiting,
        "queue_reason": state.queue_reason,
        "paused_s": state.paused_s,
        "retrying": state.retrying,
        "redis_up": state.is_redis_up,
        "hosts": state.hosts,
        "calls": sum(count for _, count in outcomes),
        "failed": sum(count for (status, outcome, _), count in outcomes if _is_failure(status, outcome)),
        "client_gone": sum(account.client_gone for account in accounts),
        "retries": sum(sum(account.retries.values()) for account in accounts),
        "retry_reasons": _sum_retries(accounts),
        "input_tokens": used.input_tokens,
        "cached_tokens": used.cached_tokens,
        "output_tokens": used.output_tokens,
        "reasoning_tokens": used.reasoning_tokens,
        "cost_usd": used.cost_usd if used.priced_calls else None,
        "calls_without_usage": sum(account.without_usage for account in accounts),
        "saved": msgspec.structs.asdict(total.saved.get(name, Saved())),
    }


def _is_failure(status: str, outcome: str) -> bool:
    return outcome == "failed" or (outcome == "completed" and status in ("4xx", "5xx"))


def _show_client(standing: Standing) -> dict[str, Any]:
    return {**msgspec.structs.asdict(standing), "sums": msgspec.structs.asdict(standing.sums)}


def _sum_retries(accounts: Iterable[Account]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for account in accounts:
        add_counts(reasons, account.retries)
    return reasons


def _show_learned(limit: LearnedLimit) -> dict[str, Any]:
    return {**msgspec.structs.asdict(limit), "used_shares": limit.used_shares()}


def _show_limit(limit: RateLimit) -> dict[str, float | None]:
    return {"limit": limit.limit, "remaining": limit.remaining, "reset_s": limit.reset_s}


def _show_error(record: CallRecord) -> dict[str, Any]:
    return {**_show_call(record), "advice": advise(record.status, record.error_code, record.outcome)}


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
        "retries": list(record.retries),
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
