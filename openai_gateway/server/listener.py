"""Accepts connections for a worker: at most one at a time if others accept too, and in patience if there is no room.

What is done with a connection is its `handle`'s.
"""

from __future__ import annotations

import errno
import logging
from time import monotonic
from typing import Any, Final

from gevent.server import StreamServer

_log = logging.getLogger("openai_gateway")
_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S: Final = 0.1
_SAY_AGAIN_S: Final = 60.0
# A client that left between its handshake and now.
_GONE: Final = {errno.ECONNABORTED, errno.EPROTO}


class Listener(StreamServer):
    """gevent's server, which would print a traceback for each connection that it finds no file descriptor for."""

    _said_at = float("-inf")

    def do_read(self) -> Any:
        """Return the next connection and its peer's address; None if there is none, or no room for it."""
        try:
            return super().do_read()
        except OSError as error:
            if error.errno in _GONE:
                return None
            if error.errno not in _NO_ROOM:
                raise
            self._pause(error)
            return None

    def _pause(self, error: OSError) -> None:
        if monotonic() - self._said_at > _SAY_AGAIN_S:
            self._said_at = monotonic()
            _log.error(
                "no new connection can be taken: %s; those there are go on, and others wait (see ulimit -n)",
                error.strerror,
            )
        self.stop_accepting()
        # As gevent does after any other error.
        self._timer: Any = self.loop.timer(_PAUSE_S)
        self._timer.start(self._start_accepting_if_started)  # type: ignore[attr-defined,call-arg]
