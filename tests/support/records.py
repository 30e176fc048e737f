"""Records of calls, made up for tests of what becomes of them."""

from __future__ import annotations

from typing import Any

from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.usage import Usage

_ORDINARY = {
    "time": 1_700_000_000.0,
    "server": "policy_model",
    "api": "responses",
    "method": "POST",
    "path": "/responses",
    "rollout_id": None,
    "request_id": "gwreq_1",
    "client_request_id": None,
    "upstream_request_id": None,
    "outcome": "completed",
    "status": 200,
    "error_code": None,
    "attempts": 1,
    "retries": (),
    "queue_wait_s": 0.0,
    "queue_reason": None,
    "first_byte_s": 0.5,
    "duration_s": 1.0,
    "request_bytes": 10,
    "answer_bytes": 20,
    "is_metered": True,
    "model": "m",
    "finish_reason": "completed",
    "service_tier": None,
    "system_fingerprint": None,
    "usage": Usage(100, 50, 40, None, 10),
    "cost_usd": 0.25,
    "traceparent": None,
}


def to_record(**changes: Any) -> CallRecord:
    """Return the record of an ordinary call with some changes."""
    return CallRecord(**{**_ORDINARY, **changes})
