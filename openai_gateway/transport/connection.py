"""A connection to a peer: a non-blocking plain socket, and the waiting on it.

All reading and writing is tried first and waited for only if it has to be: most often the bytes are there, or there is
room. Two ways to wait: the greenlet parks itself (`wait_readable`, and within `send`), or the hub calls back each time
that bytes have come (`on_readable`), which wakes no greenlet. One watcher serves both, made once a connection. It stays
started between waits, for to start it anew takes a system call each time; if something comes while nobody waits, it
stops itself.

Knows bytes only. See also: dial (how a socket gets connected), tls (the same over TLS), pool (which connection to use).
"""

from __future__ import annotations

import _socket  # the C socket under both `socket` and `gevent.socket`: never waits behind our back
import select
import socket
from collections.abc import Callable
from math import inf
from typing import Any, Final

import gevent
from gevent.monkey import get_original

# Below 128 KB, from which on the C library maps memory anew for each.
RECEIVE_BYTES: Final = 120 * 1024
_READ: Final = 1
_WRITE: Final = 2
_poll = get_original("select", "poll")


class Connection:
    """A connected plain socket; every wait parks the current greenlet only."""

    __slots__ = ("_liveness", "_readable", "_sock", "closed", "expires_at", "generation", "peer", "used")

    def __init__(self, sock: _socket.socket) -> None:
        # As long as there is nothing to close.
        self.closed = True
        self._sock = sock
        self._readable: Any = gevent.get_hub().loop.io(sock.fileno(), _READ)
        # Made when the connection is idle for the first time; one that carries a stream until it closes needs none.
        self._liveness: Any = None
        self.closed = False
        # Only the pool sets and reads these: whether the connection was given back before; the address it leads to;
        # the `generation` of the peer's addresses in which it was last found; the time from which on it is too old.
        self.used = False
        self.peer: Any = None
        self.generation = 0
        self.expires_at = inf

    def receive(self, most_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """Return the bytes that are there, `b""` at the upstream's end, None if there are none yet. Raises OSError."""
        try:
            return self._sock.recv(most_bytes)
        except BlockingIOError:
            return None

    def find_receiver(self) -> Callable[[int], bytes | None]:
        """Return what does as `receive` in fewer steps, but for None: it may raise BlockingIOError in its place."""
        return self._sock.recv

    def send(self, data: bytes) -> bool:
        """Send all of `data`; False if the upstream answered before it had read everything. Raises OSError."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        return self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> bool:
        hub = gevent.get_hub()
        either = hub.loop.io(self._sock.fileno(), _READ | _WRITE)
        try:
            while rest:
                hub.wait(either)
                if self._is_readable():
                    return False
                try:
                    rest = rest[self._sock.send(rest) :]
                except BlockingIOError:
                    continue
            return True
        finally:
            either.stop()
            either.close()

    def send_through(self, data: bytes) -> None:
        """Send all of `data`, whatever the peer sends meanwhile; for one greenlet at a time. Raises OSError."""
        rest = memoryview(self._to_wire(data))
        writable: Any = None
        try:
            while rest:
                try:
                    rest = rest[self._sock.send(rest) :]
                except BlockingIOError:
                    writable = writable or gevent.get_hub().loop.io(self._sock.fileno(), _WRITE)
                    gevent.get_hub().wait(writable)
        finally:
            if writable is not None:
                writable.stop()
                writable.close()

    def _to_wire(self, data: bytes) -> bytes:
        return data

    def _is_readable(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    def wait_readable(self) -> None:
        """Park the current greenlet until bytes or the end have come."""
        wait_for(self._readable)

    def on_readable(self, callback: Any) -> None:
        """Have the hub call `callback` whenever bytes or the end have come, until `off_readable`."""
        self._readable.start(callback)

    def off_readable(self) -> None:
        """End what `on_readable` began."""
        if self._readable.active:
            self._readable.callback = self._readable.stop

    def is_stale(self) -> bool:
        """Tell whether an idle connection can't be used again: closed by the upstream, or with unasked bytes."""
        if self._liveness is None:
            self._liveness = _poll()
            self._liveness.register(self._sock.fileno(), select.POLLIN | select.POLLRDHUP)
        return bool(self._liveness.poll(0))

    def close(self) -> None:
        """Close the socket; safe to call again."""
        if not self.closed:
            self.detach().close()

    def __del__(self) -> None:
        # The hub would abort the process over a watcher that is started when its descriptor is closed.
        self.close()

    def detach(self) -> _socket.socket:
        """Return the socket and have nothing to do with it any more."""
        self.closed = True
        self._readable.stop()
        self._readable.close()
        return self._sock


def wait_for(watcher: Any) -> None:
    """Park the current greenlet until a watcher's event; the watcher stays started, and stops itself at the next one.

    gevent's own `wait` would find it in use until it is stopped.
    """
    watcher.start(gevent.getcurrent().switch)
    try:
        gevent.get_hub().switch()
    finally:
        if watcher.active:
            watcher.callback = watcher.stop
