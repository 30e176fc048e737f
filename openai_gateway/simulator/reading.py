"""Reads what a request brings: its JSON body and its key.

See also: simulation and stored (what is made of it).
"""

from __future__ import annotations

import json
from typing import Any

import flask

from openai_gateway.simulator.errors import ApiError

_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
    "correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
)


def read_json() -> dict[str, Any]:
    """Return the body of the current request. Raises ApiError."""
    try:
        body = json.loads(flask.request.get_data())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, _NOT_JSON)
    return body


def read_key() -> str:
    """Return the key of the current request, `Authorization: Bearer` or Azure's `api-key`; empty if there is none."""
    scheme, _, token = flask.request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else flask.request.headers.get("api-key", "")
