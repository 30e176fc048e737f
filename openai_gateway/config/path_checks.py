"""What a key that names a file or folder may be: `locate` looks at what lies there, once the value itself is sound.

All paths are taken from the working folder on. See also: checks (all other values).
"""

from __future__ import annotations

import os
import ssl
from abc import abstractmethod
from pathlib import Path

from marshmallow import ValidationError

from openai_gateway.config.checks import Text, find_doubt
from openai_gateway.config.key_file import read_keys


class PathText(Text):
    """The path of a file, from the working folder on."""

    kind = "path"


class _InputFile(PathText):
    """A file that is there to be read."""

    def locate(self, value: str, cwd: Path) -> str:
        """Return its whole path."""
        path = cwd / value
        try:
            self._read(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "") or "not text"
            raise ValidationError(f"the file {path} can't be used ({reason})") from None
        return str(path)

    @abstractmethod
    def _read(self, path: Path) -> None:
        """Read it. Raises ValidationError, OSError, UnicodeDecodeError."""


class TextFile(_InputFile):
    """A file of text, whose content is checked by whoever knows what it must be."""

    def _read(self, path: Path) -> None:
        path.read_text(encoding="utf-8")


class KeyFilePath(_InputFile):
    """A file with keys in it, one a line."""

    def _read(self, path: Path) -> None:
        keys = read_keys(path.read_text(encoding="utf-8"))
        if not keys:
            raise ValidationError(f"the file {path} holds no usable key")
        for doubt in filter(None, map(find_doubt, keys)):
            raise ValidationError(f"a key in the file {path} {doubt} (value not shown)")


class CertificateFile(_InputFile):
    """A file with CA certificates in it."""

    def _read(self, path: Path) -> None:
        ssl.create_default_context(cafile=path)


class CreatedFile(PathText):
    """A file that the gateway writes, in a folder that is there."""

    def locate(self, value: str, cwd: Path) -> str:
        """Return its whole path."""
        path = cwd / value
        if path.is_dir():
            raise ValidationError(f"{path} is a folder")
        if not path.parent.is_dir():
            raise ValidationError(f"there is no folder {path.parent}")
        _check_may_write(path.parent)
        return str(path)


class CreatedFolder(PathText):
    """A folder that the gateway writes into, and makes if need be."""

    def locate(self, value: str, cwd: Path) -> str:
        """Return its whole path."""
        path = cwd / value
        if path.is_file():
            raise ValidationError(f"{path} is a file")
        _check_may_write(path)
        return str(path)


def _check_may_write(folder: Path) -> None:
    """Make sure that files can be made in a folder, which may have to be made itself. Raises ValidationError."""
    there = folder
    while there != there.parent and not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValidationError(f"{folder} can't be written to")
