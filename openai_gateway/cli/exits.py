"""How commands end: the exit codes, and which error ends a command with which of them. The only place that knows.

A command is a plain function that returns an exit code; what it can't go on with it raises. Errors of other rooms are
known by their names here, so that one command's `--help` doesn't import what only another one needs. See also: main
(where it is asked).
"""

from __future__ import annotations

import errno
from typing import Final

OK: Final = 0
FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130


class CommandFailed(Exception):
    """The command can't go on; the message is one line that says what to do."""


class Stopped(Exception):
    """A command that was stopped before its work was done."""


class CalledWrongly(CommandFailed):
    """The command was given something that it can't use."""


CODES: Final = {
    "openai_gateway.cli.exits.CalledWrongly": WRONG,
    "openai_gateway.cli.exits.CommandFailed": FAILED,
    "openai_gateway.cli.exits.Stopped": INTERRUPTED,
    "openai_gateway.cli.servers.NotReady": FAILED,
    "openai_gateway.config.complaints.ConfigError": WRONG,
    "openai_gateway.config.price_files.BadPrices": WRONG,
    "openai_gateway.simulator.settings.SettingsError": WRONG,
    "openai_gateway.collect.entries.JournalError": WRONG,
    "openai_gateway.collect.run_files.BadFiles": WRONG,
    "builtins.OSError": FAILED,
    "builtins.KeyboardInterrupt": INTERRUPTED,
}
# Their message is a page of its own, with a first line that says what it is about.
_WHOLE_PAGES: Final = ("openai_gateway.config.complaints.ConfigError",)


def find_exit_code(error: BaseException) -> int | None:
    """Return the code that an error ends a command with; None if it is no end of a command but a bug."""
    return next((CODES[name] for name in _names_of(error) if name in CODES), None)


def is_whole_page(error: BaseException) -> bool:
    """Tell whether the error's message is shown as it is, without a word before it."""
    return any(name in _WHOLE_PAGES for name in _names_of(error))


def is_broken_pipe(error: BaseException) -> bool:
    """Tell whether the reader of what is printed has gone, as `head` does; there is nobody to tell."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def describe_error(error: BaseException) -> str:
    """Return the error as a person reads it."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def _names_of(error: BaseException) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
