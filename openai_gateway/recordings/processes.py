"""Tells a living process from one that has ended, also when its number was given to another since.

Source: /proc/<pid>/stat, whose 22nd field is when the process was started.
"""

from __future__ import annotations

from pathlib import Path


def start_of(pid: int) -> int:
    """Return when a process was started, in the kernel's ticks; 0 if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Tell whether the process of this number that was started then still runs."""
    return started != 0 and start_of(pid) == started
