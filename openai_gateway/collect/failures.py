"""What went wrong with a call of a run: its class, what to do about it, and whether every other call would meet it.

See also: remedies (what an error status means and how it is cured; its kinds are the failure classes).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from openai_gateway.remedies import (
    GATEWAY_DRAINING,
    GATEWAY_FULL,
    INVALID_REQUEST,
    KEY_REFUSED,
    MODEL_NOT_FOUND,
    QUOTA_USED_UP,
    RATE_LIMITED,
    REGION_REFUSED,
    UNKNOWN_URL,
    UPSTREAM_UNAVAILABLE,
    UPSTREAM_UNREACHABLE,
    find_remedy,
)

_MAX_MESSAGE: Final = 500

# What the reader of a run would change.
_NAMES: Final = {
    "key": "openai_api_key to a key that the upstream takes (with --base-url: OPENAI_GATEWAY_API_KEY in the"
    " environment to one that the gateway takes)",
    "url": "openai_base_url or --base-url (mostly it ends in /v1)",
    "api": " (many know chat completions only, for which rows need messages instead of responses_create_params)",
    "concurrency": "--concurrency",
    "timeout": "--timeout (with --base-url: that gateway's first_byte_timeout_s, idle_timeout_s or total_timeout_s)",
}
_GATEWAY: Final = "see whether the gateway runs and is at this address"
_GO_ON: Final = "then go on with --resume"
_LATER: Final = "--resume tries it again"
_MEND: Final = "mend the row, then go on with --resume"

_STATUS: Final = re.compile("[45][0-9][0-9]")
_UNREACHABLE: Final = "gateway_unreachable"
_CANCELLED: Final = "cancelled"
# What every other call would meet, too.
GENERAL: Final = frozenset(
    {
        KEY_REFUSED,
        QUOTA_USED_UP,
        REGION_REFUSED,
        MODEL_NOT_FOUND,
        UNKNOWN_URL,
        GATEWAY_DRAINING,
        _UNREACHABLE,
    }
)
# No fault of the call's, whatever it asks.
NOT_HELD_AGAINST: Final = GENERAL | {UPSTREAM_UNREACHABLE, UPSTREAM_UNAVAILABLE, RATE_LIMITED, GATEWAY_FULL, _CANCELLED}


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
    # Of servers that put no object around it, such as older ones of vLLM.
    message: str | None = None


def make_failure(status: int, body: bytes, attempts: int | None = None, request_id: str | None = None) -> Failure:
    """Return what an answer with an error status means."""
    code, message = _read_error(body)
    remedy = find_remedy(status, code, message)
    end = _GO_ON if remedy.kind in GENERAL else _MEND if remedy.kind == INVALID_REQUEST else _LATER
    return Failure(remedy.kind, status, code, message, f"{remedy.tell(**_NAMES)}; {end}", attempts, request_id)


def make_unreachable_failure(message: str) -> Failure:
    """Return the failure of a call that the gateway did not take."""
    return Failure(_UNREACHABLE, None, None, message, f"{_GATEWAY}; {_GO_ON}")


def make_broken_failure(status: int | None, message: str) -> Failure:
    """Return the failure of a call whose answer broke off or is no JSON object."""
    return Failure("broken_answer", status, None, message, _LATER)


def make_cancelled_failure() -> Failure:
    """Return the failure of a call that ended with its run."""
    return Failure(_CANCELLED, None, None, "the run was stopped while the upstream may have worked on it", _LATER)


def make_response_failure(status: int, code: str | None, message: str) -> Failure:
    """Return the failure of a call that was answered with a response that failed.

    What is no fault of the call's has its own class: a background response that met the limit, or a router's 200 with
    `{"error": {"code": 402}}`.
    """
    remedy = find_remedy(_find_status(code), code, message)
    message = message[:_MAX_MESSAGE]
    if remedy.kind not in NOT_HELD_AGAINST or remedy.kind == UNKNOWN_URL:
        return Failure("response_failed", status, code, message, _LATER)
    end = _GO_ON if remedy.kind in GENERAL else _LATER
    return Failure(remedy.kind, status, code, message, f"{remedy.tell(**_NAMES)}; {end}")


def _find_status(code: str | None) -> int:
    """Return the status that an error within a 200 stands for; 500 if it doesn't say."""
    if code == "rate_limit_exceeded":
        return 429
    return int(code) if code is not None and _STATUS.fullmatch(code) else 500


def _read_error(body: bytes) -> tuple[str | None, str]:
    """Return code and message of an error answer, whatever its form."""
    try:
        found = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, " ".join(body[:_MAX_MESSAGE].decode(errors="replace").split())
    error = found.error
    if isinstance(error, _Error):
        return (str(error.code) if error.code is not None else None), (error.message or "")[:_MAX_MESSAGE]
    return None, str(error or found.detail or found.message or "")[:_MAX_MESSAGE]
