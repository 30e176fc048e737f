"""The errors the gateway itself answers with; each knows its status, type and code (OpenAI's error form).

Answers of the upstream are never turned into these: they are relayed as they are. See also: remedies (what to do
about each), blueprints.reply (how one becomes an answer), transport.errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class GatewayError(Exception):
    """An error that ends a call with an answer made by the gateway.

    `retry_after_s` becomes a `Retry-After` header; `param` names the offending parameter, as OpenAI does;
    `should_retry` becomes `x-should-retry`, None leaves it out; `added_headers` go out as they are.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry: bool | None = None
        self.added_headers: Sequence[tuple[str, str]] = ()
        if code is not None:
            self.code = code

    def to_body(self) -> dict[str, Any]:
        """Return OpenAI's error form, all four keys present."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(GatewayError):
    """The client's request can't be relayed as it is."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_json"


class Unauthorized(GatewayError):
    """The gateway's own key is missing or wrong."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(GatewayError):
    """The client may not do this from where it is."""

    status = 403
    type = "invalid_request_error"
    code = "loopback_only"


class UnknownUrl(GatewayError):
    """The gateway doesn't serve this path."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_url"


class MethodNotAllowed(GatewayError):
    """The path is served, but not with this method; `allow` lists those that are."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTimeout(GatewayError):
    """The client was too slow in sending its body."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class RequestTooLarge(GatewayError):
    """The body is over `max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UpgradeRefused(GatewayError):
    """The client asks for a WebSocket, which isn't served: 426, on which it goes over to plain HTTP at once."""

    status = 426
    type = "invalid_request_error"
    code = "websocket_not_supported"


class UnsupportedMediaType(GatewayError):
    """The body is not JSON by its content type or is encoded."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class Saturated(GatewayError):
    """No slot: the queue is full, or the wait in it was too long."""

    status = 429
    type = "rate_limit_error"
    code = "gateway_queue_full"


class BudgetExceeded(GatewayError):
    """The budget of the client, or of its run, leaves no room for the call; waiting a little doesn't help."""

    status = 429
    type = "insufficient_quota"
    code = "gateway_budget_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.should_retry = False


class ClientBusy(GatewayError):
    """The client has as many calls under way as it may."""

    status = 429
    type = "rate_limit_error"
    code = "gateway_client_busy"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=1)


class UpstreamError(GatewayError):
    """The upstream gave no usable answer; if `is_final`, it would give none to another attempt either."""

    status = 502
    type = "upstream_error"
    code = "upstream_protocol_error"
    is_final = False


class UpstreamUnreachable(UpstreamError):
    """No connection to the upstream, or it broke before an answer came."""

    code = "upstream_unreachable"


class OutOfDescriptors(UpstreamError):
    """The gateway can't open a connection, which is no fault of the upstream's."""

    status = 503
    code = "gateway_out_of_descriptors"


class UpstreamProtocolError(UpstreamError):
    """The upstream's bytes are not a complete HTTP answer."""


class UpstreamTimeout(UpstreamError):
    """The upstream did not connect, answer or go on in time."""

    status = 504
    code = "upstream_timeout"


class CallTimeout(UpstreamError):
    """The whole call took longer than `total_timeout_s`; never tried again."""

    status = 504
    code = "upstream_timeout"


class KeyRefused(UpstreamError):
    """The upstream has refused the gateway's key: calls are not made for a while."""

    status = 401
    code = "upstream_key_refused"


class QuotaUsedUp(UpstreamError):
    """The upstream has no quota left for the gateway's key: calls are not made for a while."""

    status = 429
    code = "insufficient_quota"


class Unavailable(GatewayError):
    """The gateway won't make the call now: draining, or its breaker is open."""

    status = 503
    type = "upstream_error"
    code = "gateway_draining"


class NoRecording(GatewayError):
    """The call may not be made, and no answer to it is kept (RFC 9111 5.2.1.7)."""

    status = 504
    type = "upstream_error"
    code = "gateway_no_recording"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.should_retry = False


class MalformedBody(Exception):
    """The chunks of a request's body are malformed; where the next request starts is unknown."""


class ClientGone(Exception):
    """The client left; nobody is there to answer."""


class Cancelled(BaseException):
    """Thrown into the greenlet that serves a call; `reason` is what the call ends with.

    A BaseException, so that no `except OSError` or `except Exception` of a library on the way wraps it.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason
