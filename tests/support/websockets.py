"""Both ends of a WebSocket on raw sockets, for tests that look at every byte, or break the protocol on purpose."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections import deque
from typing import Any

from openai_gateway.wire import frames
from openai_gateway.wire.frames import Frame, FrameReader, compute_accept, make_close, to_frame
from tests.support.upstreams import Conversation, Request

KEY = base64.b64encode(bytes(16)).decode()


class RawWebSocket:
    """One end, after the handshake; `got` has every byte that came, `received` those that came with the handshake."""

    def __init__(self, sock: socket.socket, received: bytes = b"", *, is_client: bool) -> None:
        self.sock = sock
        self.got = bytearray()
        self._is_client = is_client
        self._reader = FrameReader(is_masked=not is_client, most_bytes=1 << 26)
        self._frames: deque[Frame] = deque()
        self._feed(received)

    def send(self, payload: bytes | dict[str, Any], opcode: int = frames.TEXT) -> None:
        """Send a message, or a control frame, as one frame."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.sock.sendall(to_frame(opcode, data, is_masked=self._is_client))

    def send_raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close_with(self, code: int, reason: str = "") -> None:
        """Send a close frame."""
        self.send(make_close(code, reason), frames.CLOSE)

    def receive(self) -> Frame | None:
        """Return the next frame; None once the other side is gone."""
        while not self._frames:
            try:
                data = self.sock.recv(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._feed(data)
        return self._frames.popleft()

    def receive_event(self) -> dict[str, Any]:
        """Return the next message, which has to be JSON; control frames are passed over."""
        text = b""
        while True:
            frame = self.receive()
            assert frame is not None, "the other side is gone"
            if not frame.is_control:
                text += frame.payload
                if frame.is_final:
                    event: dict[str, Any] = json.loads(text)
                    return event

    def receive_all(self) -> tuple[list[dict[str, Any]], int | None]:
        """Return all events until the end, and the close code; None if the connection ends without one."""
        events: list[dict[str, Any]] = []
        text = b""
        while (frame := self.receive()) is not None:
            if frame.opcode == frames.CLOSE:
                return events, frames.read_close_code(frame.payload)
            if not frame.is_control:
                text += frame.payload
                if frame.is_final:
                    events.append(json.loads(text))
                    text = b""
        return events, None

    def leave(self, *, by_reset: bool = False) -> None:
        """Close the socket without a word."""
        if by_reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _feed(self, data: bytes) -> None:
        self.got += data
        self._frames.extend(self._reader.feed(data))


def to_handshake(path: str = "/v1/responses", headers: str = "") -> bytes:
    """Return a client's handshake; `headers` are lines, each with its end."""
    return (
        f"GET {path} HTTP/1.1\r\nhost: gateway\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n{headers}\r\n"
    ).encode()


def connect_raw(url: str) -> socket.socket:
    host, _, port = url.partition("://")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def ask_for_websocket(
    url: str, path: str = "/v1/responses", headers: str = ""
) -> tuple[int, dict[str, str], bytes, socket.socket]:
    """Return a handshake's status, headers, what came after the head, and the connection."""
    sock = connect_raw(url)
    sock.sendall(to_handshake(path, headers))
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    fields = Request(head, b"").headers
    while len(rest) < int(fields.get("content-length", 0)):
        rest += sock.recv(65536)
    return int(head[9:12]), fields, rest, sock


def open_websocket(url: str, path: str = "/v1/responses", headers: str = "") -> RawWebSocket:
    """Return a client's end."""
    status, _, rest, sock = ask_for_websocket(url, path, headers)
    assert status == 101, (status, rest)
    return RawWebSocket(sock, rest, is_client=True)


def accept_websocket(talk: Conversation, headers: str = "") -> RawWebSocket:
    """Return an upstream's end, having answered the handshake."""
    head = talk.read_head()
    assert head is not None
    request = Request(head, b"")
    talk.seen.append(request)
    talk.send(to_agreement(request, headers))
    return RawWebSocket(talk.sock, is_client=False)


def to_agreement(request: Request, headers: str = "") -> bytes:
    """Return an upstream's answer to a handshake."""
    accept = compute_accept(request.headers["sec-websocket-key"])
    return (
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-accept: {accept}\r\n{headers}\r\n"
    ).encode()


def to_create(lane: str = "", **more: Any) -> dict[str, Any]:
    """Return a small valid `response.create`."""
    return {"type": "response.create", "model": "x", "input": "hi", **({"stream_id": lane} if lane else {}), **more}


def to_server_event(kind: str, lane: str = "", **more: Any) -> dict[str, Any]:
    """Return an event of an upstream; one that ends a response has its usage."""
    event: dict[str, Any] = {"type": f"response.{kind}", "sequence_number": 1, **more}
    if kind in ("created", "completed", "incomplete", "failed"):
        usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
        ended = {"status": kind, "usage": usage} if kind != "created" else {}
        event["response"] = {"id": f"resp_{lane or 'x'}", "model": "the-model", **ended}
    return {**event, "stream_id": lane} if lane else event
