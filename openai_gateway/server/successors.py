"""Whether others are about to take a worker's place: one that is told to stop accepts on until they do.

At SIGHUP gunicorn's master starts new workers and tells the old ones to stop, both at once. The new ones accept half a
second later, on a busy host ten: nobody would accept for so long if the old ones stopped when they are told to.

Why a worker is told to stop, its master's state in /proc says. One that ends for good has closed its listening sockets
first. One that still has them, and has started workers since, replaces this one; and each of those is waited for until
it has said how many connections it has, which it does as soon as it accepts, or has ended. Where that can't be seen (a
master of another user, no folder to share a file in), a worker stops at once.

See also: worker (who asks), balance (the file that workers share).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import Any

from openai_gateway.processes import start_of
from openai_gateway.server.balance import Balance


class Successors:
    """The workers that a master has started after this one."""

    def __init__(self, master_pid: int, listeners: Iterable[Any], balance: Balance, patience_s: float) -> None:
        self._master_pid = master_pid
        self._listeners = {f"socket:[{os.fstat(listener.fileno()).st_ino}]" for listener in listeners}
        self._balance = balance
        self._until = monotonic() + patience_s
        self._at_first = set(self._find_younger())
        # This worker has asked for another since, which may not have been started yet.
        self.are_to_be_more = False

    def are_awaited(self) -> bool:
        """Tell whether there will be some that accept, and don't yet."""
        if not self._is_master_listening():
            return False
        younger = self._find_younger()
        counts = [self._balance.count_of(pid) for pid in younger]
        # What keeps one out is mended by the next reload, not by time.
        if math.inf in counts:
            return True
        if self.are_to_be_more:
            is_one_missing = self._at_first.issuperset(younger)
        else:
            # Those that were to take its place may all have died before they could: others are started then.
            is_one_missing = not younger and bool(self._at_first)
        return monotonic() < self._until and (None in counts or is_one_missing)

    def _is_master_listening(self) -> bool:
        folder = f"/proc/{self._master_pid}/fd"
        try:
            fds = os.listdir(folder)
        except OSError:
            return False
        for fd in fds:
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{fd}") in self._listeners:
                    return True
        return False

    def _find_younger(self) -> list[int]:
        """Return the workers that were started after this one; one that has processes of its own is another master."""
        own = (start_of(os.getpid()), os.getpid())
        younger = []
        for pid in _children_of(self._master_pid):
            start = start_of(pid)
            if start and (start, pid) > own and not _children_of(pid):
                younger.append(pid)
        return younger


def _children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
