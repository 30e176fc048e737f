"""A client's connection by itself: what becomes of a request that comes at the moment its wait is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gunicorn.config import Config

from openai_gateway.server.client_connection import ClientConnection

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class Client:
    """A socket whose wait for bytes is ended from the hub; `came` is what is there all the same."""

    def __init__(self, came: bytes | OSError) -> None:
        self.came = came
        self.sent = b""
        self.connection: Any = None
        self._sock = SimpleNamespace(recv=self._receive, send=self._send)
        self._read_event = SimpleNamespace(start=self._start, stop=bool, active=False)

    def _start(self, *_: Any) -> None:
        gevent.get_hub().loop.run_callback(self.connection._wait.end)

    def send(self, data: bytes) -> int:
        return self._send(data)

    def sendall(self, data: bytes) -> None:
        self._send(data)

    def _receive(self, size: int) -> bytes:
        if isinstance(self.came, OSError):
            raise self.came
        return self.came

    def _send(self, data: bytes) -> int:
        self.sent += data
        return len(data)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("content-length", "4")])
    return [environ["wsgi.input"].read(2) * 2]


@pytest.mark.parametrize(
    ("came", "answer"), [(REQUEST, b"{}{}"), (BlockingIOError(), b""), (ConnectionResetError(), b""), (b"", b"")]
)
def test_request_that_came_while_its_worker_was_held_up_is_answered_though_the_wait_is_over(
    came: bytes | OSError, answer: bytes
) -> None:
    client = Client(came)
    worker: Any = SimpleNamespace(
        cfg=Config(), alive=False, reads_plain=True, keeps_alive=True, nr=0, max_requests=9, wsgi=app
    )
    client.connection = ClientConnection(worker, client, ("127.0.0.1", 1), {})
    client.connection.serve()
    assert client.sent[-len(answer) :] == answer if answer else client.sent == b""
