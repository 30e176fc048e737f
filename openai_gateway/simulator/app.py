"""The simulator's Flask app: its URLs, the headers of every answer, and what it saw, under `/sim/`.

`/sim/stats` counts, `/sim/reset` (POST) starts them anew, `/sim/last` is the last request under `/v1/`, and
`/sim/requests/<x-client-request-id>` one of the last 50 that had such a header; none of these needs a key. See also:
simulation (what happens to a call), counters (what is counted).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import flask
from werkzeug.exceptions import MethodNotAllowed

from openai_gateway.simulator.counters import Counters, Received
from openai_gateway.simulator.dialects import make_headers
from openai_gateway.simulator.errors import ApiError, unknown_url
from openai_gateway.simulator.observer import Observer
from openai_gateway.simulator.settings import SimulatorSettings
from openai_gateway.simulator.simulation import Simulation
from openai_gateway.simulator.stored import make_chat_blueprint, make_models_blueprint, make_responses_blueprint
from openai_gateway.simulator.websocket import WebSocket, is_handshake


def create_app(settings: SimulatorSettings, clock: Callable[[], float] = time.monotonic) -> flask.Flask:
    """Return the app of a simulator with its own state."""
    app = flask.Flask("openai_gateway.simulator", static_folder=None)
    simulation = Simulation(settings, clock)
    app.add_url_rule("/", "root", lambda: {"status": "ok"})
    app.add_url_rule("/v1/responses", "responses", lambda: simulation.call("responses"), methods=["POST"])
    app.add_url_rule("/v1/chat/completions", "chat", lambda: simulation.call("chat"), methods=["POST"])
    app.register_blueprint(make_responses_blueprint(simulation.store, settings))
    app.register_blueprint(make_chat_blueprint(simulation.store))
    app.register_blueprint(make_models_blueprint(settings.models))
    app.register_blueprint(_make_counters_blueprint(simulation.counters))
    _add_errors(app)
    _add_headers(app, simulation)
    # A connection that is dropped as scripted has to reach gunicorn.
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.wsgi_app = Observer(app.wsgi_app, simulation.counters)  # type: ignore[method-assign]
    _add_websocket(app, simulation)
    return app


def _add_websocket(app: flask.Flask, simulation: Simulation) -> None:
    """Serve WebSockets before Flask's routing, which never matches a plain rule on a handshake."""
    serve_plain = app.wsgi_app

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if not (is_handshake(environ) and simulation.settings.websocket and "gunicorn.socket" in environ):
            return serve_plain(environ, start_response)
        with app.request_context(environ):
            try:
                simulation.counters.keep(_to_received(flask.request), None)
                simulation.authenticate()
            except ApiError as error:
                return Observer(error.to_response(), simulation.counters)(environ, start_response)
        # Its responses are calls under way, an open connection is none.
        simulation.counters.begin("GET", environ["PATH_INFO"])
        simulation.counters.end(is_whole=True, is_stream=False)
        WebSocket(app, simulation, environ).serve()
        raise ConnectionResetError(errno.ECONNRESET, "the WebSocket is over")

    app.wsgi_app = serve  # type: ignore[method-assign]


def _add_headers(app: flask.Flask, simulation: Simulation) -> None:
    numbers = count(1)

    @app.before_request
    def begin() -> None:
        flask.g.began_s = time.monotonic()
        request = flask.request
        if request.path.startswith("/v1/"):
            simulation.counters.keep(_to_received(request), request.headers.get("x-client-request-id"))
            simulation.authenticate()

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        if flask.request.path.startswith("/v1/"):
            # Those of a call are as they were when it was admitted or refused.
            told = flask.g.get("told") or simulation.limits.tell()
            response.headers.extend(
                [
                    ("x-request-id", f"req_sim{next(numbers):012d}"),
                    ("openai-processing-ms", str(int((time.monotonic() - flask.g.began_s) * 1000))),
                    ("openai-version", "2020-10-01"),
                    ("openai-organization", "simulator"),
                    ("set-cookie", "__cf_bm=one; path=/; HttpOnly"),
                    ("set-cookie", "_cfuvid=two; path=/; HttpOnly"),
                    *make_headers(simulation.settings.dialect, _find_api(flask.request.path), told, time.time()),
                ]
            )
        return response


def _find_api(path: str) -> str:
    return "chat" if path.startswith("/v1/chat/") else "responses"


def _to_received(request: flask.Request) -> Received:
    environ = request.environ
    return Received(
        method=environ["REQUEST_METHOD"],
        path=environ["PATH_INFO"],
        query=environ.get("QUERY_STRING", ""),
        raw_uri=environ.get("RAW_URI", ""),
        headers=list(request.headers.items()),
        body=request.get_data(),
    )


def _add_errors(app: flask.Flask) -> None:
    @app.errorhandler(ApiError)
    def answer_error(error: ApiError) -> flask.Response:
        return error.to_response()

    @app.errorhandler(404)
    def answer_unknown(_: Any) -> flask.Response:
        return unknown_url(flask.request.method, flask.request.path).to_response()

    @app.errorhandler(405)
    def answer_wrong_method(error: MethodNotAllowed) -> flask.Response:
        message = f"Invalid method for URL ({flask.request.method} {flask.request.path})"
        allow = ", ".join(sorted(error.valid_methods or ()))
        return ApiError(405, message, "method_not_allowed", headers=(("allow", allow),)).to_response()


def _make_counters_blueprint(counters: Counters) -> flask.Blueprint:
    urls = flask.Blueprint("sim", __name__, url_prefix="/sim")

    @urls.get("/stats")
    def stats() -> dict[str, Any]:
        return counters.to_json()

    @urls.post("/reset")
    def reset() -> dict[str, Any]:
        counters.reset()
        return counters.to_json()

    @urls.get("/last")
    def last() -> dict[str, Any]:
        return counters.last.to_json() if counters.last is not None else {}

    @urls.get("/requests/<path:request_id>")
    def kept(request_id: str) -> dict[str, Any]:
        found = counters.kept.get(request_id)
        return found.to_json() if found is not None else {}

    return urls
