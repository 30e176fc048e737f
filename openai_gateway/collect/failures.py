"""What went wrong with a call: its class, what to do about it, and whether every other call would meet the same.

What a refusal means to the official SDKs is `wire.retries`'.
"""

from __future__ import annotations

from typing import Final

import msgspec

from openai_gateway.wire.retries import FINAL_QUOTA_CODES

_MAX_MESSAGE: Final = 500

_KEY: Final = (
    "set openai_api_key to a key that the upstream takes (with --base-url: put a key that the gateway takes into "
    "the environment's OPENAI_GATEWAY_API_KEY), then go on with --resume"
)
_QUOTA: Final = "add credit or raise the spending limit at the upstream, then go on with --resume"
_MODEL: Final = "set openai_model to a model that the upstream has and that the key may use, then go on with --resume"
_URL: Final = (
    "check openai_base_url, or --base-url (mostly it ends in /v1), and that the upstream has this API: many know "
    "chat completions only, for which rows need messages instead of responses_create_params"
)
_GATEWAY: Final = "see whether the gateway runs and is at this address, then go on with --resume"
_LATER: Final = "--resume tries it again"
_ROW: Final = "mend the row or the config's extra_body as the message says; --resume tries it again"
_SLOWER: Final = "lower --concurrency, or raise the gateway's max_retries and retry_budget_s; --resume tries it again"
_FULL: Final = "lower --concurrency, or raise the gateway's max_queue and queue_timeout_s; --resume tries it again"
_TIME: Final = "raise the gateway's first_byte_timeout_s, or ask for shorter answers; --resume tries it again"

GENERAL: Final = frozenset(
    {"key_refused", "quota_used_up", "model_not_found", "unknown_url", "gateway_unreachable", "gateway_draining"}
)
# No fault of the call's, whatever it asks.
NOT_HELD_AGAINST: Final = GENERAL | {"upstream_unreachable", "upstream_unavailable", "rate_limited", "gateway_full"}


class Failure(msgspec.Struct, frozen=True):
    """Why a call has no usable answer. `status` is None if none came; `attempts` counts those at the upstream."""

    failure_class: str
    status: int | None
    code: str | None
    message: str
    what_to_do: str
    attempts: int | None = None
    request_id: str | None = None

    @property
    def is_general(self) -> bool:
        """Tell whether other calls would fail in the same way."""
        return self.failure_class in GENERAL


class _Error(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    detail: object = None


def to_failure(status: int, body: bytes, attempts: int | None = None, request_id: str | None = None) -> Failure:
    """Return what an answer with an error status means."""
    code, message = _read_error(body)
    failure_class, cure = _classify(status, code)
    return Failure(failure_class, status, code, message, cure, attempts, request_id)


def to_unreachable(message: str) -> Failure:
    """Return the failure of a call that the gateway did not take."""
    return Failure("gateway_unreachable", None, None, message, _GATEWAY)


def to_broken(status: int | None, message: str) -> Failure:
    """Return the failure of a call whose answer broke off or is no JSON object."""
    return Failure("broken_answer", status, None, message, _LATER)


def to_failed_response(status: int, code: str | None, message: str) -> Failure:
    """Return the failure of a call that was answered with a response that failed."""
    return Failure("response_failed", status, code, message[:_MAX_MESSAGE], _LATER)


def _classify(status: int, code: str | None) -> tuple[str, str]:
    if status == 401:
        return "key_refused", _KEY
    if code in FINAL_QUOTA_CODES or status == 402:
        return "quota_used_up", _QUOTA
    if status < 400:
        return "unknown_url", _URL
    if status in (404, 405):
        # A coded 404 may be about something that the row names.
        if code in ("model_not_found", None, "404", "unknown_url", "method_not_allowed", "NotFound", "not_found"):
            return ("model_not_found", _MODEL) if code == "model_not_found" else ("unknown_url", _URL)
        return "not_found", _ROW
    if code in ("gateway_queue_full", "gateway_queue_timeout"):
        return "gateway_full", _FULL
    if code == "gateway_draining":
        return "gateway_draining", _GATEWAY
    if status == 429:
        return "rate_limited", _SLOWER
    if status == 403:
        return "forbidden", "see what the message says: the key may lack a right, or the content is refused"
    if status in (408, 504):
        return "timeout", _TIME
    if code == "upstream_unreachable":
        return code, _LATER
    if status in (502, 503, 529):
        return "upstream_unavailable", _LATER
    if status >= 500:
        return "upstream_error", _LATER
    return "invalid_request", _ROW


def _read_error(body: bytes) -> tuple[str | None, str]:
    """Return code and message of an error answer, whatever its form."""
    try:
        found = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, " ".join(body[:_MAX_MESSAGE].decode(errors="replace").split())
    error = found.error
    if isinstance(error, _Error):
        return (str(error.code) if error.code is not None else None), (error.message or "")[:_MAX_MESSAGE]
    return None, str(error or found.detail or "")[:_MAX_MESSAGE]
