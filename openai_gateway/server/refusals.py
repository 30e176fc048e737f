"""The answers to requests that no app gets to see, in OpenAI's error form: heads that are malformed or too long.

Neither answer nor log shows anything of the request: what broke its head may be the client's key. See also:
request_heads (what finds them), errors.
"""

from __future__ import annotations

import json
from http.client import responses as REASONS
from time import time
from typing import Final

from gunicorn.http import errors
from gunicorn.http.wsgi import SERVER
from gunicorn.util import http_date

from openai_gateway.errors import GatewayError, InvalidRequest

# (status, code, message) by gunicorn's error; any other that its parser raises is a 400.
_KNOWN: Final[dict[type[Exception], tuple[int, str, str]]] = {
    errors.LimitRequestLine: (414, "uri_too_long", "The request line is too long."),
    errors.LimitRequestHeaders: (431, "request_headers_too_large", "The request's headers are too many or too large."),
    errors.ExpectationFailed: (417, "expectation_failed", "Of all expectations, '100-continue' alone is met."),
    errors.UnsupportedTransferCoding: (
        501,
        "unsupported_transfer_coding",
        "Of all transfer codings, 'chunked' is taken.",
    ),
    errors.ForbiddenProxyRequest: (403, "forbidden_proxy", "This peer may not speak the PROXY protocol here."),
    errors.InvalidRequestLine: (400, "malformed_request", "The request line is malformed."),
    errors.InvalidRequestMethod: (400, "malformed_request", "The request's method is malformed."),
    errors.InvalidHTTPVersion: (400, "malformed_request", "The request's HTTP version is not 1.0 or 1.1."),
    errors.InvalidHeaderName: (400, "malformed_request", "The name of a request header is malformed."),
    errors.InvalidHeader: (400, "malformed_request", "A request header is malformed or given twice."),
    errors.ObsoleteFolding: (400, "malformed_request", "A request header goes over more than one line."),
}
_OTHER: Final = (400, "malformed_request", "The request is malformed.")


def describe_refusal(error: errors.ParseException) -> tuple[int, str, str]:
    """Return status, code and message for what gunicorn's parser raised."""
    return _KNOWN.get(type(error), _OTHER)


def make_refusal(status: int, code: str, message: str) -> bytes:
    """Return a whole answer, after which the connection ends."""
    kind = GatewayError if status == 500 else InvalidRequest
    body = json.dumps(kind(message, code=code).to_body()).encode()
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nServer: {SERVER}\r\nDate: {http_date(time())}\r\n"
        f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
