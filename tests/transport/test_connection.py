"""Connecting, and sending to a peer that is slow to read, over real sockets."""

from __future__ import annotations

import _socket
import socket
import threading

import pytest

from openai_gateway.transport import connection as connection_module
from openai_gateway.transport.connection import connect
from tests.support.upstreams import ScriptedUpstream


def test_next_address_is_tried_if_one_refuses(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    address, port = closed.getsockname(), int(upstream.url.rpartition(":")[2])
    closed.close()
    both = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", found) for found in (address, ("127.0.0.1", port))]
    monkeypatch.setattr(connection_module, "getaddrinfo", lambda *_: both)
    connect("several.example", port, 1.0).close()
    monkeypatch.setattr(connection_module, "getaddrinfo", lambda *_: [])
    with pytest.raises(OSError, match="no address"):
        connect("none.example", port, 1.0)


def test_address_that_never_answers_gives_way_to_the_next(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(hole.getsockname())
    port = int(upstream.url.rpartition(":")[2])
    both = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", found) for found in (hole.getsockname(), ("127.0.0.1", port))]
    monkeypatch.setattr(connection_module, "getaddrinfo", lambda *_: both)
    connect("several.example", port, 0.2).close()
    for sock in (hole, *fillers):
        sock.close()


def test_ipv6_address_needs_no_lookup() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        connect("::1", listener.getsockname()[1], 1.0).close()


def test_full_socket_is_waited_for() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    link = connection_module.Connection(_socket.socket(near.family, near.type, 0, near.detach()))
    filling = 0
    try:
        while True:
            filling += link._sock.send(b"x" * 65536)
    except BlockingIOError:
        pass
    received: list[int] = []

    def drain() -> None:
        while sum(received) < filling + 1_000_000:
            received.append(len(far.recv(65536)))

    thread = threading.Thread(target=drain)
    thread.start()
    assert link.send(b"y" * 1_000_000)
    thread.join(5)
    assert sum(received) == filling + 1_000_000
    for _ in range(2):
        link.close()
    far.close()
