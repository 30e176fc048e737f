"""What the status page shows of a snapshot, how that is escaped, and how often it is made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import flask
import gevent
import msgspec
import pytest

from openai_gateway.accounting.aggregate import Aggregate
from openai_gateway.accounting.snapshot import Snapshots
from openai_gateway.accounting.standings import Standing
from openai_gateway.accounting.totals import ClientSums, ServerState
from openai_gateway.app import create_app
from openai_gateway.config import GatewayConfig, Secret, ServerConfig
from openai_gateway.page.feed import Feed
from openai_gateway.page.figures import UNKNOWN, to_count, to_duration, to_rate, to_usd
from openai_gateway.page.layout import CHARTS, TABLES
from openai_gateway.page.view import make_view
from openai_gateway.transport.watch import Timeouts
from openai_gateway.wire.rate_limits import Attempts, LearnedLimit, RateLimit
from openai_gateway.wire.usage import Usage
from tests.support.records import to_record

NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def _state(**changes: Any) -> ServerState:
    return ServerState(**{"model": "m", "base_url": "http://u/v1", "in_flight": 3, "queued": 2, "cap": 8, **changes})


def _aggregate(**changes: Any) -> Aggregate:
    return Aggregate({"policy_model": "m"}, lambda: {"policy_model": _state(**changes)})


def _view(aggregate: Aggregate) -> dict[str, Any]:
    return make_view(Snapshots(aggregate).snapshot())


def _show(standing: Standing) -> dict[str, Any]:
    return {**msgspec.structs.asdict(standing), "sums": msgspec.structs.asdict(standing.sums)}


def _tile(view: dict[str, Any], label: str) -> dict[str, str]:
    found: dict[str, str] = next(tile for tile in view["tiles"] if tile["label"] == label)
    return found


class _Reader(HTMLParser):
    """Notes the tags of a page and checks that they are nested as HTML wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def close(self) -> None:
        super().close()
        assert self._open == []


def _read_page(view: dict[str, Any]) -> _Reader:
    server = ServerConfig("s", "http://u/v1", "m", openai_api_key=Secret("sk-x"))
    app = create_app(GatewayConfig({"s": server}, "s"))
    with app.test_request_context("/status"):
        html = flask.render_template("status.html", view=view, charts=CHARTS, tables=TABLES, nonce="n")
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader


def test_right_after_the_start_there_are_no_calls_yet_and_nothing_is_no_number() -> None:
    view = _view(_aggregate(in_flight=0, queued=0, cap=None))
    assert [tile["value"] for tile in view["tiles"]] == ["0", "0", "0.0", "0", UNKNOWN, UNKNOWN, "0", UNKNOWN]
    assert [tile["note"] for tile in view["tiles"]].count("no calls yet") == 5
    assert [name for name, rows in view["tables"].items() if not rows] == [
        "limits", "errors", "recent", "minutes", "clients",
    ]  # fmt: skip
    assert all(value is None for value in view["charts"]["p50_ms"])
    assert not {"NaN", "Infinity", "null", "None"} & set(json.dumps(view["tiles"] + [view["tables"]]).split('"'))
    json.dumps(view, allow_nan=False)
    assert "no cap" in _tile(view, "In flight")["note"]


def test_tiles_tell_what_is_going_on() -> None:
    aggregate = _aggregate()
    for _ in range(20):
        aggregate.observe(to_record())
    aggregate.observe(to_record(status=429, usage=None, cost_usd=None))
    for second in aggregate.totals.seconds:
        second.t -= 6
    aggregate.totals.started -= 60
    view = _view(aggregate)
    assert view["title"] == "3 in flight"
    assert _tile(view, "In flight") == {"label": "In flight", "value": "3", "note": "of 8 slots", "level": ""}
    assert (_tile(view, "Queued")["value"], _tile(view, "Queued")["level"]) == ("2", "warn")
    assert (_tile(view, "Calls/s")["value"], _tile(view, "Calls/s")["note"]) == ("2.1", "21 in all")
    assert (_tile(view, "Errors/min")["value"], _tile(view, "Errors/min")["level"]) == ("1", "warn")
    assert _tile(view, "Tokens/min")["note"] == "2,000 in, 1,000 out"
    assert (_tile(view, "Cost/min")["value"], _tile(view, "Cost/min")["note"]) == ("$5.00", "$5.00 in all")
    assert view["charts"]["cost_usd"][-1] == pytest.approx(5.0)
    assert sum(value or 0 for value in view["charts"]["calls"]) > 0
    assert {len(values) for values in view["charts"].values()} == {48}
    assert set(view["charts"]["cap"]) == {None, 8}


