"""Where a peer is: its name looked up in the background, at most once at a time, and remembered for a while.

A lookup may hang for many seconds, and gevent's own resolver has ten threads for the whole process: a few calls to one
hanging name would stop every other server's. So each peer looks its own name up in a thread of its own, one lookup at a
time, for which all of its calls wait together. States: unknown (calls wait for the lookup) -> known; a lookup that is
older than a few seconds is made anew, and if that takes longer than a moment or fails, the last good addresses serve
meanwhile, for a bounded time. An address at which a connect failed is remembered as dead, so that the next connection
is begun elsewhere.

While connections are reused nobody needs a lookup, and a name that moves would never be noticed: so the pool has one
made every LOOK_EVERY_S, and `has` tells which connections are to a place that the name has left.

See also: dial (connects to one of the addresses).
"""

from __future__ import annotations

import _socket
import itertools
import socket
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

FRESH_S: Final = 5.0
LOOK_EVERY_S: Final = 15.0
_PATIENCE_S: Final = 0.5
_LAST_GOOD_S: Final = 600.0
_DEAD_S: Final = 60.0

# Family, kind, protocol, canonical name, socket address: as getaddrinfo gives them.
Address = tuple[Any, ...]


class Addresses:
    """The addresses of one host and port."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._found: Sequence[Address] = _read_literal(host, port)
        # An address needs no lookup.
        self.is_literal = bool(self._found)
        # Grows whenever what `has` says of some address may have changed.
        self.generation = 0
        self._before: Sequence[Address] = ()
        self._found_at = float("-inf")
        self._error: OSError | None = None
        self._threads: ThreadPool | None = None
        # Set while no lookup is under way.
        self._is_done = Event()
        self._is_done.set()
        self._dead_until: dict[Any, float] = {}

    def find(self) -> list[Address]:
        """Return the addresses, those thought dead last. Raises OSError if there are none."""
        if not self.is_literal and monotonic() - self._found_at > FRESH_S:
            self.look_up()
            is_known = monotonic() - self._found_at < _LAST_GOOD_S
            self._is_done.wait(_PATIENCE_S if is_known else None)
            if not self._found or monotonic() - self._found_at > _LAST_GOOD_S:
                raise self._error or OSError("the host has no address")
        now = monotonic()
        return sorted(_alternate(self._found), key=lambda address: self._dead_until.get(address[4], 0.0) > now)

    def look_up(self) -> None:
        """Begin a lookup, unless one is under way."""
        if self._is_done.is_set():
            self._is_done.clear()
            gevent.spawn(self._look_up)

    def has_address(self, peer: Any) -> bool:
        """Tell whether a connection's address is still one of the name's: in the last lookup, or in the one before.

        A name with many addresses gives a few of them by turns.
        """
        return any(address[4][:2] == peer[:2] for address in (*self._found, *self._before))

    def note_dead(self, address: Address) -> None:
        """Remember that a connect to an address failed, or took too long."""
        self._dead_until[address[4]] = monotonic() + _DEAD_S

    def note_alive(self, address: Address) -> None:
        """Remember that a connect succeeded."""
        self._dead_until.pop(address[4], None)

    def _look_up(self) -> None:
        try:
            if self._threads is None:
                self._threads = ThreadPool(1)
            found = self._threads.apply(_find_addresses, (self._host, self._port))
            if isinstance(found, OSError):
                raise found
            gone = {str(address[4]) for address in self._before} - {str(address[4]) for address in self._found}
            self._before, self._found = self._found, found
            self.generation += bool(gone)
            self._found_at = monotonic()
            known = {address[4] for address in found}
            self._dead_until = {place: until for place, until in self._dead_until.items() if place in known}
            self._error = None
        except OSError as error:
            self._error = error
        finally:
            self._is_done.set()


def _find_addresses(host: str, port: int) -> list[Address] | OSError:
    """Return a name's addresses; an error is returned, too, for gevent prints those that its threads raise."""
    try:
        return list(_socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
    except OSError as error:
        return error


def _alternate(addresses: Sequence[Address]) -> list[Address]:
    """Return addresses so that families take turns, the first one's first: mostly all of a family are dead, or none."""
    families: dict[Any, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def _read_literal(host: str, port: int) -> list[Address]:
    """Return the address of a host that is one already."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
    return []
