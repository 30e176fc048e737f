"""One connection to the upstream: a non-blocking plain socket, and the waiting on it.

Knows bytes only; TLS is `tls`'s, HTTP is `exchange`'s, which connection to use is `pool`'s.
"""

from __future__ import annotations

import _socket  # the C socket under both `socket` and `gevent.socket`: never waits behind our back
import errno
import select
import socket
from collections.abc import Sequence
from typing import Any, Final

import gevent
from gevent.monkey import get_original
from gevent.socket import getaddrinfo

RECEIVE_BYTES: Final = 65536
_READ: Final = 1
_WRITE: Final = 2
_poll = get_original("select", "poll")
_IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EWOULDBLOCK)


class Connection:
    """A connected plain socket; every wait parks the current greenlet only."""

    __slots__ = ("_liveness", "_readable", "_sock", "closed", "used")

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock
        self._readable = gevent.get_hub().loop.io(sock.fileno(), _READ)
        self._liveness = _poll()
        self._liveness.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
        self.closed = False
        self.used = False

    def receive(self) -> bytes | None:
        """Return the bytes that are there, `b""` at the upstream's end, None if there are none yet. Raises OSError."""
        try:
            return self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

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

    def _is_readable(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    def wait_readable(self) -> None:
        """Park the current greenlet until bytes or the end have come."""
        gevent.get_hub().wait(self._readable)

    def on_readable(self, callback: Any) -> None:
        """Have the hub call `callback` whenever bytes or the end have come, until `off_readable`."""
        self._readable.start(callback)

    def off_readable(self) -> None:
        """End what `on_readable` began."""
        self._readable.stop()

    def is_stale(self) -> bool:
        """Tell whether an idle connection can't be used again: closed by the upstream, or with unasked bytes."""
        return bool(self._liveness.poll(0))

    def close(self) -> None:
        """Close the socket; safe to call again."""
        if not self.closed:
            self.closed = True
            self._readable.stop()
            self._readable.close()
            self._sock.close()


def connect(host: str, port: int, attempt_timeout_s: float) -> _socket.socket:
    """Return a socket connected to the first of the host's addresses that accepts (IPv6 and IPv4 alike).

    Each address but the last gets at most `attempt_timeout_s`, so that a dead one doesn't use up the call's time.
    Raises OSError.
    """
    addresses = _to_addresses(host, port)
    failure: OSError = OSError("the host has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        patience = None if index == len(addresses) - 1 else attempt_timeout_s
        try:
            return _connect_one(_socket.socket(family, kind, protocol), address, patience)
        except OSError as error:
            failure = error
    raise failure


def _to_addresses(host: str, port: int) -> Sequence[Any]:
    """Return getaddrinfo's tuples; an address needs no resolver thread."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
    return list(getaddrinfo(host, port, 0, socket.SOCK_STREAM))


def _connect_one(sock: _socket.socket, address: Any, patience_s: float | None) -> _socket.socket:
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = sock.connect_ex(address)
        if code in _IN_PROGRESS:
            _wait_writable(sock.fileno(), patience_s)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, errno.errorcode.get(code, "connect failed"))
        return sock
    except BaseException:
        sock.close()
        raise


def _wait_writable(fd: int, patience_s: float | None) -> None:
    hub = gevent.get_hub()
    writable = hub.loop.io(fd, _WRITE)
    try:
        with gevent.Timeout(patience_s, TimeoutError(errno.ETIMEDOUT, "connect timed out")):
            hub.wait(writable)
    finally:
        writable.stop()
        writable.close()
