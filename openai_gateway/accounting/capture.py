"""Captures the calls of each rollout to `<rollout id>.capture.jsonl`, in the form that NeMo Gym's own servers write.

Source: NeMo Gym `base_responses_api_model`, whose readers take these files. An answer that is too long to be kept is
left out. See also: streams, which makes one answer of a stream's events.
"""

from __future__ import annotations

import fcntl
import json
import logging
import uuid
from pathlib import Path
from typing import Any, Final

from openai_gateway.accounting.line_file import append_line
from openai_gateway.accounting.streams import to_whole_answer
from openai_gateway.wire.call import CallRecord

_log = logging.getLogger("openai_gateway")
_CATEGORIES: Final = {
    401: "auth",
    403: "auth",
    404: "not_found",
    408: "timeout",
    429: "rate_limit",
    504: "timeout",
}


class Captures:
    """Appends exchanges to the files in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def record(self, record: CallRecord, request: bytes, answer: bytes | None, is_stream: bool) -> None:
        """Append one exchange; `answer` None was too long to be kept. A failure costs the line and a warning."""
        line = _to_line(record, request, answer, is_stream=is_stream)
        path = self._folder / f"{record.rollout_id}.capture.jsonl"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                append_line(file.fileno(), line)
        except OSError as error:
            _log.error("a call was not captured in %s: %s", path, error.strerror or error)


def _to_line(record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> bytes:
    exchange = to_exchange(record, request, answer, is_stream=is_stream)
    try:
        return json.dumps(exchange).encode() + b"\n"
    except RecursionError:
        # What was just shallow enough to be read can be too deep to be written inside a line: then it is kept as text.
        raw = {"request": None, "response": None, "request_raw": request.decode(errors="replace")}
        return (
            json.dumps({**exchange, **raw, "response_raw": (answer or b"").decode(errors="replace")}).encode() + b"\n"
        )


def to_exchange(record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> dict[str, Any]:
    """Return one line of a capture file."""
    body = _to_object(request)
    response = None if not answer else to_whole_answer(answer, record.api) if is_stream else _to_object(answer)
    exchange = {
        "model_call_id": uuid.uuid4().hex,
        "dialect": record.api,
        "model_ref": {"type": "responses_api_models", "name": record.server},
        "started_at": record.time,
        "completed_at": record.time + record.duration_s,
        "latency_ms": round(record.duration_s * 1000, 2),
        "latency_ttft_ms": None if record.first_byte_s is None else round(record.first_byte_s * 1000, 2),
        "status_code": record.status,
        "error_category": _to_category(record, response),
        "request": body,
        "response": response,
    }
    if record.client is not None:
        exchange["client"] = record.client
    if body is None:
        exchange["request_raw"] = request.decode(errors="replace")
    if answer and (is_stream or response is None):
        exchange["response_raw"] = answer.decode(errors="replace")
    return exchange


def _to_category(record: CallRecord, response: dict[str, Any] | None) -> str | None:
    status = record.status or 0
    if record.outcome == "client_gone":
        return "cancelled"
    if status >= 400:
        return _CATEGORIES.get(status, "client_error" if status < 500 else "upstream_error")
    if record.outcome == "failed":
        return "stream_truncated"
    if response is None:
        return "capture_parse_error"
    if response.get("status") in ("failed", "incomplete"):
        return "incomplete" if response["status"] == "incomplete" else "upstream_error"
    return None


def _to_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