def test_many_errors_are_bad_and_each_tells_what_to_do() -> None:
    aggregate = _aggregate()
    aggregate.observe(to_record(status=None, outcome="client_gone"))
    aggregate.observe(to_record(status=502, outcome="failed", error_code="upstream_unreachable"))
    aggregate.observe(to_record(status=200, outcome="failed", error_code="upstream_protocol_error"))
    view = _view(aggregate)
    assert _tile(view, "Errors/min")["level"] == "bad"
    assert [row[2] for row in view["tables"]["errors"]] == [["200, broke off", "bad"], ["502", "bad"]]
    assert "openai_base_url" in view["tables"]["errors"][1][5][0]
    assert [row[1][0] for row in view["tables"]["recent"]] == ["200, broke off", "502", "client left"]


def test_a_servers_failed_calls_are_all_that_gave_no_answer_but_an_error() -> None:
    """Those with an error's status, which the upstream gave or the gateway, and those that broke off."""
    aggregate = _aggregate()
    aggregate.observe(to_record())
    aggregate.observe(to_record(status=429, error_code="rate_limit_exceeded"))
    aggregate.observe(to_record(status=502, outcome="failed", error_code="upstream_unreachable"))
    aggregate.observe(to_record(status=200, outcome="failed", error_code="upstream_protocol_error"))
    aggregate.observe(to_record(status=None, outcome="client_gone"))
    assert _view(aggregate)["tables"]["servers"][0][6:9] == ["5", "3", "1"]


def test_cost_of_unknown_prices_is_unknown_not_zero() -> None:
    aggregate = _aggregate()
    aggregate.observe(to_record(cost_usd=None))
    view = _view(aggregate)
    assert (_tile(view, "Cost/min")["value"], _tile(view, "Cost/min")["note"]) == (UNKNOWN, "no price known")
    assert UNKNOWN in view["tables"]["servers"][0]
    assert {row[-1] for row in view["tables"]["minutes"]} == {UNKNOWN}
    assert set(view["charts"]["cost_usd"]) == {None}


def test_open_breaker_is_an_alert() -> None:
    assert _view(_aggregate())["alerts"] == []
    assert "policy_model: the upstream refuses" in _view(_aggregate(is_breaker_open=True))["alerts"][0]


@pytest.mark.parametrize(
    ("limit", "row"),
    [
        (RateLimit(10_000.0, 2_500.0, 6.0), [["25%", "meter", 0.25], "2,500", "10.0 k", "6.00 s"]),
        (RateLimit(100.0, 200.0, None), [["100%", "meter", 1.0], "200", "100", UNKNOWN]),
        (RateLimit(None, 5.0, 3600.0), ["", "5", UNKNOWN, "1.0 h"]),
        (RateLimit(100.0, None, 0.5), ["", UNKNOWN, "100", "500 ms"]),
    ],
)
def test_rate_limits_tell_what_is_left(limit: RateLimit, row: list[Any]) -> None:
    view = _view(_aggregate(rate_limits={"requests": limit}, limits_at=1.0))
    assert view["tables"]["limits"] == [["policy_model", "requests", *row, *[UNKNOWN] * 9, "2 for a slot"]]
    assert _read_page(view)


def test_limits_that_were_found_out_are_shown_beside_those_told() -> None:
    found = LearnedLimit(60_000.0, 1_500.0, 12_000.0, "groq", 600.0, (47_520.0, 30_000.0), (48_000.0, 60_000.0))
    attempts = Attempts((1000, 2000), (1, 0))
    view = _view(_aggregate(learned_limits={"tokens": found}, attempts=attempts, queue_reason="tokens"))
    told = ["policy_model", "tokens", "", UNKNOWN, UNKNOWN, UNKNOWN]
    row = [*told, "groq", "60.0 k", "1,500", "600", "12.0 k", "99.0%", "50.0%", "0.1%", "0%"]
    assert view["tables"]["limits"] == [[*row, "2 for tokens"]]


def test_limit_on_calls_at_a_time_is_shown_with_what_is_left_of_it() -> None:
    (row,) = _view(_aggregate(most_in_flight=4.0, queue_reason="window"))["tables"]["limits"]
    assert row[:5] == ["policy_model", "calls at a time", ["25%", "meter", 0.25], "1", "4"]
    assert row[-1] == "2 for others to end"


@pytest.mark.parametrize(
    ("caps", "note"),
    [
        ((None, None), "no cap"),
        ((8, 4), "of 12 slots"),
        ((8, None), "of 8 slots; 1 without a cap"),
    ],
)
def test_no_cap_is_said_only_if_no_server_has_one(caps: tuple[int | None, int | None], note: str) -> None:
    states = {f"s{number}": _state(cap=cap) for number, cap in enumerate(caps)}
    view = _view(Aggregate(dict.fromkeys(states, "m"), lambda: states))
    assert _tile(view, "In flight")["note"] == note


