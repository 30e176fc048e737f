"""Ends a connection whose client may still be sending what nobody wants, so that it gets its answer all the same.

Closed with bytes unread, a connection is reset, and whoever sends all of a body before it reads loses the answer (RFC
9112 9.6): `HttpURLConnection` does, and nginx may. So the sending side is closed first, and what still comes is read
and thrown away. A little of it is read from anybody. More is read of a body of reasonable length, from a few clients at
a time and at one rate for all of them together, as long as it keeps coming: all that one of them holds is a greenlet
and a socket, for a bounded time.

See also: client_connection (who asks for it).
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import Any, Final

import gevent

from openai_gateway.server import draining
from openai_gateway.server.request_heads import MAX_LEFT_BYTES
from openai_gateway.server.waits import Wait, Waits

SILENCE_S: Final = 1.0
# Twice the default of `max_body_bytes`; an upload of that at 20 Mbit/s.
MOST_BYTES: Final = 128 * 1024 * 1024
MOST_S: Final = 60.0
PLACES: Final = 64
_BYTES_PER_S: Final = 64 * 1024 * 1024

silences = Waits(SILENCE_S)
# One buffer for whatever is read to be thrown away, from any client.
_waste = bytearray(256 * 1024)


class _Pace:
    """Spreads what all read over time."""

    def __init__(self) -> None:
        self.places = PLACES
        self._next_at = 0.0

    def count(self, length: int) -> float:
        """Return for how many seconds whoever has read so much has to wait."""
        now = monotonic()
        self._next_at = max(now, self._next_at) + length / _BYTES_PER_S
        return self._next_at - now


_pace = _Pace()


def linger(client: Any, wait: Wait, left: int | None) -> None:
    """Close the sending side and read on; `left` bytes are still to come, None: nobody knows. The caller closes."""
    may_be_long = (left is None or left <= MOST_BYTES) and _pace.places > 0
    _pace.places -= may_be_long
    try:
        client.shutdown(socket.SHUT_WR)
        _read_on(client, wait, MOST_BYTES if may_be_long else MAX_LEFT_BYTES)
    except (OSError, Wait):
        pass
    finally:
        _pace.places += may_be_long


def _read_on(client: Any, wait: Wait, most_bytes: int) -> None:
    until, count = monotonic() + MOST_S, 0
    while count < most_bytes and not draining.is_on:
        now = monotonic()
        if now > until:
            return
        silences.start(wait, now + silences.seconds)
        try:
            length = client.recv_into(_waste)
        finally:
            silences.stop(wait, None)
        if not length:
            return
        count += length
        gevent.sleep(_pace.count(length) if count > MAX_LEFT_BYTES else 0)
