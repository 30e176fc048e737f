"""One simulated account: the way of a POST to one of the two APIs, from its script to its answer.

See also: answers (what is said), responses and chat (its form), app (URLs and headers).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import flask

from openai_gateway.simulator import chat, responses
from openai_gateway.simulator.account_limits import LimitExceeded, Limits
from openai_gateway.simulator.answer_store import AnswerStore, Stored
from openai_gateway.simulator.answers import Said, compose_answer, read_token_limit
from openai_gateway.simulator.counters import Counters
from openai_gateway.simulator.dialects import make_error
from openai_gateway.simulator.errors import (
    ApiError,
    missing_key,
    missing_parameter,
    scripted,
    unknown_model,
    unknown_url,
    wrong_key,
)
from openai_gateway.simulator.reading import read_json, read_key
from openai_gateway.simulator.settings import Script, SettingsError, SimulatorSettings, script_of
from openai_gateway.simulator.simulated_body import fail, in_halves, in_stream

# Where in a request's environment stands what is to be called when its answer is over.
ON_OVER: Final = "openai_gateway.simulator.on_over"
_SOURCES = {
    "responses": ("input", "prompt", "previous_response_id", "conversation"),
    "chat": ("messages",),
}


_INSTEAD_OF_ANSWERS: Final = ("drop_before_headers", "silence_before_headers", "html_502")


class Simulation:
    """State and behaviour of one simulated account."""

    def __init__(self, settings: SimulatorSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.counters = Counters()
        self.limits = Limits(settings, clock)
        self.store = AnswerStore(settings.max_stored, clock)
        self._clock = clock
        self._numbers = count(1)

    def authenticate(self) -> None:
        """Check the key. Raises ApiError."""
        key = read_key()
        if not key:
            raise missing_key()
        if self.settings.api_key is not None and key != self.settings.api_key:
            raise wrong_key(key)

    def call(self, api: str) -> flask.Response:
        """Answer a POST to one of the two APIs. Raises ApiError, ConnectionResetError."""
        body = read_json()
        script = self._begin_script(body)
        is_background = api == "responses" and body.get("background") is True
        sock = flask.request.environ.get("gunicorn.socket")
        if script.status or script.fault in _INSTEAD_OF_ANSWERS:
            _wait(script, is_background=is_background)
            fail(script.fault, "before_headers", sock)
            if script.fault == "html_502":
                return flask.Response("<html><h1>502 Bad Gateway</h1></html>", 502, content_type="text/html")
            raise scripted(script, key=read_key(), model=body.get("model"))
        self._check(api, body)
        said = compose_answer(body, script)
        self._admit(said, body)
        _wait(script, is_background=is_background)
        number = next(self._numbers)
        if api == "responses":
            answer = responses.make_response(body, said, number)
            now = responses.make_response(body, said, number, "in_progress") if is_background else answer
        else:
            answer = now = chat.make_completion(body, said, number)
        self._remember(api, body, Stored(now, answer, flask.request.get_data(), said, number), script, is_background)
        if body.get("stream") is True:
            events = responses.make_events if api == "responses" else chat.make_events
            pieces = in_stream(events(body, said, number), script, sock)
            return flask.Response(pieces, content_type="text/event-stream; charset=utf-8")
        whole = json.dumps(now).encode()
        if not script.fault.endswith("_in_body"):
            return flask.Response(whole, content_type="application/json")
        halves = in_halves(whole, script, sock)
        return flask.Response(halves, headers={"content-length": str(len(whole))}, content_type="application/json")

    def _begin_script(self, body: Mapping[str, Any]) -> Script:
        """Return what happens to this call, without status and fault if its key has had them often enough."""
        try:
            script = script_of(self.settings, body)
        except SettingsError as error:
            raise ApiError(400, str(error), "invalid_value", param="metadata") from None
        if not script.times or not (script.status or script.fault):
            return script
        key = script.key or hashlib.sha256(flask.request.get_data()).hexdigest()
        if self.counters.count_scripted(key) <= script.times:
            return script
        return dataclasses.replace(script, status=0, fault="")

    def _check(self, api: str, body: Mapping[str, Any]) -> None:
        """Refuse what the real API refuses. Raises ApiError."""
        if api not in self.settings.apis:
            raise unknown_url("POST", flask.request.path)
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise missing_parameter("model")
        if self.settings.models is not None and model not in self.settings.models:
            raise unknown_model(model)
        if all(body.get(name) is None for name in _SOURCES[api]):
            raise missing_parameter(_SOURCES[api][0])
        previous = body.get("previous_response_id") if api == "responses" else None
        if previous is not None and previous not in self.store:
            message = f"Previous response with id '{previous}' not found."
            raise ApiError(400, message, "previous_response_not_found", param="previous_response_id")

    def _admit(self, said: Said, body: Mapping[str, Any]) -> None:
        """Charge the call to the limits; its answer's headers tell them as they are now. Raises ApiError."""
        bound = read_token_limit(body)
        charged = bound if bound is not None else self.settings.output_tokens_charged
        unused = 0 if charged is None else max(0, charged - said.output_tokens)
        found = self.limits.admit(said.input_tokens + said.output_tokens + unused, unused)
        flask.g.told = self.limits.tell()
        if isinstance(found, LimitExceeded):
            raise make_error(self.settings.dialect, found, body.get("model"))
        flask.request.environ[ON_OVER] = found.end
        self.counters.input_tokens += said.input_tokens
        self.counters.output_tokens += said.output_tokens

    def _remember(self, api: str, body: Mapping[str, Any], stored: Stored, script: Script, is_background: bool) -> None:
        if api == "chat":
            if body.get("store") is not True:
                return
            stored.now = stored.later = {**stored.now, "metadata": body.get("metadata") or {}}
        elif body.get("store") is False and not is_background:
            return
        if is_background:
            stored.ready_at = self._clock() + script.latency_ms / 1000
        self.store.put(stored)


def _wait(script: Script, *, is_background: bool) -> None:
    if script.latency_ms and not is_background:
        time.sleep(script.latency_ms / 1000)
