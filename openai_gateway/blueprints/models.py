"""`/v1/models`: the one configured model, answered by the gateway itself.

No upstream call is made: a client asks this at its start, and often without a key. See also: serving (which server is
asked).
"""

from __future__ import annotations

from time import time
from typing import Any, Final

import flask

from openai_gateway.blueprints.serving import current_server
from openai_gateway.errors import UnknownUrl

_CREATED: Final = int(time())

blueprint = flask.Blueprint("models", __name__, url_prefix="/v1/models")


@blueprint.get("")
def list_models() -> dict[str, Any]:
    """List the configured model."""
    return {"object": "list", "data": [_make_model(current_server().model)]}


@blueprint.get("/<path:model>")
def retrieve_model(model: str) -> dict[str, Any]:
    """Return the configured model if `model` is its name."""
    configured = current_server().model
    if model != configured:
        raise UnknownUrl(
            f"The model '{model[:200]}' does not exist here; this gateway serves '{configured}'.",
            code="model_not_found",
            param="model",
        )
    return _make_model(configured)


def _make_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "openai_gateway"}
