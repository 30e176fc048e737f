"""What came of a call: the response to keep or the failure, and the line that tells it.

See also: journal (where lines are written).
"""

from __future__ import annotations

from time import time
from typing import Any, Final

import msgspec

from openai_gateway.collect.client import GatewayAnswer
from openai_gateway.collect.failures import Failure, make_broken_failure, make_failure, make_response_failure
from openai_gateway.collect.plan import PlannedCall
from openai_gateway.collect.questions import RESPONSES
from openai_gateway.collect.rows import (
    DURATION,
    FAILURE,
    FAILURE_CLASS,
    LATENCY,
    PERHAPS_BILLED,
    REPLAYED,
    RESPONSE,
    ROLLOUT_INDEX,
    TASK_INDEX,
    to_line,
)

_NO_RESPONSE: Final = ("failed", "cancelled", "queued", "in_progress")


class _Choice(msgspec.Struct):
    error: Any = None
    finish_reason: Any = None
    message: Any = None


class _Verdict(msgspec.Struct):
    """What of an answer tells whether it is one."""

    status: Any = None
    error: Any = None
    output: list[msgspec.Raw] | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    detail: Any = None
    message: Any = None


def read_result(api: str, found: GatewayAnswer | Failure) -> tuple[bytes, Failure | None]:
    """Return the response as one line of JSON, or why there is none to keep."""
    if isinstance(found, Failure):
        return b"", found
    request_id = found.headers.get("x-gateway-request-id") or found.headers.get("x-request-id")
    if found.status >= 300:
        return b"", make_failure(found.status, found.body, found.attempts, request_id)
    try:
        found.body.decode()
        response = msgspec.json.format(found.body, indent=-1)
        verdict = msgspec.json.decode(response, type=_Verdict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return b"", make_broken_failure(found.status, "the answer is no JSON object")
    wrong = _find_fault(api, verdict)
    if wrong is None:
        return response, None
    code, message = wrong
    return b"", make_response_failure(found.status, code, f"answered with 200, but {message}")


def _find_fault(api: str, verdict: _Verdict) -> tuple[str | None, str] | None:
    """Return code and message of what was answered with 200 in the place of an answer; None if it is one."""
    failed = next((choice for choice in verdict.choices or () if choice.error or choice.finish_reason == "error"), None)
    error = verdict.error or (failed.error if failed is not None else None)
    if isinstance(error, dict):
        code = error.get("code")
        return None if code is None else str(code), _name("with an error", error.get("message"))
    if error or failed is not None:
        return None, _name("with an error", error)
    if api == RESPONSES and verdict.status in _NO_RESPONSE:
        return None, f"with status {verdict.status}"
    # `{}`, `{"detail": ...}`, `{"object": "error", ...}`: what proxies and servers of their own kind answer with.
    if not (verdict.output is not None if api == RESPONSES else verdict.choices):
        return None, _name(f"without {'output' if api == RESPONSES else 'choices'}", verdict.message or verdict.detail)
    return None if _holds_something(api, verdict) else (None, "with nothing in it")


def _name(fault: str, message: Any) -> str:
    return f"{fault}: {message}" if message else fault


def _holds_something(api: str, verdict: _Verdict) -> bool:
    """Tell an answer that is empty from a hull of one: where tokens were counted, a model ran and had nothing to say.

    Such an answer is a sample like any other, and leaving it out would skew the rest. A choice without a message is
    read by nobody, whatever was counted.
    """
    if api != RESPONSES:
        return any(choice.message is not None for choice in verdict.choices or ())
    return bool(verdict.output or verdict.usage) or verdict.status == "incomplete"


class AnswerTimes(msgspec.Struct, frozen=True):
    """How long an answer took, with all waiting, and its last attempt alone."""

    duration_s: float
    latency_s: float


def make_answer_line(
    call: PlannedCall, found: GatewayAnswer, response: bytes, times: AnswerTimes, perhaps_billed_usd: float
) -> bytes:
    """Return the output's line of an answer, in NeMo Gym's form, with what its earlier attempts may have cost."""
    where = {TASK_INDEX: call.row.task_index, ROLLOUT_INDEX: call.rollout_index}
    told: dict[str, float | bool] = {DURATION: round(times.duration_s, 3)}
    if times.latency_s < times.duration_s:
        told[LATENCY] = round(times.latency_s, 3)
    if found.is_replayed:
        told[REPLAYED] = True
    if perhaps_billed_usd:
        told[PERHAPS_BILLED] = round(perhaps_billed_usd, 6)
    return to_line(call.row.to_fields(call.rollout_index), {RESPONSE: msgspec.Raw(response), **where, **told})


def make_failure_line(call: PlannedCall, failure: Failure, perhaps_billed_usd: float) -> bytes:
    """Return the line of a failure, with what it may cost all the same."""
    told = {
        "status": failure.status,
        "code": failure.code,
        "message": failure.message,
        "attempts": failure.attempts,
        "request_id": failure.request_id,
        "what_to_do": failure.what_to_do,
        "perhaps_billed_usd": round(perhaps_billed_usd, 6),
        "time": round(time(), 3),
    }
    where = {TASK_INDEX: call.row.task_index, ROLLOUT_INDEX: call.rollout_index}
    return to_line(
        call.row.to_fields(call.rollout_index), {**where, FAILURE_CLASS: failure.failure_class, FAILURE: told}
    )
