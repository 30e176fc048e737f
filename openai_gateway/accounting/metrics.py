"""Shows the totals of all workers in Prometheus' text format.

prometheus-client only writes the text. Its multiprocess mode is not used: there, each increment is a write to a
mapped file, four times as much work for every call. See also: snapshot (which adds the workers' totals up).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from openai_gateway import __version__
from openai_gateway.accounting.snapshot import Snapshots, merge_states
from openai_gateway.accounting.standings import Standing
from openai_gateway.accounting.totals import BOUNDS_S, Account, Histogram, ServerState, Totals

_PREFIX: Final = "openai_gateway_"
_KINDS: Final = ("input", "cached", "output", "reasoning")
_BOUNDS: Final = (*(repr(float(bound)) for bound in BOUNDS_S), "+Inf")
_CALL: Final = ("server", "api")
_WHY: Final = ("server", "reason")
_WINDOWS: Final = ("1m", "1h")
# What calls in the queue may wait for.
_WAITS: Final = ("slot", "rate", "tokens", "window", "pause")
# Name, help, the value in an Account.
_SUMS: Final = (
    ("upstream_attempts", "Attempts at the upstream, first ones and retries.", "attempts"),
    ("calls_without_usage", "Answered calls whose token counts the upstream did not report.", "without_usage"),
    ("request_bytes", "Bytes of request bodies sent upstream, without retries.", "request_bytes"),
    ("answer_bytes", "Bytes of the upstream's answers relayed to clients.", "answer_bytes"),
    ("client_disconnects", "Calls whose client left before their end.", "client_gone"),
)
_HISTOGRAMS: Final = (
    ("queue_wait_seconds", "Wait for a slot among the concurrent upstream calls.", "queue_wait"),
    (
        "time_to_first_byte_seconds",
        "From a call's arrival to its answer's first body byte (GenAI: gen_ai.server.time_to_first_token).",
        "first_byte",
    ),
    (
        "call_duration_seconds",
        "From a call's arrival to its end (GenAI: gen_ai.server.request.duration).",
        "duration",
    ),
)


def render(snapshots: Snapshots, accept: str) -> tuple[bytes, str]:
    """Return the metrics of all workers and their content type, in the form that an `Accept` header asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(snapshots))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError, LookupError):
        # prometheus-client takes parts of the Accept header for numbers without a check.
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


class _Metrics(Collector):
    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        total, workers = self._snapshots.total()
        yield from _collect_calls(total)
        yield from _collect_consumption(total)
        yield from _collect_saved(total)
        yield from _collect_lost(total)
        yield from _collect_states(workers)
        yield from _collect_learned(merge_states(workers))
        yield from _collect_clients(*self._snapshots.standings(total))


def _counter(name: str, text: str, labels: Iterable[str]) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, labels=list(labels))


