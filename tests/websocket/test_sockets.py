"""What a response over a WebSocket is charged that is never sent."""

from __future__ import annotations

from typing import Any

import pytest

from openai_gateway.config import ServerConfig
from openai_gateway.config.secret import Secret
from openai_gateway.errors import UpstreamError
from openai_gateway.upstream.relay import Relay
from openai_gateway.websocket.sockets import Socket
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.headers import RequestHeaders

_CALL = Call(Api.RESPONSES, "WEBSOCKET", "/responses", RequestHeaders(), b"{}", is_metered=True)


def _open() -> tuple[Relay, Socket]:
    relay = Relay(ServerConfig("s", "http://u/v1", "m", openai_api_key=Secret("sk-x")))
    nothing: Any = None
    return relay, Socket(relay, nothing, _CALL, nothing)


def _charged(relay: Relay) -> float:
    return relay.admission.limiter.requests.spent


def test_response_that_the_breaker_refuses_is_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UpstreamError("The key is refused.")

    relay, socket = _open()
    monkeypatch.setattr(relay.sender, "ask_breaker", refuse)
    with pytest.raises(UpstreamError):
        socket.begin_turn(_CALL)
    assert _charged(relay) == 0.0


def test_response_whose_turn_came_too_late_to_be_sent_is_not_charged() -> None:
    relay, socket = _open()
    late, sent = socket.begin_turn(_CALL), socket.begin_turn(_CALL)
    late.attempts = 0
    socket.end_turn(late)
    socket.end_turn(sent)
    assert _charged(relay) == 1.0
