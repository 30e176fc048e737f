"""What a worker writes to stderr goes through a queue, which a thread empties: nobody who reads the log holds up calls.

A pipe whose reader has stopped (a hung journal, a paused `less`) takes 64 KB and then nothing: a worker that wrote to
it itself would stand still, with all its calls. Here what finds no room in the queue is dropped and counted, and the
next line that gets through is followed by one that says how many were lost. The thread is one of the system's:
gevent's would be stopped by the write as well. The master, which forks and so must have no thread, drops what the
reader doesn't take at once: it would hear of no signal otherwise. See also: accounting.log (which makes the lines).
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import select
import sys
from time import monotonic
from typing import Any, Final

from gevent.monkey import get_original

from openai_gateway.accounting.log import lost_lines, make_lost_line

MAX_WRITES: Final = 5_000
# How long the end of a worker waits for what is still to be written.
_PATIENCE_S: Final = 1.0
_PAUSE_S: Final = 0.01
_start_thread = get_original("_thread", "start_new_thread")
_SimpleQueue = get_original("queue", "SimpleQueue")
_sleep = get_original("time", "sleep")


class _Stream(io.TextIOBase):
    """A text stream to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor behind it."""
        return self._fd

    def isatty(self) -> bool:
        """Tell whether a person reads along."""
        return os.isatty(self._fd)


class QueuedStream(_Stream):
    """A text stream that never blocks: what is written goes out whole, or is lost and counted."""

    def __init__(self, fd: int, *, max_writes: int = MAX_WRITES) -> None:
        super().__init__(fd)
        self._max_writes = max_writes
        self._queue: Any = _SimpleQueue()
        self._lost_since = 0
        self._put = self._written = 0

    def write(self, text: str) -> int:
        """Have the text written soon; drop and count it if too much waits already."""
        if self._put - self._written >= self._max_writes:
            lost_lines.count += 1
            self._lost_since += 1
            return len(text)
        if not self._put:
            _start_thread(self._write_on, ())
        self._put += 1
        self._queue.put(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: nobody waits for what is written."""

    def drain(self) -> None:
        """Wait a little for all to be written; for the end of the process."""
        until = monotonic() + _PATIENCE_S
        while self._written < self._put and monotonic() < until:
            _sleep(_PAUSE_S)

    def _write_on(self) -> None:
        while True:
            self._write_all(self._queue.get())
            lost, self._lost_since = self._lost_since, 0
            if lost:
                self._write_all(make_lost_line(lost))
            self._written += 1

    def _write_all(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Another process that shares this descriptor may have made it non-blocking.
                _sleep(_PAUSE_S)
            except OSError:
                lost_lines.count += 1
                return


class DroppingStream(_Stream):
    """A text stream that never blocks: what the reader doesn't take at once is dropped."""

    def write(self, text: str) -> int:
        """Write the text as far as there is room."""
        data = text.encode("utf-8", "backslashreplace")
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        with contextlib.suppress(OSError):
            # A pipe that can be written to takes so much without blocking.
            while data and poll.poll(0):
                data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]
        return len(text)


def drop_stderr() -> None:
    """Have nothing that this process, gunicorn's master, writes to stderr hold it up."""
    sys.stderr = DroppingStream(sys.stderr.fileno())
    for handler in logging.getLogger("gunicorn.error").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)


def queue_stderr() -> None:
    """Have all that this process writes to stderr go through a queue, and gunicorn's access log, if it is on stdout."""
    stream = QueuedStream(sys.stderr.fileno())
    sys.stderr = stream
    atexit.register(stream.drain)
    for handler in logging.getLogger("gunicorn.access").handlers:
        if type(handler) is logging.StreamHandler:
            queued = QueuedStream(handler.stream.fileno())
            handler.setStream(queued)
            atexit.register(queued.drain)
