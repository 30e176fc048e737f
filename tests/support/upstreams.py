"""Upstreams that do as a test says, on raw sockets and threads: the pytest process is never monkey-patched.

A script is a function that is handed a Conversation for each connection.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """A request as it came over the wire."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


@dataclass
class Conversation:
    """One accepted connection."""

    sock: socket.socket
    seen: list[Request] = field(default_factory=list)

    def read_head(self) -> bytes | None:
        """Read up to the end of a request's head; None at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self._receive()
            if not piece:
                return None
            data += piece
        self._rest = data.partition(b"\r\n\r\n")[2]
        return data.partition(b"\r\n\r\n")[0]

    def read_request(self) -> Request | None:
        """Read a whole request; None at the end of the connection."""
        head = self.read_head()
        if head is None:
            return None
        body = self._rest
        length = int(Request(head, b"").headers.get("content-length", "0"))
        while len(body) < length:
            piece = self._receive()
            if not piece:
                return None
            body += piece
        request = Request(head, body)
        self.seen.append(request)
        return request

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_until_closed(self, timeout_s: float = 120.0) -> float | None:
        """Return when the gateway closed the connection (monotonic), None if it didn't."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if select.select([self.sock], [], [], 0.5)[0]:
                try:
                    if not self.sock.recv(65536):
                        return time.monotonic()
                except OSError:
                    return time.monotonic()
        return None

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except OSError:
            return b""


Script = Callable[[Conversation], None]


class ScriptedUpstream:
    """Listens on a loopback port and runs `script` for each connection; what was asked is in `requests`."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def script(self) -> Script:
        return self._script

    @script.setter
    def script(self, script: Script) -> None:
        """Set the script of connections to come, and end those that still follow another one."""
        self._script = script
        self._close_connections()

    @property
    def url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._close_connections()

    def _close_connections(self) -> None:
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(sock)
            threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def _converse(self, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                self._open.discard(sock)
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._open.add(sock)
            self.script(Conversation(sock, self.requests))
        except OSError:
            pass
        finally:
            self._open.discard(sock)
            sock.close()


@contextlib.contextmanager
def run_upstream(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(script, tls)
    try:
        yield upstream
    finally:
        upstream.close()


def to_answer(body: bytes, *, status: str = "200 OK", headers: str = "content-type: application/json\r\n") -> bytes:
    """Return a whole answer with its length."""
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def to_chunk(payload: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def to_event(api: str, text: str) -> bytes:
    """Return one delta event of an API's stream."""
    if api == "responses":
        data = {"type": "response.output_text.delta", "sequence_number": 1, "delta": text}
        return b"event: response.output_text.delta\ndata: " + json.dumps(data).encode() + b"\n\n"
    data = {"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def to_request_body(api: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """Return a small valid request body."""
    body: dict[str, Any] = {"model": "any"}
    body.update({"input": "hello"} if api == "responses" else {"messages": [{"role": "user", "content": "hello"}]})
    if stream:
        body["stream"] = True
    return {**body, **more}


PATHS = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}


def answer_always(conversation: Conversation) -> None:
    """Answer every request with a small JSON object, keeping the connection."""
    while conversation.read_request() is not None:
        conversation.send(to_answer(b'{"ok": true}'))