@pytest.mark.parametrize(
    ("cap", "total_cap", "note"), [(None, 4, "of 4 slots"), (8, 4, "of 4 slots"), (8, 9, "of 8 slots")]
)
def test_total_cap_counts_as_slots(cap: int | None, total_cap: int, note: str) -> None:
    view = _view(_aggregate(cap=cap, total_cap=total_cap))
    assert _tile(view, "In flight")["note"] == note
    assert set(view["charts"]["cap"]) <= {None, min(cap or total_cap, total_cap)}


@pytest.mark.parametrize(
    ("state", "note"),
    [
        ({}, "waiting for a slot"),
        ({"queue_reason": "rate"}, "waiting for the rate limit"),
        ({"queue_reason": "pause", "paused_s": 12.0}, "paused for 12 s"),
        ({"retrying": {"503": 2, "429": 1}}, "waiting for a slot; 3 to be retried"),
    ],
)
def test_what_calls_wait_for_is_told(state: dict[str, Any], note: str) -> None:
    assert _tile(_view(_aggregate(**state)), "Queued")["note"] == note


def test_equal_errors_are_one_row_with_their_number_and_the_latest() -> None:
    aggregate = _aggregate()
    for number in range(3):
        aggregate.observe(to_record(status=404, time=1e9 + number, request_id=str(number)))
    aggregate.observe(to_record(status=500, time=1e9 + 9))
    rows = _view(aggregate)["tables"]["errors"]
    assert [(row[0], row[1], row[2][0]) for row in rows] == [("01:46:49", "1", "500"), ("01:46:42", "3", "404")]
    assert "2" in rows[1]


def test_retries_are_shown_with_their_reasons() -> None:
    aggregate = _aggregate()
    aggregate.observe(to_record(attempts=3, retries=("429", "503")))
    aggregate.observe(to_record(attempts=2, retries=("429",)))
    view = _view(aggregate)
    assert "3 (429 \N{MULTIPLICATION SIGN}2, 503 \N{MULTIPLICATION SIGN}1)" in view["tables"]["servers"][0]
    assert "3 (429, 503)" in view["tables"]["recent"][1]


def test_lost_records_and_old_prices_are_alerts() -> None:
    states = {name: _state(notes=("The prices are old.",)) for name in ("a", "b")}
    view = _view(Aggregate(dict.fromkeys(states, "m"), lambda: states, lambda: {"usage_log": 1200, "captures": 0}))
    assert view["alerts"] == [
        "The usage logs lack 1,200 calls that could not be written; the log says why.",
        "The prices are old.",
    ]


def test_last_hour_has_a_point_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = 1_000_000_020
    aggregate = _aggregate()
    aggregate.totals.started = begin - 1.0
    for second in range(0, 1800, 10):
        monkeypatch.setattr("time.time", lambda second=second: begin + second)
        aggregate.observe(to_record())
    hour = _view(aggregate)["hour"]
    assert {len(values) for values in hour.values()} == {59}
    assert hour["calls"][-29:] == [0.1] * 29
    assert set(hour["calls"][:-29]) == {None, 0.0}
    assert hour["input_tokens"][-1] == 600


def test_texts_from_outside_are_escaped_and_bounded() -> None:
    aggregate = _aggregate(model=NASTY)
    long = "x" * 5000
    outside = {"model": NASTY, "client_request_id": NASTY, "upstream_request_id": long, "rollout_id": NASTY}
    aggregate.observe(to_record(status=404, **outside))
    view = _view(aggregate)
    assert max(len(str(cell)) for rows in view["tables"].values() for row in rows for cell in row) < 300
    tags = _read_page(view).tags
    assert [attributes for tag, attributes in tags if tag == "script"] == [{"nonce": "n"}]
    assert not [tag for tag, _ in tags if tag == "img"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "style"]


def test_open_websockets_and_what_recordings_saved_are_shown() -> None:
    aggregate = Aggregate({"policy_model": "m"}, lambda: {"policy_model": _state()}, count_websockets=lambda: 1200)
    usage = Usage(input_tokens=20_000, output_tokens=300, cached_tokens=0, reasoning_tokens=0)
    aggregate.observe(to_record(is_replayed=True, usage=usage, saved_usd=0.5, cost_usd=0.0))
    view = _view(aggregate)
    assert _tile(view, "In flight")["note"] == "of 8 slots; 1,200 WebSockets open"
    assert "\N{EN DASH} (saved $0.5: 1 calls, 20.3 k tokens)" in view["tables"]["servers"][0]


