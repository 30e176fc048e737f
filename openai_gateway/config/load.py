"""Makes the GatewayConfig from files and environment, or one ConfigError with every complaint.

Reading is `files`', the keys are `schema`'s; here is which entries are servers, and what must hold between keys.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from openai_gateway.config import schema
from openai_gateway.config.files import Merged, read
from openai_gateway.config.interpolate import UNRESOLVED, UNSET, Interpolation
from openai_gateway.config.key_file import to_keys
from openai_gateway.config.origins import DEFAULT, Origins
from openai_gateway.config.prices import DEFAULT_PRICE_FILE, BadPrices, PriceTable, read_prices
from openai_gateway.config.redact import find_secrets, show, without_secrets
from openai_gateway.config.values import ConfigError, GatewayConfig, Problem, ServerConfig

SERVER_VARIABLE: Final = "OPENAI_GATEWAY_SERVER"
PREFERRED_SERVER: Final = "policy_model"
_OURS: Final = ("responses_api_models", "openai_model")
_SERVER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_SNIPPET: Final = """no server is defined; one looks like this:
    policy_model:
      responses_api_models:
        openai_model:
          openai_base_url: https://api.openai.com/v1
          openai_api_key: ${policy_api_key}
          openai_model: gpt-5-mini"""
_RESERVED_NAMES: Final = frozenset({"v1", "ng-rollout", "metrics", "status", "healthz", "readyz", ".", ".."})


def load_config(
    environ: Mapping[str, str] = os.environ, overrides: Sequence[str] = (), cwd: Path | None = None
) -> GatewayConfig:
    """Return the config that files, env.yaml and overrides (`+a.b=1`, `++a.b=1`) make. Raises ConfigError."""
    folder = cwd or Path.cwd()
    problems: list[Problem] = []
    merged = read(environ, overrides, folder, problems)
    names, foreign = _find_servers(merged.tree)
    servers: dict[str, ServerConfig] = {}
    origins: dict[str, str] = {}
    ignored: set[str] = set()
    places = Origins(merged, environ)
    interpolation = Interpolation(merged, environ, problems)
    shared = interpolation.resolve_shared(schema.SHARED_KEYS) if names else {}
    settings = {name: {**shared, **interpolation.resolve([name, *_OURS])} for name in names}
    secrets = find_secrets(merged.tree, settings)
    for name in names:
        builder = _Builder(name, merged, places, folder, problems, secrets)
        if (server := builder.build(settings[name])) is not None:
            servers[name] = server
        ignored |= builder.ignored
        origins.update(builder.origins)
    problems += _find_misplaced(merged, names)
    default = _choose_default(names, environ.get(SERVER_VARIABLE) or None, problems)
    if problems:
        raise ConfigError([without_secrets(problem, secrets) for problem in problems])
    return GatewayConfig(servers, default, _to_notes(foreign, ignored), origins)


def find_servers(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each of our servers in a merged tree, as they stand there."""
    ours, _ = _find_servers(tree)
    return {name: tree[name][_OURS[0]][_OURS[1]] for name in ours}


