"""What operators, probes and NeMo Gym ask of the process itself.

Never behind the cap or a key, and no upstream call is made.
"""

from __future__ import annotations

from typing import Any, Final

import flask
import werkzeug

from openai_gateway.accounting.metrics import render
from openai_gateway.blueprints.calls import CallServer
from openai_gateway.blueprints.serving import SERVERS, SNAPSHOTS
from openai_gateway.server import draining

_PROBE_S: Final = 5.0

blueprint = flask.Blueprint("operations", __name__)


@blueprint.get("/")
def status() -> dict[str, str] | werkzeug.Response:
    """Tell that the process serves (NeMo Gym's `GET /`); lead a person with a browser to the status page."""
    accepted = flask.request.accept_mimetypes
    if accepted["text/html"] > accepted["application/json"]:
        # Relative, for a proxy may have taken a prefix off.
        return flask.redirect("status")
    return {"status": "ok"}


@blueprint.get("/healthz")
def health() -> dict[str, str]:
    """Tell that the process lives."""
    return {"status": "ok"}


@blueprint.get("/metrics")
def metrics() -> flask.Response:
    """Return the metrics of all workers, for Prometheus."""
    body, content_type = render(flask.current_app.extensions[SNAPSHOTS], flask.request.headers.get("accept", ""))
    return flask.Response(body, content_type=content_type)


@blueprint.get("/readyz")
def readiness() -> tuple[dict[str, Any], int]:
    """Tell whether calls can succeed: 503 while draining or a breaker refuses calls; with this worker's state.

    `?upstream=1` asks every upstream for its models, too, within a few seconds.
    """
    servers: dict[str, CallServer] = flask.current_app.extensions[SERVERS]
    states = {name: _to_state(server) for name, server in servers.items()}
    is_ready = not draining.is_on
    # Not `is_open`: once its next probe is due, a call must come to make it, or the breaker would never close.
    is_ready = is_ready and not any(server.is_refusing() for server in servers.values())
    if flask.request.args.get("upstream") == "1":
        for name, server in servers.items():
            status = states[name]["upstream"] = server.probe(_PROBE_S)
            is_ready = is_ready and isinstance(status, int) and status not in (401, 403) and status < 500
    return {"status": "ready" if is_ready else "not ready", "servers": states}, 200 if is_ready else 503


def _to_state(server: CallServer) -> dict[str, Any]:
    state = server.state()
    return {
        "in_flight": state.in_flight,
        "queued": state.queued,
        "retrying": state.retrying,
        "max_concurrent_requests": state.cap,
        "breaker": "open" if state.is_breaker_open else "closed",
    }
