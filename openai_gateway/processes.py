"""Tells a living process from one that has ended, also when its number was given to another since.

Source: /proc/<pid>/stat (proc(5)), whose third field is the state, the fourth the parent, the 22nd when it was
started. See also: limits.sharing, recordings.runs, accounting.shared_files (whose files are left behind by whom).
"""

from __future__ import annotations

from pathlib import Path


def start_of(pid: int) -> int:
    """Return when a process was started, in the kernel's ticks; 0 if there is none, or it has ended.

    Raises OSError if that can't be told, such as while this process has no file descriptor left.
    """
    fields = _read_stat(pid)
    return int(fields[19]) if fields else 0


def parent_of(pid: int) -> int | None:
    """Return a process's parent; None if there is no such process, or it has ended."""
    fields = _read_stat(pid)
    return int(fields[1]) if fields else None


def is_alive(pid: int, started: int) -> bool:
    """Tell whether the process of this number that was started then still runs."""
    return started != 0 and start_of(pid) == started


def _read_stat(pid: int) -> list[str]:
    """Return the fields from the third on; none for a process that isn't, or waits for its parent to take note."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields
