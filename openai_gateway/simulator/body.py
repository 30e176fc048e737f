"""The body of a simulated answer as it is handed over, with its delays, drops and silences.

An object with `close()`, so that a call is counted as over on every path; an unstarted generator would not be.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from openai_gateway.simulator.settings import Script

SILENCE_S: Final = 3600.0


class Body:
    """The pieces of an answer; `on_end(is_whole)` is called once, when the last is out or the client has gone."""

    def __init__(self, pieces: Iterator[tuple[bytes, bool]], script: Script, on_end: Callable[[bool], None], sock: Any):
        self._pieces = pieces
        self._script = script
        self._on_end: Callable[[bool], None] | None = on_end
        self._sock = sock
        self._deltas = 0
        self._is_whole = False

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        try:
            piece, is_delta = next(self._pieces)
        except StopIteration:
            self._is_whole = True
            raise
        if is_delta:
            if self._deltas >= self._script.after:
                fail(self._script.fault, "in_stream", self._sock)
            if self._deltas and self._script.event_gap_ms:
                time.sleep(self._script.event_gap_ms / 1000)
            self._deltas += 1
        return piece

    def close(self) -> None:
        """Count the call as over."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self._is_whole)


def fail(fault: str, where: str, sock: Any) -> None:
    """Do the scripted fault if this is its place: drop the connection, or say nothing until the client leaves."""
    if fault == f"drop_{where}":
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError(errno.ECONNRESET, "dropped as scripted")
    if fault == f"silence_{where}":
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline and not _has_left(sock):
            time.sleep(0.05)
        raise ConnectionResetError(errno.ECONNRESET, "silent as scripted")


def _has_left(sock: Any) -> bool:
    if sock is None:
        return True
    sock.settimeout(0.0)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK) == b"")
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.settimeout(None)