def _gauge(name: str, text: str, labels: Iterable[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=list(labels))


def _collect_calls(total: Totals) -> Iterator[Metric]:
    calls = _counter(
        "calls", "Calls that are over (GenAI: one gen_ai operation each).", [*_CALL, "status", "outcome", "code"]
    )
    retries = _counter("retries", "Further attempts, by the status or error code that caused them.", [*_CALL, "reason"])
    for key, account in total.accounts.items():
        for (status, outcome, code), count in account.calls.items():
            # An empty label is none, in Prometheus: the series of calls without a code are as they were.
            calls.add_metric([*key, status, outcome, code], count)
        for reason, count in account.retries.items():
            retries.add_metric([*key, reason], count)
    yield calls
    yield retries
    for name, text, field in _SUMS:
        family = _counter(name, text, _CALL)
        for key, account in total.accounts.items():
            family.add_metric(key, getattr(account, field))
        yield family
    for name, text, field in _HISTOGRAMS:
        yield _collect_histogram(name, text, field, total.accounts)


def _collect_histogram(name: str, text: str, field: str, accounts: dict[tuple[str, str], Account]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=list(_CALL))
    for key, account in accounts.items():
        histogram: Histogram = getattr(account, field)
        buckets = list(zip(_BOUNDS, accumulate(histogram.counts), strict=True))
        family.add_metric(key, buckets, histogram.total)
    return family


def _collect_consumption(total: Totals) -> Iterator[Metric]:
    tokens = _counter(
        "tokens",
        "Tokens the upstream reported; cached ones are part of the input, reasoning of the output"
        " (GenAI: gen_ai.client.token.usage).",
        ["server", "model", "kind"],
    )
    cost = _counter("cost_usd", "Cost of the calls whose price is known, in US dollars.", ["server", "model"])
    for key, used in total.consumption.items():
        for kind in _KINDS:
            tokens.add_metric([*key, kind], getattr(used, f"{kind}_tokens"))
        if used.priced_calls:
            cost.add_metric(key, used.cost_usd)
    yield tokens
    yield cost


def _collect_saved(total: Totals) -> Iterator[Metric]:
    calls = _counter("replayed_calls", "Calls that a kept answer was there for.", ["server"])
    tokens = _counter("saved_tokens", "Tokens of these calls, which nobody was charged for.", ["server", "kind"])
    cost = _counter("saved_usd", "What these calls would have cost, in US dollars.", ["server"])
    for server, saved in total.saved.items():
        calls.add_metric([server], saved.calls)
        tokens.add_metric([server, "input"], saved.input_tokens)
        tokens.add_metric([server, "output"], saved.output_tokens)
        cost.add_metric([server], saved.usd)
    yield calls
    yield tokens
    yield cost


def _collect_lost(total: Totals) -> Iterator[Metric]:
    lost = _counter("lost_records", "Records of calls that could not be written, such as to a full disk.", ["where"])
    for where, count in total.lost.items():
        lost.add_metric([where], count)
    yield lost


def _collect_states(workers: list[Totals]) -> Iterator[Metric]:
    in_flight = _gauge("calls_in_flight", "Calls that hold a slot now.", ["server"])
    queued = _gauge("calls_queued", "Calls that wait for a slot now.", ["server"])
    cap = _gauge(
        "concurrency_limit", "Slots of all workers together, or the total cap; absent without any.", ["server"]
    )
    breaker = _gauge("breaker_open", "1 while the upstream refuses the key or the quota is used up.", ["server"])
    limit = _gauge("ratelimit_limit", "The upstream's limit by its last answer.", ["server", "kind"])
    remaining = _gauge("ratelimit_remaining", "What is left of it by its last answer.", ["server", "kind"])
    reset = _gauge(
        "ratelimit_reset_seconds", "Seconds until all of it is back, by its last answer.", ["server", "kind"]
    )
    pause = _gauge("pause_seconds", "Seconds that the upstream's refusal still holds all calls up.", ["server"])
    retrying = _gauge("calls_retrying", "Calls that wait for another attempt now, by why the last one failed.", _WHY)
    redis_up = _gauge("limits_redis_up", "1 while other hosts share limits; absent without Redis.", ["server"])
    hosts = _gauge("limits_hosts", "Hosts that share limits, this one included; absent without Redis.", ["server"])
    for name, state in merge_states(workers).items():
        if state.is_redis_up is not None:
            redis_up.add_metric([name], state.is_redis_up)
            hosts.add_metric([name], state.hosts)
        pause.add_metric([name], state.paused_s)
        for reason, count in state.retrying.items():
            retrying.add_metric([name, reason], count)
        in_flight.add_metric([name], state.in_flight)
        queued.add_metric([name], state.queued)
        breaker.add_metric([name], state.is_breaker_open)
        if state.slots is not None:
            cap.add_metric([name], state.slots)
        for kind, found in state.rate_limits.items():
            for family, value in ((limit, found.limit), (remaining, found.remaining), (reset, found.reset_s)):
                if value is not None:
                    family.add_metric([name, kind], value)
    yield from (in_flight, queued, cap, breaker, limit, remaining, reset, pause, retrying)
    yield from (redis_up, hosts)
    yield GaugeMetricFamily(_PREFIX + "workers", "Worker processes that serve.", value=len(workers))
    yield GaugeMetricFamily(
        _PREFIX + "websockets",
        "Open WebSockets of clients, with responses under way or without.",
        value=sum(totals.websockets for totals in workers),
    )
    yield GaugeMetricFamily(
        _PREFIX + "resident_memory_bytes",
        "Resident memory of all workers together.",
        value=sum(totals.resident_bytes for totals in workers),
    )
    build = _gauge("build_info", "The version that serves.", ["version"])
    build.add_metric([__version__], 1)
    yield build


def _collect_learned(states: dict[str, ServerState]) -> Iterator[Metric]:
    """Give what has been found out of the upstreams' limits, how far they are used, and what waits for them."""
    kind_of = ["server", "kind"]
    values = {
        "per_minute": _gauge("learned_limit_per_minute", "The limit that the gateway has found out.", kind_of),
        "free": _gauge("learned_limit_free", "What is free of it now.", kind_of),
        "margin": _gauge("learned_limit_margin", "What of that is left unspent, to be on the safe side.", kind_of),
        "taken_by_others_per_minute": _gauge(
            "learned_limit_others_per_minute", "What other users of the key take of it.", kind_of
        ),
    }
    dialect = _gauge("learned_limit_dialect", "1; how the limit was found out.", [*kind_of, "dialect"])
    used = _gauge("learned_limit_used_ratio", "Share that was used of what it let in of late.", [*kind_of, "window"])
    refused = _gauge("refused_ratio", "Share of late attempts that a limit refused (429).", ["server", "window"])
    at_a_time = _gauge("learned_limit_in_flight", "Calls that the upstream was found to take at a time.", ["server"])
    waiting = _gauge("calls_waiting", "Calls that wait for their turn now, by what for.", _WHY)
    for name, state in states.items():
        for kind, found in state.learned_limits.items():
            for field, family in values.items():
                family.add_metric([name, kind], getattr(found, field))
            dialect.add_metric([name, kind, found.dialect], 1)
            for window, share in zip(_WINDOWS, found.used_shares(), strict=True):
                if share is not None:
                    used.add_metric([name, kind, window], share)
        for window, share in zip(_WINDOWS, state.attempts.refused_shares(), strict=True):
            if share is not None:
                refused.add_metric([name, window], share)
        if state.most_in_flight is not None:
            at_a_time.add_metric([name], state.most_in_flight)
        for reason in _WAITS:
            waiting.add_metric([name, reason], state.waiting.get(reason, 0))
    yield from (*values.values(), dialect, used, refused, at_a_time, waiting)


def _collect_clients(standings: list[Standing], problems: list[str]) -> Iterator[Metric]:
    """Give the figures of named clients; the label has the clients file's names only."""
    sums = {
        name: _counter(f"client_{name}", text, ["client"])
        for name, text in (
            ("calls", "Calls of a named client that are over."),
            ("errors", "Those of them that failed."),
            ("refused", "Those that its budget, or its bound on calls at a time, left no room for."),
            ("cost_usd", "Cost of the calls whose price is known, in US dollars."),
        )
    }
    tokens = _counter("client_tokens", "Tokens of a named client's calls.", ["client", "kind"])
    budget = _gauge("client_budget_usd", "What a client may spend in its budget's period.", ["client", "per"])
    spent = _gauge("client_spent_usd", "What it has spent in that period.", ["client"])
    reserved = _gauge("client_reserved_usd", "What its calls under way may cost.", ["client"])
    in_flight = _gauge("client_calls_in_flight", "Its calls under way, those that wait included.", ["client"])
    for standing in standings:
        name = [standing.name]
        for each, family in sums.items():
            family.add_metric(name, getattr(standing.sums, each))
        tokens.add_metric([standing.name, "input"], standing.sums.input_tokens)
        tokens.add_metric([standing.name, "output"], standing.sums.output_tokens)
        if standing.budget_usd is not None:
            budget.add_metric([standing.name, standing.per], standing.budget_usd)
        for gauge, value in (
            (spent, standing.spent_usd),
            (reserved, standing.reserved_usd),
            (in_flight, standing.in_flight),
        ):
            gauge.add_metric(name, value)
    if standings:
        yield from (*sums.values(), tokens, budget, spent, reserved, in_flight)
    text = "Files of keys and clients that can't be used as they are; what was in use before is."
    yield GaugeMetricFamily(_PREFIX + "key_file_problems", text, value=len(problems))
