"""A file of keys, read again when it changes, so that keys are rotated without a restart.

What the keys open is the readers' business.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import Final

_CHECK_EVERY_S: Final = 1.0
_log = logging.getLogger("openai_gateway")


class KeyFile:
    """The keys in a file: one a line, blank lines and lines that start with `#` left out.

    A file that is away, empty or unfit for a moment, as while it is being replaced, leaves the last keys in use.
    `on_change` is called when other keys have come into use.
    """

    def __init__(self, path: str, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self._path = path
        self._keys: tuple[str, ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._checked_at = float("-inf")

    def read(self) -> tuple[str, ...]:
        """Return the keys as the file has them; it is looked at once a second at most."""
        now = monotonic()
        if now - self._checked_at >= _CHECK_EVERY_S:
            self._checked_at = now
            self._read_if_changed()
        return self._keys

    def _read_if_changed(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            with open(self._path, encoding="utf-8") as file:
                keys = to_keys(file.read())
        except (OSError, UnicodeDecodeError) as error:
            _log.error("key file %s can't be read (%s); the last keys stay in use", self._path, type(error).__name__)
            return
        if not keys:
            _log.error("key file %s holds no usable key; the last keys stay in use", self._path)
            return
        is_change = bool(self._keys) and keys != self._keys
        self._stamp, self._keys = stamp, keys
        if is_change:
            _log.info("key file %s was read again", self._path)
            self.on_change()


def to_keys(text: str) -> tuple[str, ...]:
    """Return the keys in a key file's text; none at all if a line can't be sent in a header."""
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    return keys if all(key.isascii() and key.isprintable() and " " not in key for key in keys) else ()
