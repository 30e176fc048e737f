"""What the gateway tells of its calls (usage log, metrics, headers, log, captures), against the simulator's counts."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from openai_gateway.accounting.shared_files import SharedFiles, make_folder_name
from tests.support.processes import Gunicorn, eventually, run_gateway, run_simulator

PRICES = {"models": {"the-model": {"input": 1.0, "cached": 0.1, "output": 2.0}}}
Metrics = dict[str, list[tuple[dict[str, str], float]]]
MESSAGES = [{"role": "user", "content": "How many?"}]
SETTINGS = {
    "usage_log": "usage.jsonl",
    "price_file": "prices.yaml",
    "access_log": True,
    "max_retries": 1,
    "max_concurrent_requests": 30,
    "retry_ratio": None,
    "observability_enabled": True,
    "model_call_capture_dir": "captures",
}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    settings = {"api_key": "sk-upstream-key", "rpm": 1_000_000}
    with run_simulator(tmp_path_factory.mktemp("simulator"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "prices.yaml").write_text(yaml.safe_dump(PRICES))
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path, simulator: Gunicorn) -> Iterator[Gunicorn]:
    with run_gateway(folder, simulator.url, SETTINGS, "-w", "2") as running:
        eventually(lambda: _sum(_metrics(running), "openai_gateway_workers") == 2)
        yield running


def _metrics(gateway: Gunicorn) -> Metrics:
    text = requests.get(f"{gateway.url}/metrics", timeout=60).text
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _settled(gateway: Gunicorn, name: str, value: float) -> Metrics:
    """Return the metrics once a sum in them is `value`: a worker knows of the others' calls half a second late."""
    found: list[Metrics] = []

    def is_settled() -> bool:
        found.append(_metrics(gateway))
        return _sum(found[-1], name) == value

    eventually(is_settled)
    return found[-1]


def _count_in_shared_files(gateway: Gunicorn) -> int:
    """Return how many calls the workers have told each other of."""
    files = SharedFiles(Path(tempfile.gettempdir()) / make_folder_name(gateway.pid), gateway.pid)
    living, ended = files.read_others()
    accounts = [account for totals in [*living, *ended] for account in totals.accounts.values()]
    return sum(sum(account.calls.values()) for account in accounts)


def _record(folder: Path, answer: requests.Response) -> dict[str, Any]:
    """Return the record of a call, which is written right after its last byte."""
    request_id = answer.headers["x-gateway-request-id"]
    eventually(lambda: any(record["request_id"] == request_id for record in _read_usage_log(folder)))
    return next(record for record in _read_usage_log(folder) if record["request_id"] == request_id)


def _sum(metrics: Metrics, name: str, **labels: str) -> float:
    return sum(value for given, value in metrics.get(name, []) if labels.items() <= given.items())


def _read_usage_log(folder: Path) -> list[dict[str, Any]]:
    # It is made with the first record.
    path = folder / "usage.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _post(url: str, path: str, body: dict[str, Any], **headers: str) -> requests.Response:
    answer = requests.post(f"{url}{path}", json=body, headers={"x-client-request-id": "me", **headers}, timeout=60)
    assert answer.content
    return answer


def _bodies() -> list[tuple[str, dict[str, Any]]]:
    chat, responses = {"messages": MESSAGES}, {"input": "How many?"}
    usage = {"stream_options": {"include_usage": True}}
    return [
        ("/v1/responses", responses),
        ("/v1/responses", {**responses, "stream": True}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True, **usage}),
        ("/v1/responses", {**responses, "metadata": {"sim_status": "503", "sim_times": "1"}}),
    ]


