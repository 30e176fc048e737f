"""Where each kept answer lies: a map in memory, made from the segments' headers and brought up to date by what grew.

A place is one integer, segment number and offset, for there may be a million. See also: segments (the headers),
store.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from openai_gateway.recordings.segments import RecordHeader, find_segments, read_header, read_payload, scan

_OFFSET_BITS: Final = 40
_MOST_OPEN: Final = 64


class _Segment:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_to = 0
        self.fd: int | None = None

    def open(self) -> int:
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self.fd

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Index:
    """The kept answers of one folder, by key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[bytes, int | list[int]] = {}
        self._segments: list[_Segment] = []
        self._numbers: dict[str, int] = {}
        self._open: list[_Segment] = []

    def __len__(self) -> int:
        return sum(1 if isinstance(places, int) else len(places) for places in self._places.values())

    def list_keys(self) -> list[bytes]:
        """Return every key there is."""
        return list(self._places)

    def refresh(self) -> None:
        """Take in what has been written since, by whichever process. Raises OSError."""
        there = {path.name: path for path in find_segments(self._folder)}
        if any(name not in there for name in self._numbers):
            self._forget()
        for name, path in there.items():
            number = self._numbers.get(name)
            if number is None:
                number = self._numbers[name] = len(self._segments)
                self._segments.append(_Segment(path))
            # A segment may be pruned meanwhile, which the next look notices; something else may have a segment's name.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                self._take_in(number)

    def _take_in(self, number: int) -> None:
        segment = self._segments[number]
        if segment.path.stat().st_size <= segment.read_to:
            return
        for at, header in scan(segment.path, segment.read_to):
            self._add(header.key, number << _OFFSET_BITS | at)
            segment.read_to = header.payload_at + header.payload_bytes

    def _add(self, key: bytes, place: int) -> None:
        places = self._places.get(key)
        if places is None:
            self._places[key] = place
        elif isinstance(places, int):
            self._places[key] = [places, place]
        else:
            places.append(place)

    def _forget(self) -> None:
        """Begin anew: a segment was removed, and the places in it with it."""
        self.close()
        self._places.clear()
        self._segments.clear()
        self._numbers.clear()

    def find(self, key: bytes) -> list[tuple[int, RecordHeader]]:
        """Return places and headers of the answers under a key, the first begun first."""
        places = self._places.get(key, [])
        found = []
        for place in [places] if isinstance(places, int) else places:
            with contextlib.suppress(OSError):
                header = read_header(self._fd(place), place & ((1 << _OFFSET_BITS) - 1))
                if header is not None and header.key == key:
                    found.append((place, header))
        return sorted(found, key=lambda item: (item[1].time, item[1].id))

    def read(self, place: int, header: RecordHeader) -> bytes | None:
        """Return the payload at a place; None if it is damaged or gone."""
        try:
            return read_payload(self._fd(place), header)
        except OSError:
            return None

    def _fd(self, place: int) -> int:
        segment = self._segments[place >> _OFFSET_BITS]
        if segment.fd is None:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(0).close()
            self._open.append(segment)
        return segment.open()

    def close(self) -> None:
        """Close the segments' files."""
        while self._open:
            self._open.pop().close()
