"""A simulator in Flask's test client, with a clock that a test sets."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient

from openai_gateway.simulator.app import create_app
from openai_gateway.simulator.settings import SimulatorSettings

AUTHORIZED = {"authorization": "Bearer k"}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_client(clock: Clock | None = None, **settings: Any) -> FlaskClient:
    client = create_app(SimulatorSettings(**settings), clock or Clock()).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = AUTHORIZED["authorization"]
    return client


def respond(client: FlaskClient, **body: Any) -> Any:
    return client.post("/v1/responses", json={"model": "m", "input": "hello", **body})


def chat(client: FlaskClient, **body: Any) -> Any:
    messages = [{"role": "user", "content": "hello"}]
    return client.post("/v1/chat/completions", json={"model": "m", "messages": messages, **body})
