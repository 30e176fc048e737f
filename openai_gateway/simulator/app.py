"""The simulator's Flask app: the way of a simulated call, from key check to body.

Forms of answers are `responses`' and `chat`'s; stored ones are served by `stored`, counts by `/sim/`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import flask

from openai_gateway.simulator import chat, responses
from openai_gateway.simulator.answers import Said, say
from openai_gateway.simulator.body import Body, fail
from openai_gateway.simulator.counters import Counters
from openai_gateway.simulator.limits import Bucket, Limits
from openai_gateway.simulator.settings import Script, Settings, SettingsError, script_of
from openai_gateway.simulator.store import Store, make_blueprint

_ERRORS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


class ApiError(Exception):
    """An error answer in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        kind, default_code = _ERRORS.get(status, ("server_error", None))
        self.status = status
        self.form = {"error": {"message": message, "type": kind, "param": param, "code": code or default_code}}
        self.headers: list[tuple[str, str]] = []


class Simulator:
    """State and behaviour of one simulated account."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.counters = Counters()
        self.limits = Limits(Bucket(settings.rpm, clock), Bucket(settings.tpm, clock))
        self.store = Store(settings.max_stored)
        self.numbers = count(1)

    def call(self, api: str) -> flask.Response:
        """Answer a POST to one of the two APIs."""
        body = _read_json()
        script = _to_script(self.settings, body)
        sock = flask.request.environ.get("gunicorn.socket")
        if script.latency_ms:
            time.sleep(script.latency_ms / 1000)
        fails = self._is_failing(script)
        if fails:
            fail(script.fault, "before_headers", sock)
            if script.fault == "html_502":
                return flask.Response("<html><h1>502 Bad Gateway</h1></html>", 502, content_type="text/html")
            if script.status:
                raise _to_scripted_error(script)
        self.check(api, body)
        said = say(body, script)
        self._admit(said)
        number = next(self.numbers)
        if api == "responses" and body.get("background") is True:
            answer = responses.to_response(body, said, number, "in_progress")
            self.store.put(answer, responses.to_response(body, said, number), body)
            return _to_response(json.dumps(answer).encode())
        form = responses.to_response if api == "responses" else chat.to_completion
        answer = form(body, said, number)
        if body.get("store", api == "responses") is True or (api == "responses" and body.get("store") is None):
            self.store.put(answer, answer, body)
        if body.get("stream") is True:
            events = responses.to_events if api == "responses" else chat.to_events
            own = script if fails else Script(event_gap_ms=script.event_gap_ms)
            response = flask.Response(
                Body(events(body, said, number), own, self._end, sock), content_type="text/event-stream; charset=utf-8"
            )
            flask.g.is_handed_over = True
            return response
        whole = json.dumps(answer).encode()
        if fails and script.fault in ("drop_in_body", "silence_in_body"):
            return flask.Response(
                _half(whole, script, sock), headers={"content-length": str(len(whole))}, content_type="application/json"
            )
        return _to_response(whole)

    def check(self, api: str, body: Mapping[str, Any]) -> None:
        """Refuse what the real API refuses. Raises ApiError."""
        if api not in self.settings.apis:
            raise ApiError(404, f"Unknown request URL: POST {flask.request.path}.", "unknown_url")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise ApiError(400, "you must provide a model parameter", param="model")
        if self.settings.models is not None and model not in self.settings.models:
            raise ApiError(404, f"The model `{model}` does not exist or you do not have access to it.", param="model")
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.store:
            raise ApiError(400, f"Previous response with id '{previous}' not found.", "previous_response_not_found")

    def authenticate(self) -> None:
        """Check the key, `Authorization: Bearer` or Azure's `api-key`. Raises ApiError."""
        scheme, _, token = flask.request.headers.get("authorization", "").partition(" ")
        given = token if scheme.lower() == "bearer" else flask.request.headers.get("api-key", "")
        if not given:
            raise ApiError(401, "You didn't provide an API key.")
        if self.settings.api_key is not None and given != self.settings.api_key:
            raise ApiError(401, f"Incorrect API key provided: {given[:3]}***{given[-2:]}.")

    def _is_failing(self, script: Script) -> bool:
        if not (script.status or script.fault):
            return False
        if not script.times:
            return True
        key = script.key or hashlib.sha256(flask.request.get_data()).hexdigest()
        self.counters.scripted[key] += 1
        return self.counters.scripted[key] <= script.times

    def _admit(self, said: Said) -> None:
        tokens = said.input_tokens + said.output_tokens
        wait_s = self.limits.admit(tokens)
        if wait_s > 0:
            error = ApiError(429, f"Rate limit reached. Please try again in {wait_s:.3f}s.")
            error.headers = [("retry-after-ms", str(int(wait_s * 1000) + 1)), ("retry-after", str(int(wait_s) + 1))]
            raise error
        self.counters.input_tokens += said.input_tokens
        self.counters.output_tokens += said.output_tokens

    def _end(self, is_whole: bool) -> None:
        self.counters.end(is_whole=is_whole)


