"""Errors in OpenAI's form, in OpenAI's words.

See also: simulation and stored (when they happen).
"""

from __future__ import annotations

import json
from typing import Any, Final

import flask

from openai_gateway.simulator.settings import Script

_BAD_REQUEST: Final = "invalid_request_error"
_SCRIPTED: Final[dict[int, tuple[str, str | None, str]]] = {
    400: (_BAD_REQUEST, None, "Bad request, as scripted."),
    401: (_BAD_REQUEST, "invalid_api_key", "Incorrect API key provided: {key}."),
    403: (_BAD_REQUEST, "unsupported_country_region_territory", "Country, region, or territory not supported"),
    404: (_BAD_REQUEST, "model_not_found", "The model `{model}` does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for {model}, as scripted."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("service_unavailable_error", None, "The engine is currently overloaded, please try again later"),
}
_QUOTA: Final = "You exceeded your current quota, please check your plan and billing details."
_SHOWN_START: Final = 8
_SHOWN_END: Final = 4


class ApiError(Exception):
    """An error answer in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        kind: str = _BAD_REQUEST,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.form: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = headers

    def to_response(self) -> flask.Response:
        """Return the answer."""
        response = flask.Response(json.dumps(self.form), self.status, content_type="application/json")
        response.headers.extend(self.headers)
        return response


def missing_key() -> ApiError:
    """Return the answer to a call without a key."""
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY)."
    )
    return ApiError(401, message)


def wrong_key(key: str) -> ApiError:
    """Return the answer to a call with a key that isn't the account's; it shows the key masked, as OpenAI's does."""
    return ApiError(401, f"Incorrect API key provided: {mask_key(key)}.", "invalid_api_key")


def unknown_model(model: str) -> ApiError:
    """Return the answer to a call for a model that doesn't exist."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, "model_not_found", param="model")


def missing_parameter(name: str) -> ApiError:
    """Return the answer to a body that lacks a required parameter."""
    return ApiError(400, f"Missing required parameter: '{name}'.", "missing_required_parameter", param=name)


def unknown_url(method: str, path: str) -> ApiError:
    """Return the answer to a URL that isn't served."""
    return ApiError(404, f"Unknown request URL: {method} {path}.", "unknown_url")


def scripted(script: Script, *, key: str, model: Any) -> ApiError:
    """Return the error that a script asks for."""
    default = ("server_error", None, f"Scripted error {script.status}.")
    kind, code, message = _SCRIPTED.get(script.status, default)
    code = script.error_code or code
    if code == "insufficient_quota":
        kind, message = code, _QUOTA
    headers = [("retry-after", script.retry_after), ("x-should-retry", script.should_retry)]
    return ApiError(
        script.status,
        message.format(key=mask_key(key), model=model),
        code,
        kind=kind,
        headers=tuple((name, value) for name, value in headers if value),
    )


def mask_key(key: str) -> str:
    """Return a key as OpenAI shows it: `sk-proj-****wxyz`; of a short one only the first character."""
    if len(key) < 2 * (_SHOWN_START + _SHOWN_END):
        return key[:1] + "*" * len(key[1:])
    return key[:_SHOWN_START] + "*" * (len(key) - _SHOWN_START - _SHOWN_END) + key[-_SHOWN_END:]
