"""Lets the workers of one gunicorn master read each other's totals, by way of a folder of files.

Strategy: no file is ever written by two processes, so calls need no lock. Each worker writes its totals to a file
named after its pid, and replaces it by renaming, so that a reader sees a whole one. A worker's file is *living* while
a process of that pid is a child of the master, then *ended*: whoever starts next adds all ended ones up into the file
`ended` and removes them, under an exclusive lock that readers share, so that no reader counts a call twice or misses
it.

The folder is named after the master's PID namespace, pid and start time. Who finds one whose master has ended removes
it. Whether a master in another namespace lives, as in another container that has the same /tmp, can't be seen by its
pid: its workers hold a shared lock on a file of the folder, and a folder is kept for a day beside that. A folder that
somebody else removed is made anew with the next totals; what ended workers had left in it is lost then.

See also: snapshot (what is written and read), processes (who lives).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.accounting.totals import Totals
from openai_gateway.processes import parent_of, start_of

_log = logging.getLogger("openai_gateway")
_PREFIX: Final = "openai_gateway"
_ENDED: Final = "ended"
_HELD: Final = "held"
_KEPT_S: Final = 24 * 3600.0
_decoder = msgspec.msgpack.Decoder(Totals)


class SharedFiles:
    """The folder with the totals of one master's workers."""

    def __init__(self, folder: Path, master_pid: int) -> None:
        self._folder = folder
        self._master_pid = master_pid
        self._own = folder / str(os.getpid())
        self._lock_fd: int | None = None

    def write(self, totals: Totals) -> None:
        """Write this worker's totals, whole or not at all."""
        text = msgspec.msgpack.encode(totals)
        try:
            self._replace(text)
        except FileNotFoundError:
            _log.warning("%s was removed; it is made anew, without the sums of workers that have ended", self._folder)
            self.make_folder()
            self._replace(text)

    def is_written(self) -> bool:
        """Tell whether this worker's totals are still there."""
        return self._own.exists()

    def make_folder(self) -> None:
        """Make the folder if it isn't there, and hold it. Raises OSError if it can't be used."""
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        info = self._folder.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise PermissionError("it belongs to somebody else")
        if self._lock_fd is not None:
            os.close(self._lock_fd)
        self._lock_fd = os.open(self._folder / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _replace(self, text: bytes) -> None:
        new = self._own.with_suffix(".new")
        new.write_bytes(text)
        new.rename(self._own)

    def read_others(self) -> tuple[list[Totals], list[Totals]]:
        """Return the totals of the other workers: of those that live, and of those that have ended."""
        living: list[Totals] = []
        ended: list[Totals] = []
        # A folder that was removed is made anew by `write`.
        with contextlib.suppress(FileNotFoundError), self._locked(fcntl.LOCK_SH):
            for path in self._others():
                totals = _read(path)
                if totals is not None:
                    (living if self._is_alive(path) else ended).append(totals)
        return living, ended

    def tidy(self) -> None:
        """Add up what ended workers left; keeps the number of files at that of the workers."""
        with self._locked(fcntl.LOCK_EX):
            gone = [path for path in self._others() if not self._is_alive(path)]
            found = [totals for totals in map(_read, gone) if totals is not None]
            if not found:
                return
            total = Totals(pid=0, started=found[0].started)
            for totals in found:
                total.add(totals)
            new = self._folder / f"{_ENDED}.new"
            new.write_bytes(msgspec.msgpack.encode(total))
            new.rename(self._folder / _ENDED)
            for path in gone:
                if path.name != _ENDED:
                    path.unlink(missing_ok=True)

    def _others(self) -> list[Path]:
        return [
            path
            for path in sorted(self._folder.iterdir())
            if path != self._own and (path.name.isdigit() or path.name == _ENDED)
        ]

    def _is_alive(self, path: Path) -> bool:
        return path.name.isdigit() and parent_of(int(path.name)) == self._master_pid

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield


def open_shared_files(master_pid: int) -> SharedFiles | None:
    """Return the files of this worker's master, made if need be; None, with a warning, if there can be none."""
    root = Path(tempfile.gettempdir())
    folder = root / make_folder_name(master_pid)
    try:
        remove_dead(root)
        files = SharedFiles(folder, master_pid)
        files.make_folder()
        files.tidy()
    except (OSError, OverflowError) as error:
        _log.warning("/metrics and /status tell of one worker only: %s can't be used (%s)", folder, error)
        return None
    return files


def make_folder_name(master_pid: int) -> str:
    """Return the name of a master's folder; no other process has the same, here or in another container."""
    # Four parts, the third no number: version 0.1, beside this one, stops at any other number of parts.
    return f"{_PREFIX}.{os.getuid()}.{_namespace()}-{master_pid}.{start_of(master_pid)}"


def remove_dead(root: Path, *, also: int | None = None) -> None:
    """Remove the folders of masters that have ended, and that of `also`, which is about to."""
    for folder in root.glob(f"{_PREFIX}.{os.getuid()}.*-*.*"):
        _, _, owner, start = folder.name.split(".", 3)
        namespace, _, pid = owner.partition("-")
        if not pid.isdigit():
            continue
        is_here = namespace == _namespace()
        if (int(pid) == also or str(start_of(int(pid))) != start) if is_here else _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Tell whether a folder of another PID namespace is nobody's any more."""
    try:
        if time.time() - folder.stat().st_mtime < _KEPT_S:
            return False
        with (folder / _HELD).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def _read(path: Path) -> Totals | None:
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None
