"""The body of a simulated answer as it is handed over, with its delays, drops and silences.

Faults, by the place that ends their name:

- `drop_*` closes the connection, `silence_*` keeps it open and sends nothing more until the client leaves.
- `*_before_headers`: instead of the answer. `*_in_body`: after half of an answer that is not streamed.
  `*_in_stream`: after `after` deltas of a streamed one. In the other kind of answer the latter two do nothing.
- `html_502` (not here) is a proxy's error page in the place of an answer.

See also: settings (the faults' names), simulation.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

from openai_gateway.simulator.settings import Script

SILENCE_S: Final = 3600.0
_LOOK_EVERY_S: Final = 0.05


def in_stream(events: Iterator[tuple[bytes, bool]], script: Script, sock: Any) -> Iterator[bytes]:
    """Yield the bytes of `events`, each told whether it is a delta, with the script's gaps and its fault."""
    deltas = 0
    for piece, is_delta in events:
        # A stream too short for `after` deltas has its fault before its closing events.
        if (is_delta and deltas >= script.after) or (deltas and not is_delta):
            fail(script.fault, "in_stream", sock)
        if is_delta:
            if deltas and script.event_gap_ms:
                time.sleep(script.event_gap_ms / 1000)
            deltas += 1
        yield piece


def in_halves(whole: bytes, script: Script, sock: Any) -> Iterator[bytes]:
    """Yield an answer's first half, and the other unless the script has a fault in between."""
    yield whole[: len(whole) // 2]
    fail(script.fault, "in_body", sock)
    yield whole[len(whole) // 2 :]


def fail(fault: str, where: str, sock: Any) -> None:
    """Do the scripted fault if this is its place. Raises ConnectionResetError, which gunicorn lets pass quietly.

    `sock` is gunicorn's socket; None, as in Flask's test client, is a client that has left.
    """
    if fault == f"drop_{where}":
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        raise ConnectionResetError(errno.ECONNRESET, "dropped as scripted")
    if fault == f"silence_{where}":
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline and not _has_left(sock):
            time.sleep(_LOOK_EVERY_S)
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