def test_every_row_has_a_cell_for_each_column() -> None:
    aggregate = _aggregate(rate_limits={"requests": RateLimit(1.0, 1.0, 1.0)}, limits_at=1.0)
    aggregate.observe(to_record(status=404))
    clients = [
        Standing("team", 1.0, "day", 0.25, 0.5, 3, ClientSums(calls=7)),
        Standing("b", None, "total", 0, 0, 0, ClientSums()),
    ]
    tables = make_view({**Snapshots(aggregate).snapshot(), "clients": [_show(client) for client in clients]})["tables"]
    assert tables["clients"][0][:7] == ["team", ["75%", "meter", 0.75], "$1.00 a day", "$0.25", "$0.5", "3", "7"]
    assert tables["clients"][1][:3] == ["b", "", "none"]
    assert [table.id for table in TABLES if not tables[table.id]] == []
    for table in TABLES:
        assert {len(row) for row in tables[table.id]} == {len(table.columns)}, table.id


def test_every_line_of_a_chart_is_there() -> None:
    assert {name for chart in CHARTS for name, _ in chart.lines} <= _view(_aggregate())["charts"].keys()


def test_page_can_be_read_without_seeing_it() -> None:
    tags = _read_page(_view(_aggregate())).tags
    assert ("html", {"lang": "en"}) in tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for tag, attributes in tags if tag == "section"} <= set(ids)
    assert {attributes.get("scope") for tag, attributes in tags if tag == "th"} == {"col", "row"}
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")
    assert [tag for tag, _ in tags if tag in ("h1", "h2", "h3")][:2] == ["h1", "h2"]


@pytest.mark.parametrize(
    ("convert", "value", "text"),
    [
        (to_count, None, UNKNOWN),
        (to_count, 0, "0"),
        (to_count, 9_999, "9,999"),
        (to_count, 12_345, "12.3 k"),
        (to_count, 1_234_567, "1.23 M"),
        (to_count, 2e9, "2.00 G"),
        (to_rate, 0.0, "0.0"),
        (to_rate, 12_345, "12.3 k"),
        (to_duration, 0.0, "0 ms"),
        (to_duration, 999.6, "1.00 s"),
        (to_duration, 42_000, "42.0 s"),
        (to_duration, 119_600, "2 min 0 s"),
        (to_duration, 1_800_000, "30 min 0 s"),
        (to_duration, 7_200_000, "2.0 h"),
        (to_usd, 0, "$0.00"),
        (to_usd, 0.00001, "<$0.0001"),
        (to_usd, 0.00123, "$0.0012"),
        (to_usd, 1234.5, "$1,234.50"),
    ],
)
def test_figures_are_short(convert: Callable[[Any], str], value: float | None, text: str) -> None:
    assert convert(value) == text


def test_snapshot_is_taken_once_a_second_however_many_look() -> None:
    taken: list[float] = []
    now = 100.0
    snapshots = Snapshots(_aggregate())

    def take() -> dict[str, Any]:
        taken.append(now)
        return snapshots.snapshot()

    feed = Feed(take, lambda: now)
    viewers = [feed.enter(lambda: False, None) for _ in range(5)]
    first = [next(viewer) for viewer in viewers]
    feed.view()
    assert taken == [100.0]
    assert first[0].startswith(b"retry: 1000\n\ndata: {")
    assert len(set(first)) == 1
    now = 100.9
    feed.event()
    assert taken == [100.0]
    now = 101.0
    feed.event()
    assert taken == [100.0, 101.0]
    for viewer in viewers:
        viewer.close()
        viewer.close()
    assert feed.viewers == 0


def test_stream_ends_when_the_worker_drains() -> None:
    feed = Feed(Snapshots(_aggregate()).snapshot)
    is_draining = False
    viewer = feed.enter(lambda: is_draining, None)
    next(viewer)
    is_draining = True
    began = time.monotonic()
    with pytest.raises(StopIteration):
        next(viewer)
    assert time.monotonic() - began < 10
    viewer.close()


class _StuckSink:
    """A viewer's connection that takes nothing any more."""

    def to_frame(self, payload: bytes, *, is_last: bool) -> bytes:
        return payload

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        return payload

    def find_chunk_sender(self) -> None:
        return None

    def count_sent(self, length: int) -> None:
        raise AssertionError

    def send_all(self, frame: bytes | memoryview) -> None:
        gevent.sleep(60)


def test_viewer_who_stops_reading_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_gateway.page.feed._TIMEOUTS", Timeouts(client_s=0.2))
    viewer = Feed(Snapshots(_aggregate()).snapshot).enter(lambda: False, None)
    with pytest.raises(ConnectionResetError):
        viewer.pump_into(_StuckSink())
    viewer.close()