def test_totals_of_500_calls_are_the_same_everywhere(gateway: Gunicorn, simulator: Gunicorn, folder: Path) -> None:
    requests.post(f"{simulator.url}/sim/reset", timeout=60)
    bodies = _bodies()
    with ThreadPoolExecutor(20) as pool:
        jobs = [pool.submit(_post, gateway.url, *bodies[index % len(bodies)]) for index in range(500)]
        statuses = [job.result().status_code for job in jobs]
    metrics, usage_log = _settled(gateway, "openai_gateway_calls_total", 500), _read_usage_log(folder)
    seen = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()

    assert len(usage_log) == 500
    assert len({record["request_id"] for record in usage_log}) == 500
    by_class = {kind: sum(str(status).startswith(kind[0]) for status in statuses) for kind in ("2xx", "5xx")}
    for kind, count in by_class.items():
        assert _sum(metrics, "openai_gateway_calls_total", status=kind, outcome="completed") == count
        assert sum(str(record["status"]).startswith(kind[0]) for record in usage_log) == count
    attempts = sum(record["attempts"] for record in usage_log)
    assert attempts == seen["requests"] == _sum(metrics, "openai_gateway_upstream_attempts_total")
    assert sum(len(record["retries"]) for record in usage_log) == _sum(metrics, "openai_gateway_retries_total")
    for kind in ("input", "output"):
        counted = sum(record["usage"][f"{kind}_tokens"] for record in usage_log if record["usage"])
        assert counted == seen[f"{kind}_tokens"] == _sum(metrics, "openai_gateway_tokens_total", kind=kind) > 0
    cost = sum(record["cost_usd"] for record in usage_log if record["usage"])
    assert _sum(metrics, "openai_gateway_cost_usd_total") == pytest.approx(cost)
    assert cost > 0
    assert _sum(metrics, "openai_gateway_call_duration_seconds_count") == 500
    sent = sum(record["answer_bytes"] for record in usage_log)
    assert _sum(metrics, "openai_gateway_answer_bytes_total") == sent > 0
    assert _sum(metrics, "openai_gateway_ratelimit_limit", kind="requests") == 1_000_000
    assert _sum(metrics, "openai_gateway_concurrency_limit") == 60
    assert _sum(metrics, "openai_gateway_calls_in_flight") == 0


def test_sums_outlive_a_worker_that_is_killed(gateway: Gunicorn, folder: Path) -> None:
    for _ in range(10):
        _post(gateway.url, *_bodies()[0])
    count = 510
    eventually(lambda: _count_in_shared_files(gateway) == count)
    killed = gateway.workers()[0]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in gateway.workers() and len(gateway.workers()) == 2)
    eventually(lambda: _sum(_metrics(gateway), "openai_gateway_workers") == 2)
    _settled(gateway, "openai_gateway_calls_total", count)


def test_answer_tells_id_attempts_and_queue_wait(gateway: Gunicorn, folder: Path) -> None:
    answer = _post(gateway.url, *_bodies()[0])
    assert answer.headers["x-gateway-attempts"] == "1"
    assert answer.headers["x-gateway-queue-ms"].isdigit()
    record = _record(folder, answer)
    assert record["client_request_id"] == "me"
    assert record["upstream_request_id"] == answer.headers["x-request-id"]
    refused = requests.post(f"{gateway.url}/v1/responses", data="{", timeout=60)
    assert (refused.status_code, refused.headers["x-gateway-attempts"]) == (400, "0")
    eventually(lambda: refused.headers["x-gateway-request-id"] in gateway.log())


def test_every_call_is_a_json_line_in_the_log_without_its_body(gateway: Gunicorn) -> None:
    request_id = _post(gateway.url, *_bodies()[2]).headers["x-gateway-request-id"]
    eventually(lambda: request_id in gateway.log())
    line = json.loads(next(line for line in gateway.log().splitlines() if request_id in line))
    assert (line["level"], line["message"], line["status"], line["api"]) == ("info", "call completed", 200, "chat")
    assert "How many" not in gateway.log()


def test_chat_stream_without_usage_has_unknown_tokens_not_zero(gateway: Gunicorn, folder: Path) -> None:
    answer = _post(gateway.url, "/v1/chat/completions", {"messages": MESSAGES, "stream": True})
    record = _record(folder, answer)
    assert (record["usage"], record["cost_usd"], record["finish_reason"]) == (None, None, "stop")
    unknown = sum(record["is_metered"] and record["usage"] is None for record in _read_usage_log(folder))
    eventually(lambda: _sum(_metrics(gateway), "openai_gateway_calls_without_usage_total") == unknown > 0)


def test_counting_tokens_is_free_and_no_unknown_usage(gateway: Gunicorn, folder: Path) -> None:
    record = _record(folder, _post(gateway.url, "/v1/responses/input_tokens", {"input": "x"}))
    assert (record["status"], record["is_metered"], record["usage"], record["cost_usd"]) == (200, False, None, None)


