"""The simulator's WebSocket mode of the Responses API: each `response.create` is answered as a POST, in events.

Lanes (`stream_id`) run at once, one response at a time in each; the last response of a connection can be gone on from
though it isn't stored. See also: simulation (what a call does).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any, Final

import flask
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from openai_gateway.simulator.errors import ApiError
from openai_gateway.simulator.simulation import ON_OVER, Simulation

_MOST_LANES: Final = 32


def is_handshake(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request asks for the WebSocket mode."""
    is_asked = str(environ.get("HTTP_UPGRADE")).lower() == "websocket"
    return is_asked and environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"] == "/v1/responses"


class WebSocket:
    """One client's connection, from its handshake on."""

    def __init__(self, app: flask.Flask, simulation: Simulation, environ: Mapping[str, Any]) -> None:
        self._app = app
        self._simulation = simulation
        self._sock = environ["gunicorn.socket"]
        self._key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
        self._headers = {"authorization": environ.get("HTTP_AUTHORIZATION", "")}
        self._peer = Connection(ConnectionType.SERVER)
        self._sending = threading.Lock()
        self._lanes: dict[str, SimpleQueue[dict[str, Any] | None]] = {}
        self._known: set[str] = set()

    def serve(self) -> None:
        """Answer until the client goes."""
        accept = generate_accept_token(self._key.encode()).decode()
        self._sock.sendall(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nx-request-id: req_simsocket\r\n\r\n".encode()
        )
        text = ""
        try:
            while data := self._sock.recv(65536):
                self._peer.receive_data(data)
                for event in self._peer.events():
                    if isinstance(event, TextMessage):
                        text += event.data
                        if event.message_finished:
                            self._take(text)
                            text = ""
                    elif isinstance(event, Ping | CloseConnection):
                        self._send(event.response())
                        if isinstance(event, CloseConnection):
                            return
                    elif isinstance(event, Message):
                        self._tell(
                            {"type": "error", "status": 400, **_make_error("Binary messages are not taken.")}, ""
                        )
        except (OSError, RemoteProtocolError):
            pass
        finally:
            for lane in self._lanes.values():
                lane.put(None)

    def _take(self, text: str) -> None:
        try:
            event = json.loads(text)
            name = event.get("stream_id") or ""
        except (ValueError, AttributeError):
            self._tell({"type": "error", "status": 400, **_make_error("The event is not a JSON object.")}, "")
            return
        if event.get("type") != "response.create":
            return
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= _MOST_LANES:
                error = _make_error("Too many streams.", "websocket_stream_limit_reached")
                self._tell({"type": "error", "status": 400, **error}, name)
                return
            lane = self._lanes[name] = SimpleQueue()
            threading.Thread(target=self._run, args=(name, lane), daemon=True).start()
        lane.put(event)

    def _run(self, name: str, lane: SimpleQueue[dict[str, Any] | None]) -> None:
        try:
            while (event := lane.get()) is not None:
                self._answer(event, name)
        except (OSError, ConnectionError):
            pass

    def _answer(self, event: dict[str, Any], name: str) -> None:
        self._simulation.counters.begin("WEBSOCKET", "/v1/responses")
        is_whole = False
        try:
            self._answer_counted(event, name)
            is_whole = True
        finally:
            self._simulation.counters.end(is_whole=is_whole, is_stream=True)

    def _answer_counted(self, event: dict[str, Any], name: str) -> None:
        body = {key: value for key, value in event.items() if key not in ("type", "stream_id", "generate")}
        if body.get("previous_response_id") in self._known:
            # It is in the connection, stored or not.
            del body["previous_response_id"]
        request: dict[str, Any] = {"method": "POST", "json": {**body, "stream": True}, "headers": self._headers}
        with self._app.test_request_context("/v1/responses", environ_base={"gunicorn.socket": self._sock}, **request):
            try:
                flask.g.began_s = 0.0
                response = self._simulation.call("responses")
                is_warm_up = event.get("generate") is False
                for piece in response.response:
                    for data in _read_events(piece if isinstance(piece, bytes) else piece.encode()):
                        if data["type"] in ("response.completed", "response.incomplete"):
                            self._known.add(data["response"]["id"])
                            if is_warm_up:
                                # There to go on from, but nothing was generated.
                                data["response"]["output"] = []
                        if not is_warm_up or "response" in data:
                            self._tell(data, name)
            except ApiError as error:
                refusal = error.to_response()
                self._tell({"type": "error", "status": refusal.status_code, **json.loads(refusal.get_data())}, name)
            finally:
                flask.request.environ.get(ON_OVER, _do_nothing)()

    def _tell(self, event: dict[str, Any], name: str) -> None:
        lane = {"stream_id": name} if name else {}
        self._send(TextMessage(json.dumps({**event, **lane})))

    def _send(self, event: Event) -> None:
        with self._sending:
            self._sock.sendall(self._peer.send(event))


def _do_nothing() -> None: ...


def _read_events(piece: bytes) -> list[dict[str, Any]]:
    lines = piece.splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith(b"data:")]


def _make_error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
