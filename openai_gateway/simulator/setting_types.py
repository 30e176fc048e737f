"""What each of the simulator's settings may be, and its value from YAML, JSON, or a metadata string.

Their meaning is `settings`'.
"""

from __future__ import annotations

from collections.abc import Callable
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
_APIS: Final = ("responses", "chat")
_HOUR_MS: Final = 3_600_000
_MAX_EVENTS: Final = 100_000
_A_HEADER_VALUE: Final = "one line of printable ASCII"

WANTED: Final = {
    "api_key": "a string that isn't empty, or null",
    "models": "a list of names, or null",
    "rpm": "a whole number from 1, or null",
    "tpm": "a whole number from 1, or null",
    "apis": "a list of 'responses' and 'chat'",
    "max_stored": "a whole number from 1",
    "latency_ms": f"a whole number from 0 to {_HOUR_MS}",
    "event_gap_ms": f"a whole number from 0 to {_HOUR_MS}",
    "events": f"a whole number from 0 to {_MAX_EVENTS}",
    "status": "0 or a status from 300 to 599",
    "times": "a whole number from 0",
    "after": "a whole number from 0",
    "key": "a string",
    "retry_after": _A_HEADER_VALUE,
    "should_retry": _A_HEADER_VALUE,
    "error_code": "a string",
    "fault": f"one of {', '.join(FAULTS)}, or ''",
}


def to_value(name: str, given: Any) -> Any:
    """Return the value of the setting `name`. Raises ValueError."""
    if given is None and name in ("api_key", "models", "rpm", "tpm"):
        return None
    return _CONVERTERS[name](given)


def _to_number(least: int, most: int | None = None) -> Callable[[Any], int]:
    def convert(given: Any) -> int:
        is_number = isinstance(given, int) and not isinstance(given, bool)
        if not is_number and not (isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20):
            raise ValueError
        number = int(given)
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    return convert


def _to_status(given: Any) -> int:
    status = _to_number(0, 599)(given)
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
    if not set(names) <= set(_APIS):
        raise ValueError
    return names


_CONVERTERS: Final[dict[str, Callable[[Any], Any]]] = {
    "api_key": _to_key,
    "models": _to_names,
    "rpm": _to_number(1),
    "tpm": _to_number(1),
    "apis": _to_apis,
    "max_stored": _to_number(1),
    "latency_ms": _to_number(0, _HOUR_MS),
    "event_gap_ms": _to_number(0, _HOUR_MS),
    "events": _to_number(0, _MAX_EVENTS),
    "status": _to_status,
    "times": _to_number(0),
    "after": _to_number(0),
    "key": _to_text,
    "retry_after": _to_header_value,
    "should_retry": _to_header_value,
    "error_code": _to_text,
    "fault": _to_fault,
}
