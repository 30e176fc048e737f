"""The log: a line for each call that failed or took long, or for every call; JSON, or plain for a terminal.

Bodies, headers, query strings and keys never get here: a call is logged by its record, which has none of them. See
also: usage_log (which has a line for every call, for programs).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final

from openai_gateway.config import ServerConfig
from openai_gateway.wire.call import CallRecord

_log = logging.getLogger("openai_gateway")
_FIELDS: Final = "call_fields"
_MOST_CHARACTERS: Final = 200
_PLAIN: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class CallLog:
    """Logs the calls of one server; an observer."""

    def __init__(self, server: ServerConfig) -> None:
        self._slow_s = server.slow_call_s
        self._is_complete = server.access_log

    def observe(self, record: CallRecord) -> None:
        """Log a call that failed, whose client left, that the upstream answered with an error, or that took long."""
        is_slow = self._slow_s is not None and record.duration_s > self._slow_s
        if record.outcome != "completed":
            level, how = logging.WARNING, record.outcome
        elif (record.status or 0) >= 400:
            level, how = logging.WARNING, "answered with an error"
        elif is_slow:
            level, how = logging.WARNING, "slow"
        elif self._is_complete:
            level, how = logging.INFO, "completed"
        else:
            return
        if _log.isEnabledFor(level):
            _log.log(level, "call %s", how, extra={_FIELDS: _to_fields(record)})


def _to_fields(record: CallRecord) -> dict[str, Any]:
    usage = record.usage
    fields = {
        "server": record.server,
        "api": record.api,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "code": record.error_code,
        "attempts": record.attempts,
        "queue_s": round(record.queue_wait_s, 4),
        "first_byte_s": None if record.first_byte_s is None else round(record.first_byte_s, 4),
        "duration_s": round(record.duration_s, 4),
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "rollout": record.rollout_id,
        "request_id": record.request_id,
        "upstream_request_id": record.upstream_request_id,
        "client_request_id": record.client_request_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a call's fields beside the usual ones."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PlainFormatter(logging.Formatter):
    """A line for people; a call's fields as `name=value`, quoted where a value could be taken for more than one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, _FIELDS, {})
        return " ".join([super().format(record), *(f"{name}={_quote(value)}" for name, value in fields.items())])


def _quote(value: Any) -> str:
    text = str(value)
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS] + "..."
    return text if text.isprintable() and not any(sign in text for sign in ' "=') else json.dumps(text)


class LostLines:
    """How many lines of the log this process could not write: its reader had stopped, or its disk was full."""

    count = 0


lost_lines: Final = LostLines()


def make_lost_line(count: int) -> str:
    """Return the line that says how many are missing before it, as the log's other lines are written."""
    message = f"{count} lines of the log were lost before this one: its reader was too slow"
    level = logging.WARNING
    fields = {"name": _log.name, "msg": message, "levelno": level, "levelname": logging.getLevelName(level)}
    return _formatter.format(logging.makeLogRecord(fields)) + "\n"


_formatter: logging.Formatter = PlainFormatter(_PLAIN)


def configure_logging(level: str, style: str) -> None:
    """Log to stderr from `level` on; style `auto` is plain on a terminal, else JSON. gunicorn's own lines follow."""
    global _formatter
    is_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    _formatter = JsonFormatter() if is_json else PlainFormatter(_PLAIN)
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _log.setLevel(level.upper())
    for other in logging.getLogger("gunicorn.error").handlers:
        other.setFormatter(_formatter)
        if type(other) is logging.StreamHandler:
            other.setStream(sys.stderr)
