"""OpenTelemetry traces, if the standard variables name a collector: one span a call, with `gen_ai.*` attributes.

A span is made when its call is over, from the call's record. If the client sent a `traceparent`, the span is a child
of that one; the header goes on upstream as it came. See also: aggregate, log (the other observers), wire.call (the
record).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from openai_gateway import __version__
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import CallRecord

_log = logging.getLogger("openai_gateway")
_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NS: Final = 1_000_000_000


def open_tracing(models: Mapping[str, str]) -> Callable[[CallRecord], None] | None:
    """Return the observer that exports spans, None if no collector is named; `models` are the configured ones."""
    if not any(os.environ.get(name) for name in _VARIABLES):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("no traces are sent: install openai_gateway[otel], or unset %s", " and ".join(_VARIABLES))
        return None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over these.
    name = os.environ.get("OTEL_SERVICE_NAME", "openai_gateway")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, models).observe


class Tracing:
    """Makes a span of each call's record."""

    def __init__(self, provider: Any, models: Mapping[str, str]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("openai_gateway", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.CLIENT
        self._error = Status(StatusCode.ERROR)
        self._models = models

    def observe(self, record: CallRecord) -> None:
        """Export the span of a call that is over."""
        span = self._tracer.start_span(
            f"chat {self._models[record.server]}",
            context=self._extract({"traceparent": record.traceparent} if record.traceparent else {}),
            kind=self._kind,
            attributes=to_attributes(record, self._models[record.server]),
            start_time=int(record.time * _NS),
        )
        if record.outcome != "completed" or (record.status or 0) >= 400:
            span.set_status(self._error)
        span.end(int((record.time + record.duration_s) * _NS))


def to_attributes(record: CallRecord, model: str) -> dict[str, Any]:
    """Return a span's attributes: OpenTelemetry's GenAI conventions, and ours below `openai_gateway`."""
    usage = record.usage
    error = record.error_code or (str(record.status) if (record.status or 0) >= 400 else None)
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": None if record.finish_reason is None else [record.finish_reason],
        "gen_ai.usage.input_tokens": None if usage is None else usage.input_tokens,
        "gen_ai.usage.output_tokens": None if usage is None else usage.output_tokens,
        "openai.response.service_tier": record.service_tier,
        "openai.response.system_fingerprint": record.system_fingerprint,
        "openai.api.type": "responses" if record.api == Api.RESPONSES else "chat_completions",
        "http.response.status_code": record.status,
        "error.type": "client_gone" if record.outcome == "client_gone" else error,
        "openai_gateway.server": record.server,
        "openai_gateway.request_id": record.request_id,
        "openai_gateway.rollout_id": record.rollout_id,
        "openai_gateway.client": record.client,
        "openai_gateway.attempts": record.attempts,
        "openai_gateway.queue_wait_s": record.queue_wait_s,
        "openai_gateway.cost_usd": record.cost_usd,
    }
    return {name: value for name, value in attributes.items() if value is not None}
