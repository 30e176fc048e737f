"""The Responses API's URLs below `/v1`.

Each says how its calls are treated. See also: calls (relaying).
"""

from __future__ import annotations

import flask

from openai_gateway.blueprints.calls import Endpoint
from openai_gateway.blueprints.serving import relay
from openai_gateway.wire.api import Api
from openai_gateway.wire.envelope import ModelEnvelope, ResponsesEnvelope

CREATE = Endpoint(Api.RESPONSES, ResponsesEnvelope(), takes_defaults=True)
_COMPACT = Endpoint(Api.RESPONSES, ModelEnvelope())
# Counting is free, and its answer is no usage.
_COUNT = Endpoint(Api.RESPONSES, ModelEnvelope(), is_free=True)
_STORED = Endpoint(Api.RESPONSES)

blueprint = flask.Blueprint("responses", __name__, url_prefix="/v1/responses")


@blueprint.post("")
def create() -> flask.Response:
    """Create a response."""
    return relay(CREATE)


@blueprint.post("/compact")
def compact() -> flask.Response:
    """Compact a conversation."""
    return relay(_COMPACT)


@blueprint.post("/input_tokens")
def count() -> flask.Response:
    """Count the input tokens of a call."""
    return relay(_COUNT)


@blueprint.get("/<item_id:response_id>")
@blueprint.delete("/<item_id:response_id>")
@blueprint.post("/<item_id:response_id>/cancel")
@blueprint.get("/<item_id:response_id>/input_items")
def stored(response_id: str) -> flask.Response:
    """Retrieve, delete or cancel a stored response, or list its input items."""
    return relay(_STORED)
