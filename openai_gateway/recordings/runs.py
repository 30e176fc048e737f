"""Who has had which answer in a run, and which calls are under way, over all the processes of a host.

A run is a file of fixed notes that only grows; whoever looks or decides holds its lock (flock), reads what others have
noted since, decides, and adds a note. Nothing in it is ever changed, so a process that dies leaves nothing to mend: a
flight whose process has ended counts as failed. States of a flight: begun (FLIGHT), then landed with an answer (LANDED)
or failed (FAILED). An answer is claimed by one asker of the run (CLAIM), so that k equal calls get k different ones.

See also: index (which answers there are).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openai_gateway.processes import is_alive, start_of
from openai_gateway.recordings.key import is_named, make_unnamed_asker

# what happened, process, when that was started, key, asker, answer
_NOTE: Final = struct.Struct("<B3xIQ16s16s8s")
_CLAIM, _FLIGHT, _LANDED, _FAILED, _JOINED = range(1, 6)
_NONE: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that is there: its id, and whose it was when it was recorded (NOBODY: nobody's in particular)."""

    id: bytes
    asker: bytes


@dataclass(frozen=True, slots=True)
class Serve:
    """The asker gets this answer."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Join:
    """The asker waits for the flight of `asker`, which a process of this host makes."""

    asker: bytes


@dataclass(frozen=True, slots=True)
class Fly:
    """The asker makes the call itself, as `asker`; it must end in `RunNotes.land` or `RunNotes.fail`."""

    asker: bytes


class RunNotes:
    """The notes of one run, shared through a file, which is open as long as anybody has this: a flight may outlast its
    place among the runs that are kept open, and a closed file's number soon is another file's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=16).hexdigest()
        self._fd = os.open(folder / f"{digest}.run", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._close = weakref.finalize(self, os.close, self._fd)
        self._read_to = 0
        self._claims: dict[bytes, dict[bytes, bytes]] = {}
        self._flights: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        self._landed: dict[tuple[bytes, bytes], bytes] = {}
        self._joined: dict[tuple[bytes, bytes], set[tuple[int, int]]] = {}
        self._pid = os.getpid()
        self._started = start_of(self._pid)

    def close(self) -> None:
        """Close the file."""
        self._close()

    def decide(
        self,
        key: bytes,
        asker: bytes | None,
        candidates: Sequence[Candidate],
        *,
        is_resent: bool = False,
        may_call: bool = True,
    ) -> Serve | Join | Fly | None:
        """Return what becomes of a call, and note it; None if it would have to be made, but `may_call` is False.

        `asker` None is one that can't be told from others. `is_resent`: its client says that it sent the call before.
        """
        key = key[:16]
        with self._locked():
            if asker is None:
                if is_resent and (flying := self._find_flight(key)) is not None:
                    return self._join(key, flying)
                asker = make_unnamed_asker()
            elif (key, asker) in self._flights:
                if self._is_flying(key, asker):
                    return self._join(key, asker)
                self._note(_FAILED, key, asker)
            answer = self._choose(key, asker, candidates)
            if answer is not None:
                self._note(_CLAIM, key, asker, answer)
                return Serve(answer)
            if not may_call:
                return None
            self._note(_FLIGHT, key, asker)
            return Fly(asker)

    def _choose(self, key: bytes, asker: bytes, candidates: Sequence[Candidate]) -> bytes | None:
        """Return the asker's own answer, else the one recorded for it, else the first that nobody has had."""
        claims = self._claims.get(key, {})
        there = {candidate.id for candidate in candidates}
        if claims.get(asker) in there:
            return claims[asker]
        had = set(claims.values())
        free = [candidate for candidate in candidates if candidate.id not in had]
        own = [candidate.id for candidate in free if candidate.asker == asker]
        return own[0] if own else (free[0].id if free else None)

    def claim(self, key: bytes, asker: bytes, answer: bytes) -> None:
        """Note whose an answer is, before it is kept: once it is, another asker would take it."""
        with self._locked():
            self._note(_CLAIM, key[:16], asker, answer)

    def land(self, key: bytes, asker: bytes, answer: bytes) -> None:
        """Note that a flight has its answer."""
        with self._ending(key, asker), self._locked():
            self._note(_LANDED, key[:16], asker, answer)

    def fail(self, key: bytes, asker: bytes, *, unless_awaited: bool = False) -> bool:
        """Note that a flight ended without an answer to keep, unless another process waits for it; tell if noted."""
        with self._ending(key, asker), self._locked():
            if unless_awaited and self._is_awaited(key[:16], asker):
                return False
            self._note(_FAILED, key[:16], asker)
            return True

    def look(self, key: bytes, asker: bytes) -> bytes | bool | None:
        """Return how a flight is: True while it is under way, the answer's id once it has landed, None if it failed."""
        with self._locked():
            flight = (key[:16], asker)
            if flight in self._flights:
                return self._is_flying(*flight) or None
            return self._landed.get(flight)

    def is_awaited(self, key: bytes, asker: bytes) -> bool:
        """Tell whether another process waits for a flight of ours."""
        with self._locked():
            return self._is_awaited(key[:16], asker)

    @contextlib.contextmanager
    def _ending(self, key: bytes, asker: bytes) -> Iterator[None]:
        """Have a flight of ours be over here, at least, if its end can't be noted."""
        try:
            yield
        except OSError:
            self._flights.pop((key[:16], asker), None)
            raise

    def _is_awaited(self, key: bytes, asker: bytes) -> bool:
        own = (self._pid, self._started)
        return any(other != own and is_alive(*other) for other in self._joined.get((key, asker), ()))

    def _find_flight(self, key: bytes) -> bytes | None:
        """Return the asker of a call under way with this key whose asker can't be told from others."""
        for other, asker in self._flights:
            if other == key and not is_named(asker) and self._is_flying(key, asker):
                return asker
        return None

    def _is_flying(self, key: bytes, asker: bytes) -> bool:
        return is_alive(*self._flights[key, asker])

    def _join(self, key: bytes, asker: bytes) -> Join:
        self._note(_JOINED, key, asker)
        return Join(asker)

    def _note(self, what: int, key: bytes, asker: bytes, answer: bytes = _NONE) -> None:
        note = _NOTE.pack(what, self._pid, self._started, key, asker, answer)
        if os.write(self._fd, note) == len(note):
            self._take_in(note)
            self._read_to += len(note)
        else:
            os.ftruncate(self._fd, self._read_to)
            raise OSError("the disk is full")

    def _take_in(self, notes: bytes) -> None:
        for what, pid, started, key, asker, answer in _NOTE.iter_unpack(notes):
            flight = (key, asker)
            if what == _CLAIM:
                self._claims.setdefault(key, {})[asker] = answer
            elif what == _FLIGHT:
                self._flights[flight] = (pid, started)
                self._landed.pop(flight, None)
            elif what == _JOINED:
                self._joined.setdefault(flight, set()).add((pid, started))
            elif what in (_LANDED, _FAILED):
                self._flights.pop(flight, None)
                self._joined.pop(flight, None)
                if what == _LANDED:
                    self._landed[flight] = answer

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            # A process that died while it wrote a note left a piece of one: cut it off before others are appended.
            size = os.fstat(self._fd).st_size
            whole = size - size % _NOTE.size
            if whole < size:
                os.ftruncate(self._fd, whole)
            if whole > self._read_to:
                self._take_in(os.pread(self._fd, whole - self._read_to, self._read_to))
                self._read_to = whole
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
