"""Puts a snapshot into the words and figures of the status page.

The template shows a view when the page is loaded, the stream sends the next ones. All of it is plain text, which the
template and the script escape. See also: layout (what is where), limit_rows, feed (the stream), accounting.snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai_gateway.page.charts import make_charts, make_hour_charts
from openai_gateway.page.figures import (
    Cell,
    Row,
    clip,
    to_clock,
    to_count,
    to_day_and_clock,
    to_duration,
    to_rate,
    to_usd,
)
from openai_gateway.page.limit_rows import REASONS, list_limits

_BAD_SHARE: Final = 0.05
_MOST_REASONS: Final = 3
_LOST: Final = {
    "usage_log": "The usage logs lack {:,} calls that could not be written; the log says why.",
    "captures": "The captures of rollouts lack {:,} calls that could not be written; the log says why.",
    "log": "The log lacks {:,} lines: whoever reads it was too slow.",
}


def make_view(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a snapshot; only JSON's own types."""
    servers = snapshot["servers"]
    in_flight = sum(server["in_flight"] for server in servers)
    return {
        "time": to_clock(snapshot["time"]),
        "title": f"{to_count(in_flight)} in flight",
        "version": snapshot["version"],
        "since": to_day_and_clock(snapshot["started"]),
        "alerts": [*_list_alerts(snapshot), *snapshot["file_problems"]],
        "tiles": make_tiles(snapshot),
        "charts": make_charts(snapshot),
        "hour": make_hour_charts(snapshot),
        "tables": {
            "limits": [row for server in servers for row in list_limits(server)],
            "errors": _list_errors(snapshot["errors"]),
            "recent": [_to_call(call) for call in snapshot["recent"]],
            "minutes": _list_minutes(snapshot),
            "servers": [_to_server(server) for server in servers],
            "clients": [_to_client(client) for client in snapshot["clients"]],
            "workers": [_to_worker(worker) for worker in snapshot["workers"]],
        },
    }


