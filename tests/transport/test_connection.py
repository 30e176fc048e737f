"""Sending to a peer that is slow to read, over real sockets."""

from __future__ import annotations

import _socket
import gc
import socket
import threading

import pytest

from openai_gateway.transport import connection as connection_module


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
    thread.join(60)
    assert sum(received) == filling + 1_000_000
    for _ in range(2):
        link.close()
    far.close()


def test_connection_that_nobody_has_any_more_leaves_no_watcher_started() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    link = connection_module.Connection(_socket.socket(near.family, near.type, 0, near.detach()))
    far.send(b"x")
    link.wait_readable()
    assert link.receive() == b"x"
    watcher = link._readable
    assert watcher.active
    del link
    assert not watcher.active
    assert far.recv(1) == b""
    far.close()


def test_connection_that_could_not_be_made_ends_without_a_word() -> None:
    """Its end was an error that Python prints and nobody can catch."""
    closed = _socket.socket()
    closed.close()
    with pytest.raises((OSError, ValueError)):
        connection_module.Connection(closed)
    gc.collect()
