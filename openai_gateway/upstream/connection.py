"""One connection to the upstream: a non-blocking socket, plain or TLS, and the waiting on it.

Knows bytes only; HTTP is `exchange`'s, which connection to use is `pool`'s.
"""

from __future__ import annotations

import _socket  # the C socket under both `socket` and `gevent.socket`: never waits behind our back
import errno
import select
import socket
import ssl
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


class TlsConnection(Connection):
    """A connection whose bytes go through TLS; same waiting, same calls."""

    __slots__ = ("_callback", "_early", "_ended", "_incoming", "_outgoing", "_sending", "_tls")

    def __init__(self, sock: _socket.socket, context: ssl.SSLContext, hostname: str, session: Any) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname, session=session)
        self._ended = False
        self._sending = False
        self._early: bytes | None = None
        self._callback: Any = None

    @property
    def session(self) -> Any:
        """The TLS session, for resumption by a later connection to the same upstream."""
        return self._tls.session

    def shake_hands(self) -> None:
        """Do the TLS handshake. Raises ssl.SSLError, OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._await_record()
            else:
                self._flush()
                return

    def receive(self) -> bytes | None:
        """Return decrypted bytes; see Connection. An end without TLS's close is an end all the same."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        while True:
            plain = self._read_all()
            if plain:
                self._announce()
                return plain
            if self._ended:
                return b""
            raw = super().receive()
            if raw is None:
                return None
            self._take(raw)

    def _read_all(self) -> bytes:
        # All of it: decrypted bytes left behind would not make the socket readable again.
        pieces = []
        try:
            while piece := self._tls.read(RECEIVE_BYTES):
                pieces.append(piece)
            self._ended = True
        except ssl.SSLWantReadError:
            if not self._sending:
                self._flush()
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        return b"".join(pieces)

    def wait_readable(self) -> None:
        """See Connection; returns at once if there is something to `receive` already."""
        if self._early is None and not self._ended:
            super().wait_readable()

    def on_readable(self, callback: Any) -> None:
        """See Connection; an end that TLS told of comes too, though the socket has nothing more to read."""
        self._callback = callback
        super().on_readable(callback)
        self._announce()

    def off_readable(self) -> None:
        """See Connection."""
        self._callback = None
        super().off_readable()

    def _announce(self) -> None:
        if self._callback is not None and (self._ended or self._early is not None):
            gevent.get_hub().loop.run_callback(self._call_back)

    def _call_back(self) -> None:
        if self._callback is not None:
            self._callback()

    def send(self, data: bytes) -> bool:
        """Encrypt and send all of `data`; see Connection."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._sending = True
        try:
            return super().send(self._outgoing.read())
        finally:
            self._sending = False

    def _is_readable(self) -> bool:
        # Readable may mean no more than a session ticket: only plain bytes are an answer.
        self._early = self.receive()
        return self._early is not None

    def is_stale(self) -> bool:
        """See Connection; TLS 1.3 tickets that came late are taken in and don't count."""
        try:
            return super().is_stale() and self.receive() is not None
        except OSError:
            return True

    def _flush(self) -> None:
        # Handshake records and the like are small: they fit the socket's buffer or the connection is no good.
        pending = self._outgoing.read()
        if pending and self._sock.send(pending) < len(pending):
            raise ConnectionResetError(errno.ECONNRESET, "a TLS record could not be sent")

    def _await_record(self) -> None:
        self.wait_readable()
        raw = super().receive()
        if raw is not None:
            self._take(raw)

    def _take(self, raw: bytes) -> None:
        if raw:
            self._incoming.write(raw)
        else:
            self._ended = True
            self._incoming.write_eof()


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
