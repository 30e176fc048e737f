"""How the simulator behaves: settings for all calls, and the `metadata` of one call, which wins.

Metadata keys are those of Script with `sim_` in front, such as `{"metadata": {"sim_status": "429"}}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

FAULTS: Final = (
    "drop_before_headers",
    "drop_in_body",
    "drop_in_stream",
    "silence_before_headers",
    "silence_in_body",
    "silence_in_stream",
    "html_502",
)


class SettingsError(Exception):
    """A setting or metadata value that the simulator doesn't know; the message says which and what is wanted."""


@dataclass(frozen=True)
class Script:
    """What happens to a call.

    `status` and `fault` happen `times` times for each `key` (0: always), then the call succeeds; without `key`, calls
    with the same body count together. `after` is the number of text deltas before a fault in a stream.
    """

    latency_ms: int = 0
    event_gap_ms: int = 0
    events: int = 0
    status: int = 0
    times: int = 0
    key: str = ""
    retry_after: str = ""
    should_retry: str = ""
    error_code: str = ""
    fault: str = ""
    after: int = 2


@dataclass(frozen=True)
class Settings:
    """Settings of one simulator.

    `api_key` None takes any key, `models` None any model; `rpm` and `tpm` are enforced per minute, None not at all.
    """

    api_key: str | None = None
    models: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    apis: tuple[str, ...] = ("responses", "chat")
    max_stored: int = 10_000
    script: Script = field(default_factory=Script)


def load_settings(path: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of a YAML file with `overrides` on top. Raises SettingsError, OSError."""
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise SettingsError(f"{path} is not valid YAML") from error
    if not isinstance(given, dict):
        raise SettingsError(f"{path} holds no mapping of settings")
    given = {**given, **overrides}
    names = {item.name for item in dataclasses.fields(Settings)} - {"script"}
    script = {name: value for name, value in given.items() if name not in names}
    general: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name in names
    }
    return Settings(script=to_script(Script(), script), **general)


def to_script(base: Script, values: Mapping[str, Any]) -> Script:
    """Return `base` with `values` on top, each of the type that its field has. Raises SettingsError."""
    types: dict[str, Any] = {item.name: type(item.default) for item in dataclasses.fields(Script)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise SettingsError(f"unknown setting '{name}'; known are {', '.join(types)} and the general ones")
        try:
            changes[name] = types[name](value)
        except (TypeError, ValueError):
            raise SettingsError(f"'{name}' must be of type {types[name].__name__}") from None
    if changes.get("fault", "") not in ("", *FAULTS):
        raise SettingsError(f"unknown fault '{changes['fault']}'; known are {', '.join(FAULTS)}")
    return dataclasses.replace(base, **changes)


def script_of(settings: Settings, body: Mapping[str, Any]) -> Script:
    """Return what happens to a call with this body. Raises SettingsError."""
    metadata = body.get("metadata")
    own = {}
    if isinstance(metadata, dict):
        own = {name[4:]: value for name, value in metadata.items() if name.startswith("sim_")}
    return to_script(settings.script, own) if own else settings.script
