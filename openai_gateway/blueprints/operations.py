"""What operators, probes and NeMo Gym ask of the process itself.

Never behind the cap or a key, and no upstream call is made.
"""

from __future__ import annotations

from typing import Any

import flask

from openai_gateway.blueprints.calls import CallServer
from openai_gateway.blueprints.serving import SERVERS

blueprint = flask.Blueprint("operations", __name__)


@blueprint.get("/")
def status() -> dict[str, str]:
    """Tell that the process serves (NeMo Gym's `GET /`)."""
    return {"status": "ok"}


@blueprint.get("/healthz")
def health() -> dict[str, str]:
    """Tell that the process lives."""
    return {"status": "ok"}


@blueprint.get("/readyz")
def readiness() -> tuple[dict[str, Any], int]:
    """Tell whether calls can succeed: 503 while a breaker is open; with what is in flight and queued in this worker."""
    servers: dict[str, CallServer] = flask.current_app.extensions[SERVERS]
    states = {name: _to_state(server) for name, server in servers.items()}
    is_ready = not any(server.relay.breaker.is_open for server in servers.values())
    return {"status": "ready" if is_ready else "not ready", "servers": states}, 200 if is_ready else 503


def _to_state(server: CallServer) -> dict[str, Any]:
    slots = server.relay.slots
    return {
        "in_flight": slots.in_flight,
        "queued": slots.queued,
        "max_concurrent_requests": slots.cap,
        "breaker": "open" if server.relay.breaker.is_open else "closed",
    }
