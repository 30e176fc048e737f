"""Captures the calls of each rollout to `<rollout id>.capture.jsonl`, in the form that NeMo Gym's own servers write.

Source: NeMo Gym `base_responses_api_model`, whose readers take these files; a rollout that lacks a call is told by an
empty file `<rollout id>.capture.incomplete`. Bodies go in as they are written, for making Python objects of them takes
30 times their memory. An answer that is too long to be kept is left out.

Nothing here waits: not for a FIFO's reader, nor for who holds the lock of a file (BlockingIOError: try again later).
See also: capturing (which does that), streams (which makes one answer of a stream's events).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from openai_gateway.accounting.line_file import append_line
from openai_gateway.accounting.streams import assemble_answer
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


_LEVELS: Final = 100
_MARGIN: Final = (b"[" * _LEVELS, b"]" * _LEVELS)
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class _Response(msgspec.Struct):
    status: msgspec.Raw = msgspec.Raw(b"")


_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_status_decoder = msgspec.json.Decoder(_Response)


class Captures:
    """The capture files in a folder; `lost` counts the calls that are missing in them."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.lost = 0

    def to_line(self, record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> bytes:
        """Return the line of an exchange; `answer` None was too long to be kept."""
        return msgspec.json.encode(make_exchange(record, request, answer, is_stream=is_stream)) + b"\n"

    def append(self, rollout_id: str, line: bytes) -> None:
        """Append a line, all of it or nothing. Raises OSError; BlockingIOError if another process has the lock."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # It may be a FIFO: without a reader this fails at once (ENXIO), with one the check below does.
        fd = os.open(self._folder / f"{rollout_id}.capture.jsonl", _FLAGS, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            append_line(fd, line)
        finally:
            os.close(fd)

    def mark_incomplete(self, rollout_id: str) -> None:
        """Leave the file that tells readers that a call is missing. Raises OSError."""
        os.close(os.open(self._folder / f"{rollout_id}.capture.incomplete", _FLAGS, 0o644))

    def count_lost(self, rollout_id: str, why: str) -> None:
        """Count and log a call that could not be captured."""
        self.lost += 1
        path = self._folder / f"{rollout_id}.capture.jsonl"
        _log.error("a call was not captured in %s: %s", path, why)


def make_exchange(record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> dict[str, Any]:
    """Return one line of a capture file, bodies as raw JSON."""
    body = _read_raw(request)
    found = None if not answer else assemble_answer(answer, record.api) if is_stream else answer
    response = None if found is None else _read_raw(found)
    exchange = {
        "model_call_id": uuid.uuid4().hex,
        "dialect": record.api,
        "model_ref": {"type": "responses_api_models", "name": record.server},
        "started_at": record.time,
        "completed_at": record.time + record.duration_s,
        "latency_ms": round(record.duration_s * 1000, 2),
        "latency_ttft_ms": None if record.first_byte_s is None else round(record.first_byte_s * 1000, 2),
        "status_code": record.status,
        "error_category": _find_category(record, response),
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


def _find_category(record: CallRecord, response: msgspec.Raw | None) -> str | None:
    status = record.status or 0
    if record.outcome == "client_gone":
        return "cancelled"
    if status >= 400:
        return _CATEGORIES.get(status, "client_error" if status < 500 else "upstream_error")
    if record.outcome == "failed":
        return "stream_truncated"
    if response is None:
        return "capture_parse_error"
    reached = _read_status(response)
    return "incomplete" if reached == "incomplete" else "upstream_error" if reached == "failed" else None


def _read_status(response: msgspec.Raw) -> str | None:
    try:
        return bytes(_status_decoder.decode(bytes(response)).status).strip(b'"').decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _read_raw(body: bytes) -> msgspec.Raw | None:
    """Return a body as it goes into a line if it is an object that readers can read, None otherwise."""
    try:
        body.decode()
        # With a margin of nesting: readers may have less stack left, and the line adds a level around the body.
        _raw_decoder.decode(_MARGIN[0] + body + _MARGIN[1])
    except (UnicodeDecodeError, RecursionError):
        return None
    except msgspec.MsgspecError:
        # Such as half a surrogate pair, which Python's own reader takes.
        body = _rewrite(body)
    text = body.strip()
    # A line end in JSON is white space: in a text it is escaped.
    return msgspec.Raw(text.replace(b"\n", b" ").replace(b"\r", b" ")) if text.startswith(b"{") else None


def _rewrite(body: bytes) -> bytes:
    """Return a body as Python's own reader and writer have it, `b""` if they refuse it."""
    try:
        return json.dumps(json.loads(_MARGIN[0] + body + _MARGIN[1]))[_LEVELS:-_LEVELS].encode()
    except (ValueError, RecursionError):
        return b""
