"""Files of keys, one a line: the upstream's key, and the keys that let clients in.

See also: watched_file (when such a file is read again).
"""

from __future__ import annotations

from collections.abc import Callable

from openai_gateway.config.secret import Secret
from openai_gateway.config.watched_file import BadContent, WatchedFile

KeyFile = WatchedFile[tuple[str, ...]]
_NONE: tuple[str, ...] = ()


def open_upstream_keys(path: str) -> KeyFile:
    """Return the file of the upstream's key: as long as it holds no usable one, the last one stays in use."""
    return KeyFile(path, _parse_some, _NONE, "key file", "the last keys stay in use")


class UpstreamKey:
    """The key for an upstream: the configured one, or the first one in its file.

    `on_change` is called when another has come into use. The value leaves here only as a header of upstream requests.
    """

    def __init__(self, secret: Secret | None, path: str | None, on_change: Callable[[], None]) -> None:
        self._secret = secret or Secret("")
        self.file = open_upstream_keys(path) if path else None
        if self.file is not None:
            self.file.on_change = on_change

    def reveal(self) -> str:
        """Return the key itself."""
        if self.file is None:
            return self._secret.reveal()
        keys = self.file.read()
        return keys[0] if keys else ""


def open_client_keys(path: str) -> KeyFile:
    """Return a file of clients' keys: emptied, or gone for good, it lets nobody in."""
    file = KeyFile(path, _parse_any, _NONE, "key file", "the last keys stay in use")
    file.when_gone = ()
    return file


def read_keys(text: str) -> tuple[str, ...]:
    """Return the keys in a key file's text; none at all if a line can't be sent in a header."""
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    return keys if all(key.isascii() and key.isprintable() and " " not in key for key in keys) else ()


def _parse_some(text: str) -> tuple[str, ...]:
    keys = read_keys(text)
    if not keys:
        raise BadContent("holds no usable key")
    return keys


def _parse_any(text: str) -> tuple[str, ...]:
    keys = read_keys(text)
    if not keys and any(line.strip() and not line.strip().startswith("#") for line in text.splitlines()):
        raise BadContent("holds a line that is no key")
    return keys
