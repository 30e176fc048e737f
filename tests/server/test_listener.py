"""The listener by itself: TLS handshakes that fail or stall end, without a word on stderr."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import gevent
import pytest
from gevent import socket as gevent_socket
from gevent import ssl as gevent_ssl

from openai_gateway.server.listener import Listener, handshakes
from tests.support.certificates import make_certificates


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = make_certificates(tmp_path)
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.server_key)

    def handle(client: socket.socket, address: object) -> None:
        client.sendall(b"hello")
        client.close()

    running = Listener(("127.0.0.1", 0), handle=handle, ssl_context=context)
    running.start()
    yield running
    running.stop()


def _connect(listener: Listener) -> gevent_socket.socket:
    return gevent_socket.create_connection(("127.0.0.1", listener.server_port), timeout=60)


def test_handshake_that_stalls_is_ended(listener: Listener) -> None:
    with _connect(listener) as client:
        client.sendall(b"\x16\x03\x01")
        while not len(handshakes):
            gevent.sleep(0.01)
        handshakes.tick(monotonic())
        assert len(handshakes) == 1
        gevent.get_hub().loop.run_callback(handshakes.tick, monotonic() + handshakes.seconds + 1)
        assert client.recv(100) == b""
    assert len(handshakes) == 0


def test_handshake_that_fails_is_no_traceback(listener: Listener, capfd: pytest.CaptureFixture[str]) -> None:
    with _connect(listener) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(100):
                pass
    with _connect(listener) as client:
        context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert context.wrap_socket(client).recv(100) == b"hello"
    assert capfd.readouterr().err == ""