def create_app(settings: Settings, clock: Callable[[], float] = time.monotonic) -> flask.Flask:
    """Return the app of a simulator with its own state."""
    app = flask.Flask("openai_gateway.simulator", static_folder=None)
    simulator = Simulator(settings, clock)
    app.add_url_rule("/v1/responses", "responses", lambda: simulator.call("responses"), methods=["POST"])
    app.add_url_rule("/v1/chat/completions", "chat", lambda: simulator.call("chat"), methods=["POST"])
    app.register_blueprint(make_blueprint(simulator.store, settings.models))
    _add_counters(app, simulator)

    @app.before_request
    def begin() -> None:
        if flask.request.path.startswith("/v1/"):
            flask.g.is_counted = True
            simulator.counters.begin(
                flask.request.environ, list(flask.request.headers.items()), flask.request.get_data()
            )
            simulator.authenticate()

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        if flask.request.path.startswith("/v1/"):
            simulator.counters.by_status[response.status_code] += 1
            response.headers.extend(_to_headers(simulator))
        return response

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        if flask.g.pop("is_counted", False) and not flask.g.pop("is_handed_over", False):
            simulator.counters.end(is_whole=error is None)

    @app.errorhandler(ApiError)
    def to_error(error: ApiError) -> flask.Response:
        response = _to_response(json.dumps(error.form).encode(), error.status)
        response.headers.extend(error.headers)
        return response

    @app.errorhandler(404)
    @app.errorhandler(405)
    def to_unknown(error: Any) -> flask.Response:
        message = f"Unknown request URL: {flask.request.method} {flask.request.path}."
        return to_error(ApiError(404, message, "unknown_url"))

    app.config["PROPAGATE_EXCEPTIONS"] = True
    return app


def _add_counters(app: flask.Flask, simulator: Simulator) -> None:
    counters = simulator.counters

    def reset() -> dict[str, Any]:
        counters.reset()
        return counters.to_json()

    app.add_url_rule("/", "root", lambda: {"status": "ok"})
    app.add_url_rule("/sim/stats", "stats", counters.to_json)
    app.add_url_rule("/sim/reset", "reset", reset, methods=["POST"])
    app.add_url_rule("/sim/last", "last", lambda: counters.last or {})
    app.add_url_rule("/sim/requests/<request_id>", "kept", lambda request_id: counters.kept.get(request_id, {}))


def _read_json() -> dict[str, Any]:
    try:
        body = json.loads(flask.request.get_data())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    return body


def _to_script(settings: Settings, body: Mapping[str, Any]) -> Script:
    try:
        return script_of(settings, body)
    except SettingsError as error:
        raise ApiError(400, str(error), param="metadata") from None


def _to_scripted_error(script: Script) -> ApiError:
    error = ApiError(script.status, f"Scripted error {script.status}.", script.error_code or None)
    if script.retry_after:
        error.headers.append(("retry-after", script.retry_after))
    if script.should_retry:
        error.headers.append(("x-should-retry", script.should_retry))
    return error


def _to_headers(simulator: Simulator) -> list[tuple[str, str]]:
    return [
        ("x-request-id", f"req_sim{simulator.counters.requests:012d}"),
        ("openai-processing-ms", "1"),
        ("openai-version", "2020-10-01"),
        ("openai-organization", "simulator"),
        ("set-cookie", "__cf_bm=one; path=/; HttpOnly"),
        ("set-cookie", "_cfuvid=two; path=/; HttpOnly"),
        *simulator.limits.to_headers(),
    ]


def _to_response(body: bytes, status: int = 200) -> flask.Response:
    return flask.Response(body, status, content_type="application/json")


def _half(whole: bytes, script: Script, sock: Any) -> Any:
    yield whole[: len(whole) // 2]
    fail(script.fault, "in_body", sock)
