"""Builds one server's ServerConfig from its resolved settings: names, checks, and what must hold between keys.

See also: keys (the declarations), names (what isn't a key of ours), load (which entries are servers).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from marshmallow import Schema, ValidationError

from openai_gateway.config import names
from openai_gateway.config.checks import INPUT
from openai_gateway.config.complaints import Problem
from openai_gateway.config.keys import KEYS, SHARED_KEYS, ServerConfig
from openai_gateway.config.merged_tree import UNRESOLVED, UNSET, UNSET_CURE, MergedTree
from openai_gateway.config.origins import DEFAULT, Origins
from openai_gateway.config.price_files import SHIPPED, BadPrices, find_usual_file, read_prices
from openai_gateway.config.prices import PriceTable
from openai_gateway.config.proxy_url import ENVIRONMENT, find_environment_proxy
from openai_gateway.config.redact import show_value

PARENTS: Final = ("responses_api_models", "openai_model")
_SCHEMA: Final = Schema.from_dict({name: key.check for name, key in KEYS.items()}, name="ServerSchema")()


class Context:
    """What the servers of one config are built with; complaints go to `problems`."""

    def __init__(
        self, merged: MergedTree, origins: Origins, cwd: Path, problems: list[Problem], secrets: frozenset[str]
    ) -> None:
        self.merged = merged
        self.origins = origins
        self.cwd = cwd
        self.problems = problems
        self.secrets = secrets


class ServerBuilder:
    """Builds one ServerConfig. Afterwards `ignored` are NeMo Gym's keys in it, `origins` where each key came from."""

    def __init__(self, name: str, context: Context) -> None:
        self._name = name
        self._context = context
        self.ignored: set[str] = set()
        self.origins: dict[str, str] = {}

    def build(self, settings: Mapping[str, Any]) -> ServerConfig | None:
        """Return the server; None after complaints, or if a value couldn't be resolved."""
        before = len(self._context.problems)
        given = self._rename_old(settings)
        values = self._check(self._take_known(given))
        self._check_required(given)
        self._drop_unobserved(values)
        self._check_recordings(values)
        has_keys = any(values.get(name) for name in ("gateway_api_keys", "gateway_api_keys_file", "clients_file"))
        if values.get("cors_origins") and not has_keys:
            self.complain("cors_origins", "needs gateway_api_keys: without, any page of theirs could spend the key")
        self._locate_files(values)
        self._check_certificate(values)
        self._resolve_proxy(values)
        values["prices"] = self._read_prices(values)
        for key in KEYS:
            self.origins.setdefault(self.dotted(key), DEFAULT)
        # What couldn't be resolved was complained of before.
        is_whole = len(self._context.problems) == before and UNRESOLVED not in given.values()
        return ServerConfig(name=self._name, **values) if is_whole else None

    def _check_certificate(self, values: Mapping[str, Any]) -> None:
        certificate, key = values.get("ssl_cert_file"), values.get("ssl_key_file")
        if certificate is None and key is not None:
            self.complain("ssl_key_file", "needs ssl_cert_file, the certificate that it is the key of")
        elif certificate is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
            except (OSError, ValueError):
                where = "it" if key is None else key
                self.complain("ssl_cert_file", f"{certificate} is no certificate, or {where} no key without password")

    def _resolve_proxy(self, values: dict[str, Any]) -> None:
        proxy, base_url = values.get("upstream_proxy"), values.get("openai_base_url")
        if proxy is not None and base_url is not None and proxy.reveal() == ENVIRONMENT:
            try:
                values["upstream_proxy"] = find_environment_proxy(base_url)
            except ValidationError as error:
                self.complain("upstream_proxy", error.args[0])

    def complain(self, key: str, message: str) -> None:
        """Complain of a key, or of the server itself."""
        place = self._context.merged.place_of(*self._names_of(key), self._name)
        self._context.problems.append(Problem(place, self.dotted(key), message))

    def dotted(self, key: str) -> str:
        """Return a key's whole name."""
        return ".".join([self._name, *PARENTS, key] if key else [self._name])

    def _rename_old(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        renamed: dict[str, Any] = {}
        is_old_style = any(old in settings for old in names.OLD_NAMES)
        for key, value in settings.items():
            new = names.OLD_NAMES.get(key)
            if new is not None and new in settings:
                self.complain(key, f"is the older name of {new}, which is given too; give one of them")
            renamed[new or key] = value
        if is_old_style:
            for key, default in names.OLD_DEFAULTS.items():
                renamed.setdefault(key, default)
        return renamed

    def _take_known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of our keys that are known, noting origins; complain of unknown keys and unset values."""
        known: dict[str, Any] = {}
        for key, value in given.items():
            if key not in KEYS:
                self._take_unknown(key)
                continue
            self._note_origin(key, value)
            if value == UNSET:
                self.complain(key, UNSET_CURE)
            elif value is not UNRESOLVED:
                known[key] = value
        return known

    def _note_origin(self, key: str, value: Any) -> None:
        dotted, origins = self.dotted(key), self._context.origins
        self.origins[dotted] = origins.of(*self._names_of(key))
        for inner in value if isinstance(value, dict) else ():
            self.origins[f"{dotted}.{inner}"] = origins.of(f"{dotted}.{inner}", *self._names_of(key))

    def _take_unknown(self, key: str) -> None:
        if key in names.GYM_KEYS:
            self.ignored.add(key)
            return
        meant = names.nearest(key)
        hint = names.CURES.get(key) or (f"did you mean {meant}?" if meant else "take it out")
        self.complain(key, f"unknown key; {hint}")

    def _check(self, known: Mapping[str, Any]) -> dict[str, Any]:
        try:
            values: dict[str, Any] = _SCHEMA.load(known)
        except ValidationError as error:
            for key, messages in sorted(error.messages_dict.items(), key=lambda item: list(known).index(item[0])):
                self.complain(key, messages[0].replace(INPUT, show_value(known[key], self._context.secrets)))
            values = dict(error.valid_data)  # type: ignore[arg-type]
        return values

    def _check_required(self, given: Mapping[str, Any]) -> None:
        for name, key in KEYS.items():
            if key.is_required and name not in given:
                self.complain(name, "is missing and must be set")
        has_key, has_file = (given.get(key) is not None for key in ("openai_api_key", "openai_api_key_file"))
        if has_key and has_file:
            self.complain("openai_api_key", "excludes openai_api_key_file; give one of them")
        elif not has_key and not has_file:
            self.complain("openai_api_key", "is missing and must be set, or openai_api_key_file instead")

    def _drop_unobserved(self, values: dict[str, Any]) -> None:
        """Forget the folder for captured calls unless calls are captured, as NeMo Gym does."""
        if not values.get("observability_enabled"):
            values.pop("model_call_capture_dir", None)
        elif values.get("model_call_capture_dir") is None:
            self.complain("model_call_capture_dir", "is missing; observability_enabled: true needs it")

    def _check_recordings(self, values: Mapping[str, Any]) -> None:
        mode, folder = values.get("recordings"), values.get("recordings_dir")
        if mode is not None and folder is None:
            self.complain("recordings_dir", "is missing; recordings needs it")
        elif folder is not None and mode is None:
            self.complain("recordings", "is missing: record, replay or reuse says what recordings_dir is for")

    def _locate_files(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if value is not None:
                try:
                    values[key] = KEYS[key].check.locate(value, self._context.cwd)
                except ValidationError as error:
                    self.complain(key, error.args[0])

    def _read_prices(self, values: dict[str, Any]) -> PriceTable:
        """Return the prices of the file named, else of the usual one."""
        named = values.get("price_file")
        path = self._context.cwd / named if named is not None else find_usual_file(self._context.cwd)
        if path != SHIPPED:
            values["price_file"] = str(path)
        try:
            return read_prices(path)
        except BadPrices as error:
            self.complain("price_file", f"the file {path} {error}")
            return PriceTable()

    def _names_of(self, key: str) -> list[str]:
        """Return the dotted names that a key may be given under."""
        old_names = (old for old, new in names.OLD_NAMES.items() if new == key)
        shared = [key] if key in SHARED_KEYS else []
        return [*(self.dotted(name) for name in (key, *old_names)), *shared]
