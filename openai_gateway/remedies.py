"""Says what to do about a call that failed, in one sentence each, for people who look at the status page.

Which calls failed is `accounting`'s to know.
"""

from __future__ import annotations

from typing import Final

_QUOTA: Final = (
    "The account's quota or credit is used up: raise it in the upstream's billing settings; waiting does not help."
)
_BAD_REQUEST: Final = "The client's request is at fault: its error message names what is wrong; sending it again fails."
_REFUSED_KEY: Final = "The upstream refused the key: check openai_api_key (or its file) and its project."
_OWN: Final = {
    "invalid_api_key": "The client sent no or a wrong key: it needs one of gateway_api_keys as its api_key.",
    "invalid_json": _BAD_REQUEST,
    "invalid_type": _BAD_REQUEST,
    "missing_required_parameter": _BAD_REQUEST,
    "websocket_not_supported": "The client asked for the Responses API's WebSocket mode: it should send calls as POST.",
    "gateway_no_recording": "No answer to this call is kept: record it first, or set recordings: reuse.",
    "unsupported_media_type": "The client must send its body as plain application/json.",
    "request_too_large": "The request is larger than max_body_bytes: send less, or raise it.",
    "request_timeout": "The client sent its body too slowly: check its network, or raise client_timeout_s.",
    "gateway_queue_full": "More calls than slots and queue hold: send fewer at once, or raise max_concurrent_requests"
    " or max_queue.",
    "gateway_queue_timeout": "No slot came free within queue_timeout_s: send fewer calls at once, or raise"
    " max_concurrent_requests.",
    "gateway_draining": "The gateway was stopping or reloading: send the call again.",
    "upstream_unreachable": "No connection to the upstream: check openai_base_url, name resolution, firewall and"
    " certificate (ssl_ca_file).",
    "upstream_protocol_error": "The upstream's answer broke off or was not HTTP: send the call again; if this stays,"
    " check openai_base_url and what lies on the way.",
    "upstream_timeout": "The upstream was too slow: send the call again; if such calls take long, raise"
    " first_byte_timeout_s, idle_timeout_s or total_timeout_s.",
    "internal_error": "The gateway itself failed: its log has the traceback; please report it.",
}
_UPSTREAM: Final = {
    **dict.fromkeys(
        (
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
        ),
        _QUOTA,
    ),
    "rate_limit_exceeded": "The upstream's rate limit is reached: lower max_concurrent_requests, or wait.",
    "invalid_api_key": _REFUSED_KEY,
    "model_not_found": "The upstream does not know this model, or the key may not use it: check openai_model.",
    "context_length_exceeded": "The input is longer than the model takes: shorten it.",
}
_STATUSES: Final = {
    401: _REFUSED_KEY,
    402: _QUOTA,
    403: "The upstream does not allow this to the key: check its permissions, project, region and openai_model.",
    404: "The upstream knows no such model, item or URL: check openai_model, openai_base_url and ids.",
    408: "The upstream gave up waiting: send the call again.",
    409: "The upstream is busy with the same item: send the call again.",
    413: "The request is too large for the upstream: send less.",
    429: "Rate limit: lower max_concurrent_requests, or wait. If every call fails so, the quota is used up:"
    " check billing.",
    503: "The upstream is overloaded: wait, or lower max_concurrent_requests.",
    504: "A proxy before the upstream gave up waiting: send the call again.",
}


def to_advice(status: int | None, code: str | None, outcome: str) -> str:
    """Return what to do about a failed call.

    `outcome` as in CallRecord: if `failed`, the gateway itself answered or a stream broke, and the code is its own.
    """
    known, unknown = (_OWN, "internal_error") if outcome == "failed" else (_UPSTREAM, "")
    advice = known.get(code or unknown) or _STATUSES.get(status or 0)
    if advice is not None:
        return advice
    if status is not None and status < 500:
        return _BAD_REQUEST
    return "The upstream failed: send the call again; if this stays, look at the upstream's status page."
