"""OpenTelemetry spans: made of a call's record, children of the client's span; sent by the real gateway."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from openai_gateway.accounting.tracing import Tracing, open_tracing
from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.records import to_record

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def _span(**changes: Any) -> Any:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider, {"policy_model": "asked"}).observe(to_record(**changes))
    return exporter.get_finished_spans()[0]


def test_span_is_a_child_of_the_clients_and_lasts_as_long_as_the_call() -> None:
    span = _span(traceparent=f"00-{TRACE}-{PARENT}-01")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.end_time - span.start_time == 10**9
    assert span.status.is_ok
    assert span.attributes["gen_ai.request.model"] == "asked"
    assert span.attributes["gen_ai.response.model"] == "m"
    assert span.attributes["gen_ai.usage.input_tokens"] == 100
    assert span.attributes["gen_ai.response.finish_reasons"] == ("completed",)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"status": 429}, "429"),
        ({"outcome": "failed", "status": 502, "error_code": "upstream_unreachable"}, "upstream_unreachable"),
        ({"outcome": "client_gone", "status": None, "usage": None}, "client_gone"),
    ],
)
def test_failed_call_is_a_failed_span(changes: dict[str, Any], error: str) -> None:
    span = _span(**changes)
    assert span.parent is None
    assert (span.status.is_ok, span.attributes["error.type"]) == (False, error)


def test_no_collector_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert open_tracing({}) is None


def test_gateway_sends_its_spans_and_hands_traceparent_on(tmp_path: Path, simulator: Gunicorn) -> None:
    received = list[ExportTraceServiceRequest]()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with run_gateway(tmp_path, simulator.url, environ=environ) as gateway:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            requests.post(f"{gateway.url}/v1/responses", json={"input": "x"}, headers=headers, timeout=60)
            eventually(lambda: bool(received))
        collector.shutdown()
    span = received[0].resource_spans[0].scope_spans[0].spans[0]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    sent = dict(requests.get(f"{simulator.url}/sim/last", timeout=60).json()["headers"])
    assert {name.lower(): value for name, value in sent.items()}["traceparent"] == headers["traceparent"]
