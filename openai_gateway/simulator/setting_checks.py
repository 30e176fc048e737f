"""What each of the simulator's settings may be, and its value from YAML, JSON, or a metadata string.

Which setting is checked by which, is said where it is declared. See also: simulator.settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

FAULTS: Final = (
    "drop_before_headers",
    "drop_in_body",
    "drop_in_stream",
    "silence_before_headers",
    "silence_in_body",
    "silence_in_stream",
    "html_502",
)
APIS: Final = ("responses", "chat")


@dataclass(frozen=True)
class SettingCheck:
    """What a setting must be, in words; `convert` returns its value and raises ValueError for any other."""

    wanted: str
    convert: Callable[[Any], Any]


def setting(check: SettingCheck, default: Any, meaning: str = "") -> Any:
    """Return the dataclass field of a setting, whose check `checks_of` finds; `meaning` is for `--help` and pages."""
    return dataclasses.field(default=default, metadata={"check": check, "meaning": meaning})


def checks_of(declaring: type) -> dict[str, SettingCheck]:
    """Return the checks of the settings that a dataclass declares, by name."""
    fields = dataclasses.fields(declaring)
    return {field.name: field.metadata["check"] for field in fields if "check" in field.metadata}


def or_null(check: SettingCheck) -> SettingCheck:
    """Return the check that takes null, too."""
    return SettingCheck(f"{check.wanted}, or null", lambda given: None if given is None else check.convert(given))


def number(least: int, most: int | None = None) -> SettingCheck:
    """Return the check of a whole number; a string of digits is one, as metadata has it."""

    def convert(given: Any) -> int:
        is_number = isinstance(given, int) and not isinstance(given, bool)
        if not is_number and not (isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20):
            raise ValueError
        found = int(given)
        if found < least or (most is not None and found > most):
            raise ValueError
        return found

    return SettingCheck(f"a whole number from {least}" + (f" to {most}" if most is not None else ""), convert)


def fraction(below: float) -> SettingCheck:
    """Return the check of a number from 0 up to, not including, `below`."""

    def convert(given: Any) -> float:
        share: float = seconds(below).convert(given)
        if share >= below:
            raise ValueError
        return share

    return SettingCheck(f"a number from 0 to below {below:g}", convert)


def seconds(most: float) -> SettingCheck:
    """Return the check of a number of seconds from 0."""

    def convert(given: Any) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError
        found = float(given)
        if not 0 <= found <= most:
            raise ValueError
        return found

    return SettingCheck(f"a number from 0 to {most:g}", convert)


def one_of(names: tuple[str, ...]) -> SettingCheck:
    """Return the check of one of some names."""

    def convert(given: Any) -> str:
        if given not in names:
            raise ValueError
        return str(given)

    return SettingCheck(f"one of {', '.join(names)}", convert)


def changes(checks: dict[str, SettingCheck]) -> SettingCheck:
    """Return the check of a list of changes: mappings with `at_s`, and some of the settings in `checks`."""

    def convert(given: Any) -> tuple[dict[str, Any], ...]:
        if not isinstance(given, list | tuple):
            raise ValueError
        return tuple(sorted(map(to_change, given), key=lambda change: float(change["at_s"])))

    def to_change(given: Any) -> dict[str, Any]:
        known = {"at_s": seconds(math.inf), **checks}
        if not isinstance(given, dict) or not {"at_s"} < given.keys() <= known.keys():
            raise ValueError
        return {name: known[name].convert(value) for name, value in given.items()}

    return SettingCheck(f"a list of mappings such as {{at_s: 60, rpm: 300}}, of {', '.join(checks)}", convert)


def _to_status(given: Any) -> int:
    status: int = number(0, 599).convert(given)
    if 0 < status < 300:
        raise ValueError
    return status


def _to_text(given: Any) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    if not isinstance(given, str | int | float):
        raise ValueError
    return str(given)


def _to_header_value(given: Any) -> str:
    text = _to_text(given)
    if not (text.isascii() and (text.isprintable() or not text)):
        raise ValueError
    return text


def _to_fault(given: Any) -> str:
    if given not in ("", *FAULTS):
        raise ValueError
    return str(given)


def _to_key(given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError
    return given


def _to_names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) and name for name in given):
        raise ValueError
    return tuple(given)


def _to_apis(given: Any) -> tuple[str, ...]:
    names = _to_names(given)
    if not set(names) <= set(APIS):
        raise ValueError
    return names


def _to_boolean(given: Any) -> bool:
    if given in ("true", "false"):
        return bool(given == "true")
    if not isinstance(given, bool):
        raise ValueError
    return given


BOOLEAN: Final = SettingCheck("true or false", _to_boolean)
STATUS: Final = SettingCheck("0 or a status from 300 to 599", _to_status)
TEXT: Final = SettingCheck("a string", _to_text)
HEADER_VALUE: Final = SettingCheck("one line of printable ASCII", _to_header_value)
FAULT: Final = SettingCheck(f"one of {', '.join(FAULTS)}, or ''", _to_fault)
API_KEY: Final = SettingCheck("a string that isn't empty", _to_key)
NAMES: Final = SettingCheck("a list of names", _to_names)
APIS_SERVED: Final = SettingCheck("a list of 'responses' and 'chat'", _to_apis)
