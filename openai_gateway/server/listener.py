"""Accepts connections for a worker: in patience if there is no room, and after a worker that has fewer.

Several are taken at a time only while no other worker has clearly fewer: with many clients at once, a worker that gets
to it seldom, for its core is busy, catches up with the others.

See also: worker (what is done with a connection), balance.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from gevent.server import StreamServer

from openai_gateway.server.waits import Wait, Waits

_log = logging.getLogger("openai_gateway")
_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S: Final = 0.1
# How long, and how often in a row, a connection is left to a worker that has fewer.
_LEAVE_S: Final = 0.003
_MOST_TIMES_LEFT: Final = 3
_SAY_AGAIN_S: Final = 60.0
# For a TLS handshake; as long as for a head.
handshakes = Waits(20.0)
# The client left after TCP's handshake, before its connection was accepted.
_GONE: Final = {errno.ECONNABORTED, errno.EPROTO}


class Listener(StreamServer):
    """gevent's server, which would print a traceback for each connection that it finds no file descriptor for."""

    _spawn: Any
    _handle: Any
    _said_at = float("-inf")
    # Tells whether another worker should have the next connection.
    is_for_another: Callable[[], bool] | None = None
    # Called with 1 for each connection as it is accepted; `Worker.handle` counts it out when it is over.
    count: Callable[[int], None] = staticmethod(lambda change: None)
    _times_left = 0
    _has_just_taken = False

    def do_read(self) -> Any:
        """Return the next connection and its peer's address; None if there is none, or no room for it."""
        is_after_another, self._has_just_taken = self._has_just_taken, False
        if self.is_for_another is not None and self._times_left < _MOST_TIMES_LEFT and self.is_for_another():
            if not is_after_another:
                self._times_left += 1
                self._pause(_LEAVE_S)
            return None
        self._times_left = 0
        try:
            taken = super().do_read()
            if taken:
                self._has_just_taken = True
                self.count(1)
            return taken
        except OSError as error:
            if error.errno in _GONE:
                return None
            if error.errno not in _NO_ROOM:
                raise
            self._say(error)
            self._pause(_PAUSE_S)
            return None

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Serve a connection over TLS; one whose handshake fails or takes too long is closed without a word."""
        sock, wait = client_socket, Wait()
        handshakes.start(wait, monotonic() + handshakes.seconds)
        try:
            sock = self.wrap_socket(sock, **self.ssl_args, do_handshake_on_connect=False)  # type: ignore[misc,arg-type]
            sock.do_handshake()
        except (OSError, Wait) as error:
            _log.debug("a TLS handshake failed: %s", error)
            sock.close()
            self.count(-1)
            return
        finally:
            handshakes.stop(wait, None)
        self.handle(sock, address)

    def do_handle(self, *arguments: Any) -> None:
        """Serve a connection in a greenlet of its own; `handle` closes it.

        gevent puts a function between, which would cost each connection stack for as long as it is open.
        """
        try:
            self._spawn(self._handle, *arguments)
        except BaseException:
            self.count(-1)
            self.do_close(*arguments)
            raise

    def _say(self, error: OSError) -> None:
        if monotonic() - self._said_at > _SAY_AGAIN_S:
            self._said_at = monotonic()
            _log.error(
                "no new connection can be taken: %s; those there are go on, and others wait (see ulimit -n)",
                error.strerror,
            )

    def _pause(self, seconds: float) -> None:
        self.stop_accepting()
        # As gevent does after any other error.
        self._timer: Any = self.loop.timer(seconds)
        self._timer.start(self._start_accepting_if_started)  # type: ignore[attr-defined,call-arg]
