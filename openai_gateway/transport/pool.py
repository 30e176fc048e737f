"""The connections to one peer: idle ones are kept, stale ones dropped, new ones made.

What is said over a connection is `exchange`'s, how a TLS one is made `tls`'.
"""

from __future__ import annotations

import errno
import ssl
from collections import deque
from time import monotonic
from typing import Any, Final

from openai_gateway.transport.connection import Connection, connect
from openai_gateway.transport.errors import NoDescriptor, Unreachable
from openai_gateway.transport.tls import TlsConnection

MAX_IDLE_S: Final = 60.0
_ADDRESS_TIMEOUT_S: Final = 3.0


class ConnectionPool:
    """Keeps the connections of one host; the last one given back is the first one taken.

    Unbounded by itself: the slots bound how many are in use, idleness how many are kept.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._tls_session: Any = None
        self._idle: deque[tuple[float, Connection]] = deque()

    def take(self) -> Connection | None:
        """Return an idle connection that still is alive, None if there is none."""
        idle = self._idle
        self._drop_expired()
        while idle:
            connection = idle.pop()[1]
            if not connection.is_stale():
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
        if not connection.used:
            connection.used = True
            if isinstance(connection, TlsConnection):
                # TLS 1.3 sends its tickets after the handshake: only now there is a session to resume. Once a
                # connection, for the session is copied each time it is asked for, which costs more than the call.
                self._tls_session = connection.session
        self._idle.append((monotonic(), connection))

    def connect(self) -> Connection:
        """Return a new connection, TLS verified. Raises Unreachable; the caller's watch bounds the time."""
        try:
            sock = connect(self._host, self._port, _ADDRESS_TIMEOUT_S)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise NoDescriptor("was not asked: no file descriptor is left here (see ulimit -n)") from None
            raise Unreachable(f"can't be reached: {_why(error)}") from None
        if self._tls is None:
            return Connection(sock)
        connection = TlsConnection(sock, self._tls, self._host, self._tls_session)
        try:
            connection.shake_hands()
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise Unreachable(f"failed the TLS handshake: {_why(error)}") from None
            raise
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()

    def _drop_expired(self) -> None:
        idle = self._idle
        while idle and idle[0][0] < monotonic() - MAX_IDLE_S:
            idle.popleft()[1].close()


def _why(error: OSError) -> str:
    """Return what a person can act on; never the request."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed ({error.verify_message})"
    return error.strerror or error.__class__.__name__
