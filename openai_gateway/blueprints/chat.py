"""The Chat Completions API's URLs below `/v1`.

Each says how its calls are treated. See also: calls (relaying).
"""

from __future__ import annotations

import flask

from openai_gateway.blueprints.calls import Endpoint
from openai_gateway.blueprints.serving import relay
from openai_gateway.wire.api import Api
from openai_gateway.wire.envelope import ChatEnvelope

CREATE = Endpoint(Api.CHAT, ChatEnvelope(), takes_defaults=True)
_STORED = Endpoint(Api.CHAT)

blueprint = flask.Blueprint("chat", __name__, url_prefix="/v1/chat/completions")


@blueprint.post("")
def create() -> flask.Response:
    """Create a chat completion."""
    return relay(CREATE)


@blueprint.get("")
@blueprint.get("/<item_id:completion_id>")
@blueprint.post("/<item_id:completion_id>")
@blueprint.delete("/<item_id:completion_id>")
@blueprint.get("/<item_id:completion_id>/messages")
def stored(completion_id: str | None = None) -> flask.Response:
    """List stored completions, or retrieve, update or delete one, or list its messages."""
    return relay(_STORED)
