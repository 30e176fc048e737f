"""gunicorn's master, made to attend to signals and workers also while old workers end their calls after a reload.

gunicorn's own waits for them within its reload, up to `graceful_timeout`: until the last stream of an old worker ends,
a SIGTERM is not heard, and a new worker that was killed is not replaced, for it counts those that leave, too. Both are
mended here: it doesn't wait (a worker of ours may be told to stop twice), and those that leave don't count.

A worker that has served as many requests as it may leaves, too, and says so by a byte in the file of its heartbeats,
which both have open. gunicorn's own master reads none, and is told to run one worker more until that one is gone.

See also: settings (where the master becomes this one), successors (until when old workers accept).
"""

from __future__ import annotations

import os
import signal
from typing import Any

from gunicorn.arbiter import Arbiter


class _Told(Exception):
    """The new workers of a reload are started, and the old ones told to stop."""


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master."""

    _is_reloading = False
    # Workers by pid that were replaced, or are to be.
    _leaving: dict[int, Any]

    def reload(self) -> None:
        """Read the settings again, start new workers and tell the old ones to stop."""
        old = dict(self.WORKERS)
        self._is_reloading = True
        try:
            super().reload()
        except _Told:
            pass
        finally:
            self._is_reloading = False
        self._leaving.update(old)

    def reap_workers(self) -> None:
        """Take note of workers that have ended; a reload would do so until the last of the old ones has."""
        if self._is_reloading:
            raise _Told
        super().reap_workers()

    def manage_workers(self) -> None:
        """Start workers that are missing, and tell those that are too many to stop."""
        self._leaving = {
            pid: worker for pid, worker in self.WORKERS.items() if pid in self._leaving or _is_to_be_replaced(worker)
        }
        for pid in self._leaving:
            del self.WORKERS[pid]
        try:
            super().manage_workers()
        finally:
            self.WORKERS.update(self._leaving)


def adopt_master(server: Any) -> None:
    """Make gunicorn's master ours; one of another class is left as it is."""
    if type(server) is Arbiter:
        server.__class__ = Master
        server._leaving = {}


def find_master() -> Any:
    """Return the master of this worker, as it was when it started it; None if this is no worker of gunicorn's."""
    # Workers keep its handler of this signal.
    return getattr(signal.getsignal(signal.SIGTTIN), "__self__", None)


def ask_for_another(worker: Any) -> bool:
    """Have the master start another worker, for this one leaves; False if it can't be asked.

    Else it would do so only when this one is gone, which may be hours from now, after its longest call.
    """
    if isinstance(find_master(), Master):
        os.ftruncate(worker.tmp.fileno(), 1)
        worker.tmp.notify()
        return True
    try:
        os.kill(worker.ppid, signal.SIGTTIN)
    except PermissionError:
        # It is another user's.
        return False
    return True


def tell_of_end(worker: Any) -> None:
    """Have a master that was asked for another worker run one less again; the last step of one that leaves.

    gunicorn's own ends its oldest for that, which may not be this one.
    """
    if not isinstance(find_master(), Master):
        os.kill(worker.ppid, signal.SIGTTOU)


def _is_to_be_replaced(worker: Any) -> bool:
    return os.fstat(worker.tmp.fileno()).st_size > 0