def test_client_that_left_gives_a_record(gateway: Gunicorn, folder: Path) -> None:
    body = {"input": "x", "stream": True, "metadata": {"sim_event_gap_ms": "200"}}
    with requests.post(f"{gateway.url}/v1/responses", json=body, stream=True, timeout=60) as answer:
        next(answer.iter_content(10))
    record = _record(folder, answer)
    assert (record["outcome"], record["usage"]) == ("client_gone", None)
    eventually(lambda: _sum(_metrics(gateway), "openai_gateway_client_disconnects_total") == 1)


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        pytest.param("/v1/responses", {"input": "Hi", "model": "asked"}, "responses", id="responses"),
        pytest.param("/v1/chat/completions", {"messages": MESSAGES, "model": "asked"}, "chat", id="chat"),
    ],
)
def test_call_of_a_rollout_is_captured_as_nemo_gym_does(
    gateway: Gunicorn, folder: Path, path: str, body: dict[str, Any], dialect: str, is_stream: bool
) -> None:
    rollout = f"{dialect}-{is_stream}"
    sent = {**body, "stream": is_stream}
    _post(gateway.url, f"/ng-rollout/{rollout}{path}", sent)
    file = folder / "captures" / f"{rollout}.capture.jsonl"
    # It is there before the answer's last byte.
    exchange = json.loads(file.read_text())
    assert {"model_call_id", "started_at", "completed_at", "latency_ms", "latency_ttft_ms"} <= exchange.keys()
    assert (exchange["dialect"], exchange["status_code"], exchange["error_category"]) == (dialect, 200, None)
    assert exchange["model_ref"] == {"type": "responses_api_models", "name": "policy_model"}
    assert exchange["request"] == sent
    assert exchange["response"]["model"] == "the-model"
    assert exchange["response"]["object"] == ("response" if dialect == "responses" else "chat.completion")
    if dialect == "chat":
        assert exchange["response"]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("status", [200, 503])
def test_call_whose_capture_is_a_fifo_is_answered_and_its_rollout_marked(
    gateway: Gunicorn, folder: Path, status: int
) -> None:
    rollout = f"fifo-{status}"
    (folder / "captures").mkdir(exist_ok=True)
    os.mkfifo(folder / "captures" / f"{rollout}.capture.jsonl")
    faults = {"sim_status": "503", "sim_times": "9"} if status == 503 else {}
    answer = _post(gateway.url, f"/ng-rollout/{rollout}/v1/responses", {"input": "x", "metadata": faults})
    assert answer.status_code == status
    assert (folder / "captures" / f"{rollout}.capture.incomplete").exists()
    eventually(lambda: _sum(_metrics(gateway), "openai_gateway_lost_records_total", where="captures") >= 1)


def test_refused_call_of_a_rollout_is_captured_before_its_answer(gateway: Gunicorn, folder: Path) -> None:
    body = {"input": "x", "metadata": {"sim_fault": "drop_before_headers"}}
    answer = _post(gateway.url, "/ng-rollout/gone/v1/responses", body)
    exchange = json.loads((folder / "captures" / "gone.capture.jsonl").read_text())
    assert exchange["status_code"] == answer.status_code


def test_headers_of_the_gateway_can_be_switched_off(tmp_path: Path, simulator: Gunicorn) -> None:
    with run_gateway(tmp_path, simulator.url, {"gateway_headers": False}) as gateway:
        answer = _post(gateway.url, *_bodies()[0])
        refused = requests.post(f"{gateway.url}/v1/responses", data="{", timeout=60)
    assert not [name for found in (answer, refused) for name in found.headers if name.startswith("x-gateway")]


def test_sums_outlive_a_reload(gateway: Gunicorn, folder: Path) -> None:
    before = len(_read_usage_log(folder))
    old = set(gateway.workers())
    _post(gateway.url, *_bodies()[0])
    gateway.send_signal(signal.SIGHUP)
    eventually(lambda: len(gateway.workers()) == 2 and not old & set(gateway.workers()))
    _settled(gateway, "openai_gateway_calls_total", before + 1)
