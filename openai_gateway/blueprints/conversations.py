"""The Conversations API's URLs below `/v1`: passed on as stored objects are.

See also: calls (relaying).
"""

from __future__ import annotations

import flask

from openai_gateway.blueprints.calls import Endpoint
from openai_gateway.blueprints.serving import relay
from openai_gateway.wire.api import Api

_STORED = Endpoint(Api.RESPONSES)

blueprint = flask.Blueprint("conversations", __name__, url_prefix="/v1/conversations")


@blueprint.post("")
@blueprint.get("/<item_id:conversation_id>")
@blueprint.post("/<item_id:conversation_id>")
@blueprint.delete("/<item_id:conversation_id>")
@blueprint.get("/<item_id:conversation_id>/items")
@blueprint.post("/<item_id:conversation_id>/items")
@blueprint.get("/<item_id:conversation_id>/items/<item_id:conversation_item_id>")
@blueprint.delete("/<item_id:conversation_id>/items/<item_id:conversation_item_id>")
def stored(conversation_id: str | None = None, conversation_item_id: str | None = None) -> flask.Response:
    """Create, retrieve, update or delete a conversation, or add, list, retrieve or delete its items."""
    return relay(_STORED)