def make_tiles(snapshot: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the big figures; `level` is empty, warn or bad."""
    servers, now, minute = snapshot["servers"], snapshot["last_10_s"], snapshot["last_minute"]
    in_flight, queued, calls = (sum(server[name] for server in servers) for name in ("in_flight", "queued", "calls"))
    costs = [server["cost_usd"] for server in servers if server["cost_usd"] is not None]
    share = minute["errors"] / minute["calls"] if minute["calls"] else 0.0
    level = "" if not minute["errors"] else "bad" if share >= _BAD_SHARE else "warn"
    lasted_s = min(10.0, max(1.0, snapshot["time"] - snapshot["started"]))
    idle = "no calls lately" if calls else "no calls yet"
    p50, p95, first = minute["p50_ms"], minute["p95_ms"], minute["first_byte_p50_ms"]
    tokens = minute["input_tokens"] + minute["output_tokens"]
    split = f"{to_count(minute['input_tokens'])} in, {to_count(minute['output_tokens'])} out"
    spent = f"{to_usd(sum(costs))} in all" if costs else "no price known" if calls else "no calls yet"
    return [
        _make_tile("In flight", to_count(in_flight), _describe_slots(snapshot)),
        _make_tile("Queued", to_count(queued), _describe_waits(servers), "warn" if queued else ""),
        _make_tile("Calls/s", to_rate(now["calls"] / lasted_s), f"{calls:,} in all" if calls else "no calls yet"),
        _make_tile(
            "Errors/min", to_count(minute["errors"]), f"{share:.1%} of calls" if calls else "no calls yet", level
        ),
        _make_tile("Latency p50", to_duration(p50), idle if p95 is None else f"p95 {to_duration(p95)}"),
        _make_tile("First token p50", to_duration(first), idle if first is None else "last minute"),
        _make_tile("Tokens/min", to_count(tokens), split),
        _make_tile("Cost/min", to_usd(minute["cost_usd"] if costs else None), spent),
    ]


def _describe_slots(snapshot: Mapping[str, Any]) -> str:
    """Return how many slots there are, how many WebSockets are open, and how many hosts share limits, if any."""
    websockets = sum(worker["websockets"] for worker in snapshot["workers"])
    hosts = max((server["hosts"] for server in snapshot["servers"] if server["redis_up"]), default=0)
    slots = _describe_caps(snapshot["servers"])
    slots = f"{slots}; {to_count(websockets)} WebSocket{'s' if websockets > 1 else ''} open" if websockets else slots
    return f"{slots}; {to_count(hosts)} {'hosts share' if hosts > 1 else 'host shares'} limits" if hosts else slots


def _describe_caps(servers: Sequence[Mapping[str, Any]]) -> str:
    caps = [server["cap"] for server in servers if server["cap"] is not None]
    if not caps:
        return "no cap"
    slots = f"of {to_count(sum(caps))} slots"
    return slots if len(caps) == len(servers) else f"{slots}; {len(servers) - len(caps)} without a cap"


def _describe_waits(servers: Sequence[Mapping[str, Any]]) -> str:
    """Return what calls wait for, and how many wait for another attempt."""
    paused_s = max((server["paused_s"] for server in servers), default=0.0)
    reason = next((server["queue_reason"] for server in servers if server["queue_reason"]), "slot")
    waits = f"paused for {paused_s:.0f} s" if paused_s >= 0.5 else f"waiting for {REASONS.get(reason, reason)}"
    retrying = sum(sum(server["retrying"].values()) for server in servers)
    return f"{waits}; {to_count(retrying)} to be retried" if retrying else waits


def _make_tile(label: str, value: str, note: str, level: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "level": level}


def _list_alerts(snapshot: Mapping[str, Any]) -> list[str]:
    alerts = [
        f"{server['name']}: the upstream refuses the key or the quota is used up. Calls get that answer at once until"
        " a probe succeeds. Check openai_api_key and the account's billing."
        for server in snapshot["servers"]
        if server["breaker_open"]
    ]
    for where, count in snapshot["lost"].items():
        if count:
            alerts.append(_LOST[where].format(count))
    # Once each: most servers have the same notes.
    return [*alerts, *dict.fromkeys(note for server in snapshot["servers"] for note in server["notes"])]


def _to_status(call: Mapping[str, Any]) -> Cell:
    status = call["status"]
    if call["outcome"] == "client_gone":
        return ["client left", "dim"]
    if status is None:
        return ["failed", "bad"]
    if call["outcome"] == "failed" and status < 400:
        return [f"{status}, broke off", "bad"]
    return [str(status), "good" if status < 400 else "warn" if status < 500 else "bad"]


def _list_errors(calls: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each kind of error, with what tells of its latest call; the latest first, as the calls are."""
    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for call in calls:
        key = tuple(call[name] for name in ("server", "api", "status", "outcome", "error_code", "advice"))
        kinds.setdefault(key, []).append(call)
    return [_to_error(found[0], len(found)) for found in kinds.values()]


def _to_error(call: Mapping[str, Any], count: int) -> Row:
    return [
        to_clock(call["time"]),
        f"{count:,}",
        _to_status(call),
        clip(call["server"]),
        clip(call["error_code"]),
        [call["advice"], "advice"],
        _describe_attempts(call),
        to_duration(call["duration_ms"]),
        *(clip(call[name]) for name in ("api", "rollout_id", "request_id", "client_request_id", "upstream_request_id")),
    ]


def _describe_attempts(call: Mapping[str, Any]) -> str:
    """Return how many attempts there were, and why there were more than one."""
    reasons = ", ".join(call["retries"][:_MOST_REASONS])
    more = ", \N{HORIZONTAL ELLIPSIS}" if len(call["retries"]) > _MOST_REASONS else ""
    return f"{call['attempts']} ({reasons}{more})" if reasons else str(call["attempts"])


def _to_call(call: Mapping[str, Any]) -> Row:
    return [
        to_clock(call["time"]),
        _to_status(call),
        clip(call["server"]),
        clip(call["model"]),
        _describe_attempts(call),
        to_duration(call["queue_ms"]),
        to_duration(call["first_byte_ms"]),
        to_duration(call["duration_ms"]),
        to_count(call["input_tokens"]),
        to_count(call["output_tokens"]),
        to_usd(call["cost_usd"]),
        *(clip(call[name]) for name in ("api", "rollout_id", "request_id", "client_request_id")),
    ]


def _list_minutes(snapshot: Mapping[str, Any]) -> list[Row]:
    if not any(minute["calls"] for minute in snapshot["minutes"]):
        return []
    is_priced = any(server["cost_usd"] is not None for server in snapshot["servers"])
    return [
        [
            to_clock(minute["t"]),
            f"{minute['calls']:,}",
            f"{minute['errors']:,}",
            *(to_duration(minute[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "first_byte_p50_ms")),
            f"{minute['input_tokens']:,}",
            f"{minute['output_tokens']:,}",
            to_usd(minute["cost_usd"] if is_priced else None),
        ]
        for minute in snapshot["minutes"]
        if minute["t"] + 60 > snapshot["started"]
    ]


def _to_server(server: Mapping[str, Any]) -> Row:
    counts = ("calls", "failed", "client_gone")
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    return [
        clip(server["name"]),
        clip(server["model"]),
        clip(server["base_url"]),
        f"{server['in_flight']:,}",
        "no cap" if server["cap"] is None else f"{server['cap']:,}",
        f"{server['queued']:,}",
        *(f"{server[name]:,}" for name in counts),
        _describe_retries(server["retry_reasons"]),
        _describe_cost(server),
        *(to_count(server[name]) for name in tokens),
        f"{server['calls_without_usage']:,}",
    ]


def _to_client(client: Mapping[str, Any]) -> Row:
    sums, budget, spent = client["sums"], client["budget_usd"], client["spent_usd"]
    meter: Cell = ""
    if budget:
        share = min(1.0, (spent + client["reserved_usd"]) / budget)
        meter = [f"{share:.0%}", "meter", round(share, 4)]
    period = {"day": " a day", "month": " a month", "total": ""}[client["per"]]
    return [
        clip(client["name"]),
        meter,
        "none" if budget is None else to_usd(budget) + period,
        to_usd(spent),
        to_usd(client["reserved_usd"]),
        f"{client['in_flight']:,}",
        *(f"{sums[name]:,}" for name in ("calls", "errors", "refused")),
        *(to_count(sums[name]) for name in ("input_tokens", "output_tokens")),
    ]


def _describe_retries(reasons: Mapping[str, int]) -> str:
    """Return how many retries there were, and for what, the most frequent first."""
    total = sum(reasons.values())
    most = sorted(reasons.items(), key=lambda item: -item[1])[:_MOST_REASONS]
    told = ", ".join(f"{reason} \N{MULTIPLICATION SIGN}{count:,}" for reason, count in most)
    return f"{total:,} ({told})" if told else "0"


def _describe_cost(server: Mapping[str, Any]) -> str:
    """Return what a server's calls cost, and what its kept answers would have, if there were any."""
    cost, saved = to_usd(server["cost_usd"]), server["saved"]
    if not saved["calls"]:
        return cost
    tokens = to_count(saved["input_tokens"] + saved["output_tokens"])
    return f"{cost} (saved {to_usd(saved['usd'])}: {saved['calls']:,} calls, {tokens} tokens)"


def _to_worker(worker: Mapping[str, Any]) -> Row:
    return [
        str(worker["pid"]),
        to_day_and_clock(worker["started"]),
        f"{worker['in_flight']:,}",
        f"{worker['queued']:,}",
    ]
