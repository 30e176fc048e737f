"""What is shipped for Prometheus and Grafana asks only for metrics, labels and values that a real `/metrics` has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import ROOT, eventually, run_gateway, run_simulator

DEPLOY = ROOT / "conf" / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
# What Prometheus itself adds to each target's samples, and `up`.
TARGET_LABELS = {"job", "instance"}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
MESSAGES = [{"role": "user", "content": "x"}]
Series = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """The samples of a real gateway after calls of all kinds: name, label, the values seen."""
    folder = tmp_path_factory.mktemp("monitored")
    (folder / "prices.yaml").write_text("models: {the-model: {input: 1.0, output: 2.0}}\n")
    settings = {
        "price_file": "prices.yaml",
        "max_concurrent_requests": 8,
        "max_retries": 1,
        "retry_ratio": None,
        # Away: nothing listens there.
        "limits_url": "redis://127.0.0.1:1/0",
    }
    with run_simulator(folder, {"rpm": 100_000}) as upstream, run_gateway(folder, upstream.url, settings) as gateway:
        for path, body in (("responses", {"input": "x"}), ("chat/completions", {"messages": MESSAGES})):
            for metadata in ({}, {"sim_status": "429", "sim_retry_after": "0.1", "sim_times": "1"}):
                answer = requests.post(f"{gateway.url}/v1/{path}", json={**body, "metadata": metadata}, timeout=60)
                assert answer.status_code == 200
        refused = {"sim_status": "429", "sim_error_code": "concurrency_limit_exceeded", "sim_times": "1"}
        answer = requests.post(f"{gateway.url}/v1/responses", json={"input": "x", "metadata": refused}, timeout=60)
        assert answer.status_code == 200
        assert requests.post(f"{gateway.url}/v1/responses", data="{", timeout=60).status_code == 400
        body = {"input": "x", "stream": True, "metadata": {"sim_event_gap_ms": "500"}}
        with requests.post(f"{gateway.url}/v1/responses", json=body, stream=True, timeout=60) as stream:
            next(stream.iter_content(10))
        eventually(lambda: "limits_redis_up{" in requests.get(f"{gateway.url}/metrics", timeout=60).text)
        eventually(lambda: 'outcome="client_gone"' in requests.get(f"{gateway.url}/metrics", timeout=60).text)
        text = requests.get(f"{gateway.url}/metrics", timeout=60).text
    found: Series = {"up": {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def _read_alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def _read_dashboard() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            # As Grafana fills them in.
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
            yield variable["label"], f"sum by ({label}) ({selector})"


def _read_adapter() -> Iterator[tuple[str, str]]:
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    yield "prometheus-adapter", re.sub(r"\{.*\}", "", rule["seriesQuery"])
    scaler = yaml.safe_load((DEPLOY / "kubernetes" / "autoscaling.yaml").read_text())
    yield "autoscaler", scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert rule["name"]["matches"] == scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]


EXPRESSIONS = [*_read_alerts(), *_read_dashboard(), *_read_adapter()]


@dataclass
class Asked:
    """What an expression asks for: its selectors, and the labels that it groups and joins by."""

    selectors: list[Any]
    labels: set[str]


def _read(expression: str) -> Asked:
    asked = Asked([], set())

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            asked.selectors.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            asked.selectors.append(node)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            asked.labels.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and getattr(node.modifier, "matching", None) is not None:
            asked.labels.update(node.modifier.matching.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return asked


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_expression_asks_for_what_there_is(name: str, expression: str, series: Series) -> None:
    asked = _read(expression)
    assert asked.selectors
    known = set(TARGET_LABELS)
    for selector in asked.selectors:
        assert selector.name in series, f"{selector.name} is no metric of ours"
        labels = series[selector.name]
        known |= labels.keys()
        for matcher in selector.matchers.matchers:
            assert matcher.name in {*labels, *TARGET_LABELS}, f"{selector.name} has no label {matcher.name}"
            if not matcher.value.startswith("$"):
                values = labels.get(matcher.name, {"openai_gateway"})
                assert matcher.value in values, f"{matcher.name} is never {matcher.value}"
    assert asked.labels <= known


def test_dashboard_and_alerts_leave_no_metric_out(series: Series) -> None:
    asked = {selector.name for _, expression in EXPRESSIONS for selector in _read(expression).selectors}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in series}
    assert families == {re.sub(r"_bucket$", "", name) for name in asked}


def test_panels_fill_their_rows_without_overlapping() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & own, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= own
    assert len(cells) == 24 * (1 + max(y for _, y in cells))


@needs_promtool
def test_alerts_are_raised_by_what_they_are_for(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "alerts_test.yaml").read_text()
    (tmp_path / "test.yaml").write_text(text.replace("[ALERTS]", f"[{ALERTS}]"))
    _run_promtool("test", "rules", str(tmp_path / "test.yaml"))


@needs_promtool
def test_scrape_file_and_alerts_are_prometheus_own_form() -> None:
    _run_promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


@needs_promtool
def test_dashboard_is_promql_to_prometheus_too(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(_read_dashboard())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    _run_promtool("check", "rules", str(tmp_path / "rules.yaml"))


def _run_promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    ended = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
