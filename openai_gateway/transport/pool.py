"""The connections to one peer: idle ones are kept, stale and old ones dropped, new ones made.

States of a connection: made (dialled, through the proxy's tunnel if there is one, TLS verified) -> in use <-> idle ->
closed. One is closed rather than used again if the peer has closed it or sent what nobody asked for, if it was idle too
long, if it has reached its greatest age, or if the peer's name has moved away from its address: under load connections
are never idle, and would stay at the old place for ever.

See also: exchange (what is said over a connection), addresses and dial (where a connection goes), tls, proxy.
"""

from __future__ import annotations

import random
import ssl
from collections import deque
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, Final

from openai_gateway.transport.addresses import LOOK_EVERY_S, Addresses
from openai_gateway.transport.answer_heads import ConnectionBroke
from openai_gateway.transport.connection import Connection
from openai_gateway.transport.dial import dial
from openai_gateway.transport.errors import BadAnswer, Unreachable
from openai_gateway.transport.proxy import Proxy, open_tunnel
from openai_gateway.transport.tls import TlsConnection

MAX_IDLE_S: Final = 60.0
# So that connections that were made together don't all end together.
_AGE_SPREAD: Final = 0.1
# A peer that has changed its ticket keys has full handshakes for so long.
_SESSION_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ConnectionTerms:
    """How connections to a peer are made and kept; None: no proxy, no greatest age, no probes while silent."""

    proxy: Proxy | None = None
    max_age_s: float | None = None
    keepalive_s: float | None = None


class ConnectionPool:
    """Keeps the connections of one host; the last one given back is the first one taken.

    Unbounded by itself: the slots bound how many are in use, idleness how many are kept.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, terms: ConnectionTerms | None = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._terms = terms or ConnectionTerms()
        proxy = self._terms.proxy
        self._addresses = Addresses(host, port) if proxy is None else Addresses(proxy.host, proxy.port)
        self._look_at = inf if self._addresses.is_literal else 0.0
        self._tls_session: Any = None
        self._session_from = 0.0
        self._idle: deque[tuple[float, Connection]] = deque()

    def take(self) -> Connection | None:
        """Return an idle connection that can be used, None if there is none."""
        idle = self._idle
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._addresses.look_up()
        while idle and idle[0][0] < now - MAX_IDLE_S:
            idle.popleft()[1].close()
        while idle:
            connection = idle.pop()[1]
            if (
                now < connection.expires_at
                and not connection.is_stale()
                and (connection.generation == self._addresses.generation or self._is_at_place(connection))
            ):
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
        now = monotonic()
        if not connection.used:
            connection.used = True
            if now >= self._session_from and isinstance(connection, TlsConnection):
                # TLS 1.3 sends its tickets after the handshake: only now there is a session to resume. Seldom, for the
                # session is copied each time it is asked for, which costs nearly as much as resuming it does.
                self._tls_session = connection.session
                self._session_from = now + _SESSION_EVERY_S
        self._idle.append((now, connection))

    def connect(self) -> Connection:
        """Return a new connection; the caller's watch bounds the time. Raises Unreachable, NoDescriptor."""
        try:
            sock, address = dial(self._addresses, self._terms.keepalive_s)
        except OSError as error:
            raise Unreachable(f"can't be reached: {_why(error)}") from None
        connection = Connection(sock)
        try:
            if self._terms.proxy is not None:
                self._open_tunnel(connection, self._terms.proxy)
            if self._tls is not None:
                connection = TlsConnection(connection.detach(), self._tls, self._host, self._tls_session)
                connection.shake_hands()
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise Unreachable(f"failed the TLS handshake: {_why(error)}") from None
            raise
        connection.peer, connection.generation = address[4], self._addresses.generation
        if self._terms.max_age_s is not None:
            connection.expires_at = monotonic() + self._terms.max_age_s * (1 - _AGE_SPREAD * random.random())
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()

    def _is_at_place(self, connection: Connection) -> bool:
        """Tell whether a connection still leads to where the name does, now that the addresses have changed."""
        connection.generation = self._addresses.generation
        return self._addresses.has_address(connection.peer)

    def _open_tunnel(self, connection: Connection, proxy: Proxy) -> None:
        try:
            open_tunnel(connection, proxy, self._host, self._port)
        except (OSError, BadAnswer, ConnectionBroke) as error:
            raise Unreachable(f"can't be reached: the proxy does not answer as one ({error})") from None


def _why(error: OSError) -> str:
    """Return what a person can act on; never the request."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed ({error.verify_message})"
    return error.strerror or error.__class__.__name__
