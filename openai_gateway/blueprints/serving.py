"""Finds the server that the current request is for; the only reader of Flask's request and app.

See also: app (which takes prefixes off the path and names the server).
"""

from __future__ import annotations

from typing import Final

import flask

from openai_gateway.blueprints.calls import CallServer, Endpoint

SERVERS: Final = "openai_gateway"
SNAPSHOTS: Final = "openai_gateway.snapshots"
FEED: Final = "openai_gateway.feed"
SERVER_NAME: Final = "openai_gateway.server"


def current_server() -> CallServer:
    """Return the server that the current request's path names, or the default one."""
    server: CallServer = flask.current_app.extensions[SERVERS][flask.request.environ[SERVER_NAME]]
    return server


def relay(endpoint: Endpoint) -> flask.Response:
    """Relay the current request. Raises GatewayError."""
    return current_server().serve(flask.request.environ, endpoint)
