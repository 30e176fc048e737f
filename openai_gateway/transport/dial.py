"""Connects to one of a peer's addresses: they are tried side by side, and the first that accepts wins (RFC 8305).

A dead address must cost neither the call nor much time: each further address is begun 250 ms after the one before it,
or at once when that one has failed. All attempts go on until one is connected; the others are closed then. The caller's
watch bounds the whole.

See also: addresses (which there are, and which were dead), connection (what is done with the socket).
"""

from __future__ import annotations

import _socket
import errno
import socket
from time import monotonic
from typing import Any, Final

import gevent
from gevent.event import Event

from openai_gateway.transport.addresses import Address, Addresses
from openai_gateway.transport.errors import NoDescriptor

STAGGER_S: Final = 0.25
_WRITE: Final = 2
_IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EWOULDBLOCK)
_KEEPALIVE_INTERVAL_S: Final = 10
_KEEPALIVE_PROBES: Final = 3


def dial(addresses: Addresses, keepalive_s: float | None) -> tuple[_socket.socket, Address]:
    """Return a connected socket, and the address it is connected to. Raises OSError, NoDescriptor."""
    race = _Race(addresses, keepalive_s)
    try:
        for address in addresses.find():
            race.begin(address)
            won = race.wait(STAGGER_S)
            if won is not None:
                return won
        return race.wait_for_all()
    finally:
        race.end()


def keep_alive(sock: Any, idle_s: float | None) -> None:
    """Have the kernel probe a connection silent for `idle_s`, so that NAT keeps it and a dead peer is noticed."""
    if idle_s is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", max(1, int(idle_s))),
            ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_S),
            ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ):
            # Not every system has all three.
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Race:
    """The attempts under way; what is still in it at the end is closed, and taken for dead if it had its time."""

    def __init__(self, addresses: Addresses, keepalive_s: float | None) -> None:
        self._addresses = addresses
        self._keepalive_s = keepalive_s
        # By watcher: socket, address, and when the attempt was begun.
        self._pending: dict[Any, tuple[_socket.socket, Address, float]] = {}
        self._news = Event()
        self._failure: OSError = OSError("the host has no address")

    def begin(self, address: Address) -> None:
        """Begin to connect to an address."""
        try:
            sock = _socket.socket(*address[:3])
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise NoDescriptor("was not asked: no file descriptor is left here (see ulimit -n)") from None
            self._failure = error
            return
        watcher = gevent.get_hub().loop.io(sock.fileno(), _WRITE)
        self._pending[watcher] = sock, address, monotonic()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock, self._keepalive_s)
        code = sock.connect_ex(address[4])
        if code and code not in _IN_PROGRESS:
            self._fail(watcher, code)
        else:
            # The socket is writable when it is connected, which may be now.
            watcher.start(self._news.set)

    def wait(self, seconds: float | None) -> tuple[_socket.socket, Address] | None:
        """Return the first that is connected; None if none is in time, or one has failed."""
        if not self._pending:
            return None
        self._news.wait(seconds)
        self._news.clear()
        for watcher, (sock, address, _) in list(self._pending.items()):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(watcher, code)
            elif _is_connected(sock):
                self._drop(watcher)
                self._addresses.note_alive(address)
                return sock, address
        return None

    def wait_for_all(self) -> tuple[_socket.socket, Address]:
        """Return the first that is connected. Raises OSError once all have failed."""
        while self._pending:
            won = self.wait(None)
            if won is not None:
                return won
        raise self._failure

    def end(self) -> None:
        """Close what is still under way."""
        for watcher, (sock, address, began) in list(self._pending.items()):
            if monotonic() - began >= STAGGER_S:
                self._addresses.note_dead(address)
            self._drop(watcher)
            sock.close()

    def _fail(self, watcher: Any, code: int) -> None:
        sock, address, _ = self._pending[watcher]
        self._failure = OSError(code, errno.errorcode.get(code, "connect failed"))
        self._addresses.note_dead(address)
        self._drop(watcher)
        sock.close()

    def _drop(self, watcher: Any) -> None:
        del self._pending[watcher]
        watcher.stop()
        watcher.close()


def _is_connected(sock: _socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
