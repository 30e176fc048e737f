"""What operators, probes and NeMo Gym ask of the process itself.

Never behind the cap, and behind a key only where calls end by it; no upstream call is made. See also:
accounting.metrics, page.status, kept_probe.
"""

from __future__ import annotations

from typing import Any, Final

import flask
import werkzeug

from openai_gateway.accounting.metrics import render
from openai_gateway.accounting.snapshot import Snapshots, merge_states
from openai_gateway.accounting.totals import ServerState
from openai_gateway.blueprints.calls import CallServer
from openai_gateway.blueprints.serving import SERVERS, SNAPSHOTS
from openai_gateway.errors import Forbidden
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


@blueprint.delete("/queue")
def close_queues() -> tuple[str, int]:
    """Have all calls that wait in this worker give up, from now on, so that a run that stops sends no more.

    It takes a key that has no name, of every server: nobody else's calls are to end by it.
    """
    servers: dict[str, CallServer] = flask.current_app.extensions[SERVERS]
    for server in servers.values():
        client = server.keys.authenticate(flask.request.environ)
        if client is not None or not server.keys.are_required:
            raise Forbidden("Only a key of gateway_api_keys closes the queue.", code="operator_key_needed")
    for server in servers.values():
        server.close_queue()
    return "", 204


@blueprint.get("/readyz")
def readiness() -> tuple[dict[str, Any], int]:
    """Tell whether calls can succeed: 503 while draining or a breaker refuses calls; with this worker's state.

    What was found out of the upstream's limits is all workers'.

    `?upstream=1` asks every upstream for its models, too, within a few seconds.
    """
    servers: dict[str, CallServer] = flask.current_app.extensions[SERVERS]
    snapshots: Snapshots = flask.current_app.extensions[SNAPSHOTS]
    of_all = merge_states(snapshots.total()[1])
    states = {name: {**_describe_state(server), **_describe_limits(of_all[name])} for name, server in servers.items()}
    is_ready = not draining.is_on
    # Not `is_open`: once its next probe is due, a call must come to make it, or the breaker would never close.
    is_ready = is_ready and not any(server.is_refusing() for server in servers.values())
    if flask.request.args.get("upstream") == "1":
        for name, server in servers.items():
            status = states[name]["upstream"] = server.probe(_PROBE_S)
            is_ready = is_ready and isinstance(status, int) and status not in (401, 403) and status < 500
    return {"status": "ready" if is_ready else "not ready", "servers": states}, 200 if is_ready else 503


def _describe_limits(state: ServerState) -> dict[str, Any]:
    found = state.learned_limits
    return {
        "limits": {
            kind: {"per_minute": round(limit.per_minute, 3), "used_share": limit.used_shares()[0]}
            for kind, limit in found.items()
        },
        "most_in_flight": state.most_in_flight,
    }


def _describe_state(server: CallServer) -> dict[str, Any]:
    state = server.state()
    return {
        "in_flight": state.in_flight,
        "queued": state.queued,
        "queue_reason": state.queue_reason,
        "retrying": state.retrying,
        "max_concurrent_requests": state.cap,
        "breaker": "open" if state.is_breaker_open else "closed",
    }
