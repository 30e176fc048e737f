"""What a failed call means and what a person can do about it: one kind and one cure for each status and code.

Three places tell people: the status page, `check` and `collect`. All ask here, so that the same error has the same
advice everywhere. A cure is looked up from the most telling to the least: by the error's code, by the status, by the
kind. Names in braces are what the reader would change; a caller may say more about them, such as where a value is
from.

See also: wire.retries (which failures are tried again), collect.failures (which ones end a run).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from openai_gateway.wire.retries import FINAL_QUOTA_CODES

KEY_REFUSED: Final = "key_refused"
QUOTA_USED_UP: Final = "quota_used_up"
FORBIDDEN: Final = "forbidden"
REGION_REFUSED: Final = "region_refused"
MODEL_NOT_FOUND: Final = "model_not_found"
UNKNOWN_URL: Final = "unknown_url"
NOT_FOUND: Final = "not_found"
INVALID_REQUEST: Final = "invalid_request"
RATE_LIMITED: Final = "rate_limited"
GATEWAY_FULL: Final = "gateway_full"
GATEWAY_DRAINING: Final = "gateway_draining"
TIMEOUT: Final = "timeout"
UPSTREAM_UNREACHABLE: Final = "upstream_unreachable"
UPSTREAM_UNAVAILABLE: Final = "upstream_unavailable"
UPSTREAM_ERROR: Final = "upstream_error"

_KINDS_BY_CODE: Final = {
    **dict.fromkeys(FINAL_QUOTA_CODES, QUOTA_USED_UP),
    "model_not_found": MODEL_NOT_FOUND,
    # Azure's.
    "DeploymentNotFound": MODEL_NOT_FOUND,
    "unsupported_country_region_territory": REGION_REFUSED,
    "upstream_key_refused": KEY_REFUSED,
    "gateway_queue_full": GATEWAY_FULL,
    "gateway_client_busy": GATEWAY_FULL,
    "gateway_budget_exceeded": QUOTA_USED_UP,
    "gateway_queue_timeout": GATEWAY_FULL,
    "gateway_draining": GATEWAY_DRAINING,
    "gateway_out_of_descriptors": GATEWAY_FULL,
    "upstream_unreachable": UPSTREAM_UNREACHABLE,
    "upstream_timeout": TIMEOUT,
}
_KINDS_BY_STATUS: Final = {
    401: KEY_REFUSED,
    402: QUOTA_USED_UP,
    403: FORBIDDEN,
    405: UNKNOWN_URL,
    408: TIMEOUT,
    429: RATE_LIMITED,
    501: UNKNOWN_URL,
    502: UPSTREAM_UNAVAILABLE,
    503: UPSTREAM_UNAVAILABLE,
    504: TIMEOUT,
    529: UPSTREAM_UNAVAILABLE,
}
# What servers that know nothing of a path answer with; any other code of a 404 is about something the call named.
_CODES_OF_NO_PATH: Final = (None, "404", "unknown_url", "NotFound", "not_found")
_NO_MODEL: Final = re.compile(r"\bmodel\b.*(not exist|not found)|not have access to (the )?model", re.IGNORECASE)

_BAD_REQUEST: Final = "the request is at fault: its error message names what is wrong; sending it again fails"
_AGAIN: Final = "send the call again"
_CURES_BY_KIND: Final = {
    KEY_REFUSED: "the key is wrong, revoked, or of another provider: set {key}",
    QUOTA_USED_UP: "the quota is used up: add credit or raise the limit in the provider's billing settings; waiting"
    " and retrying don't help",
    FORBIDDEN: "the key may not do this: look at its permissions, its project, the model, and the provider's rules for"
    " regions and content",
    REGION_REFUSED: "the provider doesn't serve this country or region: send from another, or use another provider",
    MODEL_NOT_FOUND: "there is no such model for this key: set {model}",
    UNKNOWN_URL: "the upstream doesn't serve this path: check {url}, and that it has this API{api}; some answer so for"
    " an unknown model, too: check {model}",
    NOT_FOUND: "the upstream has no such item: check the ids that the request names",
    INVALID_REQUEST: _BAD_REQUEST,
    RATE_LIMITED: "the upstream's rate limit is reached: lower {concurrency}, or wait{wait}; long runs need a large"
    " retry_budget_s; if every call fails so, the quota is used up: check billing",
    GATEWAY_FULL: "the gateway has more calls than slots and queue hold: lower {concurrency}, or raise max_queue and"
    " queue_timeout_s",
    GATEWAY_DRAINING: f"the gateway was stopping or reloading: {_AGAIN}",
    TIMEOUT: f"the upstream was too slow: {_AGAIN}; if such calls take long, raise {{timeout}}, or ask"
    " for shorter answers",
    UPSTREAM_UNREACHABLE: "no connection to the upstream: check {url}, name resolution, firewall and certificate"
    " (ssl_ca_file)",
    UPSTREAM_UNAVAILABLE: f"the upstream is overloaded or down: {_AGAIN} in a while, or lower {{concurrency}}",
    UPSTREAM_ERROR: f"the upstream has trouble of its own: {_AGAIN}; if this stays, look at its status page or log",
}
_CURES_BY_CODE: Final = {
    "rate_limit_exceeded": "the upstream's rate limit is reached: lower {concurrency}, or wait{wait}; long runs need a"
    " large retry_budget_s",
    "context_length_exceeded": "the input is longer than the model takes: shorten it",
    "invalid_json": _BAD_REQUEST,
    "invalid_type": _BAD_REQUEST,
    "missing_required_parameter": _BAD_REQUEST,
    "invalid_handshake": _BAD_REQUEST,
    "too_many_messages": "the client sends messages faster than slots come free: it should wait for answers",
    "websocket_not_supported": "there is no WebSocket mode here, or upstream: the client should send calls as POST",
    "gateway_no_recording": "no answer to this call is kept: record it first, or set recordings: reuse",
    "unsupported_media_type": "the client must send its body as plain application/json",
    "request_too_large": "the request is larger than max_body_bytes: send less, or raise it",
    "request_timeout": "the client sent its body too slowly: check its network, or raise client_timeout_s",
    "gateway_queue_full": "more calls than slots and queue hold: lower {concurrency}, or raise max_concurrent_requests"
    " or max_queue",
    "gateway_queue_timeout": "no turn within queue_timeout_s, or the endpoint refused every call for retry_budget_s:"
    " lower {concurrency}, or raise max_concurrent_requests",
    "gateway_out_of_descriptors": "the gateway may open no more files: raise ulimit -n; each call needs two",
    "gateway_budget_exceeded": "the client's budget in clients_file, or its run's, is used up: raise it, or wait"
    " until it is renewed",
    "gateway_client_busy": "the client has as many calls under way as it may: lower {concurrency}, or raise its"
    " max_concurrent_requests in clients_file",
    "server_not_allowed": "the client may not use this server: change its servers in clients_file",
    "upstream_protocol_error": f"the upstream's answer broke off or was not HTTP: {_AGAIN}; if this stays, check"
    " {url} and what lies on the way",
}
_CURES_BY_STATUS: Final = {
    409: f"the upstream is busy with the same item: {_AGAIN}",
    413: "the request is too large for the upstream: send less",
}
_REDIRECTED: Final = "redirects are never followed, as the key would leak: set {url} to where it leads"
# Codes that mean something else when the gateway itself answers.
_OWN_CURES: Final = {
    "invalid_api_key": "the client sent no or a wrong key: it needs one of gateway_api_keys as its api_key",
    "internal_error": "the gateway itself failed: its log has the traceback; please report it",
}
_NAMES: Final = MappingProxyType(
    {
        "key": "openai_api_key (or its file)",
        "model": "openai_model",
        "url": "openai_base_url",
        "api": "",
        "concurrency": "max_concurrent_requests",
        "timeout": "first_byte_timeout_s, idle_timeout_s or total_timeout_s",
        "wait": "",
    }
)


@dataclass(frozen=True)
class Remedy:
    """The kind of a failure, and what to do about it."""

    kind: str
    _template: str

    def tell(self, **names: str) -> str:
        """Return what to do; `names` say more of what the reader would change: key, model, url, api, ..."""
        return self._template.format_map({**_NAMES, **names})


def find_remedy(status: int, code: str | None, message: str = "") -> Remedy:
    """Return what an answer with an error status means."""
    kind = _find_kind(status, code, message)
    cure = _CURES_BY_CODE.get(code or "")
    if cure is None and status < 400:
        cure = _REDIRECTED
    return Remedy(kind, cure or _CURES_BY_STATUS.get(status) or _CURES_BY_KIND[kind])


def advise(status: int | None, code: str | None, outcome: str) -> str:
    """Return what to do about a call that is over, as a sentence.

    `outcome` as in CallRecord: if `failed`, the gateway itself answered or a stream broke, and the code is its own.
    """
    cure = _OWN_CURES.get(code or "internal_error") if outcome == "failed" else None
    if cure is None:
        cure = find_remedy(status or 0, code).tell()
    return f"{cure[0].upper()}{cure[1:]}."


def _find_kind(status: int, code: str | None, message: str) -> str:
    known = _KINDS_BY_CODE.get(code or "")
    if known is None and status in (403, 404) and _NO_MODEL.search(message):
        # vLLM's code is the status, and so is that of many who don't know the path.
        return MODEL_NOT_FOUND
    known = known or _KINDS_BY_STATUS.get(status)
    if known is not None:
        return known
    if status == 404:
        return UNKNOWN_URL if code in _CODES_OF_NO_PATH else NOT_FOUND
    if status < 400:
        return UNKNOWN_URL
    return INVALID_REQUEST if status < 500 else UPSTREAM_ERROR
