"""gunicorn's master, made to attend to signals and workers also while old workers end their calls after a reload.

gunicorn's own waits for them within its reload, up to `graceful_timeout`: until the last stream of an old worker ends,
a SIGTERM is not heard, and a new worker that was killed is not replaced, for it counts those that leave, too. Both are
mended here: it doesn't wait (a worker of ours may be told to stop twice), and those that leave don't count.

See also: settings (where the master becomes this one), successors (until when old workers accept).
"""

from __future__ import annotations

from typing import Any

from gunicorn.arbiter import Arbiter


class _Told(Exception):
    """The new workers of a reload are started, and the old ones told to stop."""


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master."""

    _is_reloading = False
    # Workers by pid that were replaced.
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
        self._leaving = {pid: worker for pid, worker in self._leaving.items() if pid in self.WORKERS}
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
