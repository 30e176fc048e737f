"""A file that is read again when it changes, so that what it holds is changed without a restart.

What is in use stays in use when the file can't be read or holds what can't be used; that is logged once, and `problem`
says it until it is over. Secrets are swapped by renaming: a file that is away for a moment changes nothing; if it stays
away, `when_gone` comes into use, if there is one.

See also: key_file, clients (what the text means).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic, TypeVar

_CHECK_EVERY_S: Final = 1.0
_GONE_AFTER_S: Final = 10.0
_log = logging.getLogger("openai_gateway")
_Content = TypeVar("_Content")


class BadContent(Exception):
    """A file's text can't be used; the message says why and repeats no secret."""


class WatchedFile(Generic[_Content]):
    """What `parse` makes of the file at `path`, `initial` until it could be read for the first time.

    `name` is what a message calls the file, `kept` what it says stays in use. `on_change` is called when other content
    has come into use.
    """

    def __init__(self, path: str, parse: Callable[[str], _Content], initial: _Content, name: str, kept: str) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.when_gone: _Content | None = None
        self.problem: str | None = None
        self.path = path
        self._parse = parse
        self._content = initial
        self._is_read = False
        self._name = name
        self.kept = kept
        self._stamp: tuple[int, int, int] | None = None
        self._checked_at = float("-inf")
        self._gone_at: float | None = None

    def read(self) -> _Content:
        """Return the content as the file has it; it is looked at once a second at most."""
        now = monotonic()
        if now - self._checked_at >= _CHECK_EVERY_S:
            self._checked_at = now
            self._read_if_changed(now)
        return self._content

    def _read_if_changed(self, now: float) -> None:
        try:
            found = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                # The file is as it was. If it could not be used then, `problem` still says so.
                return
            with open(self.path, encoding="utf-8") as file:
                content = self._parse(file.read())
        except FileNotFoundError:
            self._miss(now)
        except (OSError, UnicodeDecodeError) as error:
            self._stamp = None
            self._tell(f"can't be read ({type(error).__name__})")
        except BadContent as error:
            self._stamp, self._gone_at = stamp, None
            self._tell(str(error))
        else:
            self._stamp, self._gone_at, self.problem = stamp, None, None
            self._use(content, "was read again")

    def _miss(self, now: float) -> None:
        self._stamp = None
        if self._gone_at is None:
            self._gone_at = now
        if self.when_gone is not None and now - self._gone_at >= _GONE_AFTER_S:
            self._use(self.when_gone, f"is gone for {_GONE_AFTER_S:g} s; nothing of it is in use any more")
            self.problem = "is gone"
        else:
            self._tell("can't be read (FileNotFoundError)")

    def _use(self, content: _Content, said: str) -> None:
        before, self._content = self._content, content
        is_first, self._is_read = not self._is_read, True
        if content != before and not is_first:
            _log.info("%s %s %s", self._name, self.path, said)
            self.on_change()

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            _log.error("%s %s %s; %s", self._name, self.path, problem, self.kept)
