"""Writes one line for each call that did not end well.

Bodies, headers and query strings never get here.
"""

from __future__ import annotations

import logging

from openai_gateway.wire.call import CallRecord

_log = logging.getLogger("openai_gateway")


def log_failed_call(record: CallRecord) -> None:
    """Log a call that failed, or whose client left; a relayed answer of the upstream only if it is an error."""
    if record.outcome == "completed" and (record.status or 0) < 400:
        return
    _log.warning(
        "call %s server=%s api=%s method=%s path=%s status=%s code=%s attempts=%d queue_s=%.3f duration_s=%.3f"
        " rollout=%s request_id=%s client_request_id=%s",
        record.outcome,
        record.server,
        record.api,
        record.method,
        record.target.partition("?")[0],
        record.status if record.status is not None else "-",
        record.error_code or "-",
        record.attempts,
        record.queue_wait_s,
        record.duration_s,
        record.rollout_id or "-",
        record.upstream_request_id or "-",
        record.client_request_id or "-",
    )