def _find_servers(tree: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of our servers, and of entries that are somebody else's."""
    entries = {name: entry.get(_OURS[0]) for name, entry in tree.items() if isinstance(entry, dict)}
    ours = [
        name for name, models in entries.items() if isinstance(models, dict) and isinstance(models.get(_OURS[1]), dict)
    ]
    return ours, [name for name in entries if name not in ours]


def _find_misplaced(merged: Merged, names: Sequence[str]) -> Iterator[Problem]:
    """Complain of servers' keys at the top level, where they do nothing unless a server's entry refers to them.

    So do misspelt ones of those that may stand there; anything else there may be somebody else's.
    """
    text = str(merged.tree)
    for key, value in merged.tree.items():
        if not names or f"${{{key}" in text:
            continue
        meant = schema.nearest_shared(key)
        if meant is not None and not isinstance(value, dict):
            yield Problem(merged.place_of(key), key, f"is unknown and does nothing; did you mean {meant!r}?")
        elif key in schema.KEYS and key not in schema.SHARED_KEYS:
            place = ".".join([names[0], *_OURS, key])
            yield Problem(merged.place_of(key), key, f"does nothing at the top level; it belongs to a server: {place}")


def _choose_default(names: Sequence[str], wanted: str | None, problems: list[Problem]) -> str:
    listed = ", ".join(names)
    if wanted is not None:
        if wanted not in names:
            fault = f"{wanted!r} names no server; there are: {listed or 'none'}"
            problems.append(Problem("environment, or --server", SERVER_VARIABLE, fault))
        return wanted
    if not names:
        if not problems:
            problems.append(Problem("", "", _SNIPPET))
        return ""
    if len(names) == 1:
        return names[0]
    if PREFERRED_SERVER not in names:
        problems.append(
            Problem("environment", SERVER_VARIABLE, f"must say which server is at plain /v1; there are: {listed}")
        )
    return PREFERRED_SERVER


def _to_notes(foreign: Sequence[str], ignored: set[str]) -> tuple[str, ...]:
    notes = []
    if foreign:
        notes.append(f"skipped entries that are no openai_model server: {', '.join(foreign)}")
    if ignored:
        notes.append(f"ignored NeMo Gym's own server keys: {', '.join(sorted(ignored))}")
    return tuple(notes)


def _may_write(folder: str) -> bool:
    """Tell whether files can be made in a folder, which may have to be made itself."""
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


class _Builder:
    """Builds one ServerConfig; complaints go to `problems`."""

    def __init__(
        self,
        name: str,
        merged: Merged,
        places: Origins,
        cwd: Path,
        problems: list[Problem],
        secrets: frozenset[str],
    ) -> None:
        self._name = name
        self._merged = merged
        self._places = places
        self._cwd = cwd
        self._problems = problems
        self._secrets = secrets
        self.ignored: set[str] = set()
        self.origins: dict[str, str] = {}

    def build(self, settings: Mapping[str, Any]) -> ServerConfig | None:
        before = len(self._problems)
        if not _SERVER_NAME.fullmatch(self._name) or self._name in _RESERVED_NAMES:
            self._complain("", "a server name is a part of a URL: letters, digits, '.', '_', '-', and no path of ours")
        values: dict[str, Any] = {}
        given = self._rename_old(settings)
        for key, value in given.items():
            self._take(key, value, values)
        self._check_required(given)
        self._check_files(values)
        values["prices"] = self._read_prices(values)
        for key in schema.KEYS:
            self.origins.setdefault(self._dotted(key), DEFAULT)
        # What couldn't be resolved was complained of before.
        is_whole = len(self._problems) == before and UNRESOLVED not in given.values()
        return ServerConfig(name=self._name, **values) if is_whole else None

    def _rename_old(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        renamed: dict[str, Any] = {}
        is_old_style = any(old in settings for old in schema.OLD_NAMES)
        for key, value in settings.items():
            new = schema.OLD_NAMES.get(key)
            if new is not None and new in settings:
                self._complain(key, f"is the older name of {new}, which is given too; give one of them")
            renamed[new or key] = value
        if is_old_style:
            for key, default in schema.OLD_DEFAULTS.items():
                renamed.setdefault(key, default)
        return renamed

    def _take(self, key: str, value: Any, values: dict[str, Any]) -> None:
        definition = schema.KEYS.get(key)
        if definition is None:
            self._take_unknown(key)
            return
        dotted = self._dotted(key)
        self.origins[dotted] = self._places.of(*self._names(key))
        for inner in value if isinstance(value, dict) else ():
            self.origins[f"{dotted}.{inner}"] = self._places.of(f"{dotted}.{inner}", *self._names(key))
        if value is UNRESOLVED:
            return
        if value == UNSET:
            self._complain(key, "is ??? and must be set, in env.yaml, in a config file or on the command line")
            return
        if definition.may_be_null and (value is None or value in ("null", "None")):
            values[key] = None
            return
        try:
            values[key] = definition.convert(value)
        except schema.Unfit as unfit:
            found = f", not {show(unfit.found[0], self._secrets)}" if unfit.found else ""
            self._complain(key, f"{unfit}{found}")

    def _take_unknown(self, key: str) -> None:
        if key in schema.GYM_KEYS:
            self.ignored.add(key)
            return
        meant = schema.nearest(key)
        hint = schema.CURES.get(key) or (f"did you mean {meant}?" if meant else "take it out")
        self._complain(key, f"unknown key; {hint}")

    def _check_required(self, given: Mapping[str, Any]) -> None:
        for key in schema.REQUIRED:
            if key not in given:
                self._complain(key, "is missing and must be set")
        has_key, has_file = (given.get(key) is not None for key in ("openai_api_key", "openai_api_key_file"))
        if has_key and has_file:
            self._complain("openai_api_key", "excludes openai_api_key_file; give one of them")
        elif not has_key and not has_file:
            self._complain("openai_api_key", "is missing and must be set, or openai_api_key_file instead")

    def _check_files(self, values: dict[str, Any]) -> None:
        for key in ("openai_api_key_file", "gateway_api_keys_file", "ssl_ca_file"):
            if values.get(key) is None:
                continue
            path = values[key] = str(self._cwd / values[key])
            try:
                if key == "ssl_ca_file":
                    ssl.create_default_context(cafile=path)
                elif not to_keys(Path(path).read_text(encoding="utf-8")):
                    self._complain(key, f"the file {path} holds no usable key")
            except (OSError, UnicodeDecodeError) as error:
                self._complain(key, f"the file {path} can't be used ({getattr(error, 'strerror', '') or 'not text'})")

        self._check_written(values)

    def _check_written(self, values: dict[str, Any]) -> None:
        """Check what the gateway writes: where the usage log and captured calls go."""
        if not values.pop("observability_enabled", False):
            values.pop("model_call_capture_dir", None)
        elif values.get("model_call_capture_dir") is None:
            self._complain("model_call_capture_dir", "is missing; observability_enabled: true needs it")
        else:
            values["observability_enabled"] = True
        for key in ("usage_log", "model_call_capture_dir"):
            if values.get(key) is not None:
                path = values[key] = str(self._cwd / values[key])
                folder = os.path.dirname(path) if key == "usage_log" else path
                if os.path.isdir(path) if key == "usage_log" else os.path.isfile(path):
                    self._complain(key, f"{path} is {'a folder' if key == 'usage_log' else 'a file'}")
                elif key == "usage_log" and not os.path.isdir(folder):
                    self._complain(key, f"there is no folder {folder}")
                elif not _may_write(folder):
                    self._complain(key, f"{folder} can't be written to")

    def _read_prices(self, values: dict[str, Any]) -> PriceTable:
        """Return the prices of the file named, else of the usual one if it is there."""
        path = self._cwd / (values.get("price_file") or DEFAULT_PRICE_FILE)
        if values.get("price_file") is None and not path.is_file():
            return PriceTable()
        values["price_file"] = str(path)
        try:
            return read_prices(path)
        except BadPrices as error:
            self._complain("price_file", f"the file {path} {error}")
            return PriceTable()

    def _dotted(self, key: str) -> str:
        return ".".join([self._name, *_OURS, key] if key else [self._name])

    def _names(self, key: str) -> list[str]:
        """Return the dotted names that a key may be given under."""
        old_names = (old for old, new in schema.OLD_NAMES.items() if new == key)
        shared = [key] if key in schema.SHARED_KEYS else []
        return [*(self._dotted(name) for name in (key, *old_names)), *shared]

    def _complain(self, key: str, message: str) -> None:
        self._problems.append(Problem(self._merged.place_of(*self._names(key), self._name), self._dotted(key), message))
