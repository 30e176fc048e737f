"""Makes the GatewayConfig from files and environment, or one ConfigError with every complaint.

Here is which entries are servers, and which one is at plain `/v1`.
See also: files (reading and merging), build (one server), keys (what may be set).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from openai_gateway.config import names
from openai_gateway.config.build import PARENTS, Context, ServerBuilder
from openai_gateway.config.client_faults import find_open_doors, read_clients
from openai_gateway.config.complaints import ConfigError, Problem
from openai_gateway.config.files import read_sources
from openai_gateway.config.keys import KEYS, SHARED_KEYS, GatewayConfig, ServerConfig
from openai_gateway.config.merged_tree import MergedTree
from openai_gateway.config.origins import Origins
from openai_gateway.config.overrides import COMMAND_LINE
from openai_gateway.config.plain_values import PlainValues
from openai_gateway.config.redact import find_secrets, without_secrets

if TYPE_CHECKING:
    from openai_gateway.config.interpolate import Interpolation

SERVER_VARIABLE: Final = "OPENAI_GATEWAY_SERVER"
PREFERRED_SERVER: Final = "policy_model"
_SERVER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_WANTED_NAME: Final = "a server name is a part of a URL: letters, digits, '.', '_', '-', and no path of ours"
_SNIPPET: Final = """no server is defined; one looks like this:
    policy_model:
      responses_api_models:
        openai_model:
          openai_base_url: https://api.openai.com/v1
          openai_api_key: ${policy_api_key}
          openai_model: gpt-5-mini"""
# Gym's files all have it, ours too: that it means nothing here needs no line at each start.
_IN_EVERY_FILE: Final = frozenset({"entrypoint"})
_RESERVED_NAMES: Final = frozenset({"v1", "ng-rollout", "metrics", "status", "healthz", "readyz", ".", ".."})


def load_config(
    environ: Mapping[str, str] = os.environ, overrides: Sequence[str] = (), cwd: Path | None = None
) -> GatewayConfig:
    """Return the config that files, env.yaml and overrides (`+a.b=1`, `++a.b=1`) make. Raises ConfigError."""
    folder = cwd or Path.cwd()
    problems: list[Problem] = []
    merged = read_sources(environ, overrides, folder, problems)
    found, foreign = _find_servers(merged.tree)
    values = _open_values(merged, environ, problems)
    shared = values.resolve_shared(SHARED_KEYS) if found else {}
    settings = {name: {**shared, **values.resolve([name, *PARENTS])} for name in found}
    secrets = find_secrets(merged.tree, settings)
    context = Context(merged, Origins(merged, environ), folder, problems, secrets)
    servers: dict[str, ServerConfig] = {}
    origins: dict[str, str] = {}
    ignored: set[str] = set()
    for name in found:
        builder = ServerBuilder(name, context)
        if not _SERVER_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            builder.complain("", _WANTED_NAME)
        if (server := builder.build(settings[name])) is not None:
            servers[name] = server
        ignored |= builder.ignored - _IN_EVERY_FILE
        origins.update(builder.origins)
    problems += _find_misplaced(merged, found)
    clients = read_clients(servers, found, merged, problems)
    default = _choose_default(found, environ.get(SERVER_VARIABLE) or None, problems)
    if problems:
        raise ConfigError([without_secrets(problem, secrets) for problem in problems])
    notes = (*_list_notes(foreign, ignored), *find_open_doors(servers))
    return GatewayConfig(servers, default, notes, origins, clients, tuple(_find_unused(merged)))


def _open_values(
    merged: MergedTree, environ: Mapping[str, str], problems: list[Problem]
) -> PlainValues | Interpolation:
    if "${" not in str(merged.tree):
        return PlainValues(merged, problems)
    from openai_gateway.config.interpolate import Interpolation

    return Interpolation(merged, environ, problems)


def find_servers(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each of our servers in a merged tree, as they stand there."""
    ours, _ = _find_servers(tree)
    return {name: tree[name][PARENTS[0]][PARENTS[1]] for name in ours}


def _find_servers(tree: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of our servers, and of entries that are somebody else's."""
    entries = {name: entry.get(PARENTS[0]) for name, entry in tree.items() if isinstance(entry, dict)}
    ours = [
        name
        for name, models in entries.items()
        if isinstance(models, dict) and isinstance(models.get(PARENTS[1]), dict)
    ]
    return ours, [name for name in entries if name not in ours]


def _find_misplaced(merged: MergedTree, servers: Sequence[str]) -> Iterator[Problem]:
    """Complain of servers' keys at the top level or too high in an entry, where they do nothing unless referred to.

    So do misspelt ones of those that may stand there; anything else there may be somebody else's.
    """
    text = str(merged.tree)
    for key, value in merged.tree.items():
        if not servers or f"${{{key}" in text:
            continue
        meant = names.nearest_shared(key)
        if meant is not None and not isinstance(value, dict):
            yield Problem(merged.place_of(key), key, f"is unknown and does nothing; did you mean {meant!r}?")
        elif key in KEYS and key not in SHARED_KEYS:
            place = ".".join([servers[0], *PARENTS, key])
            yield Problem(merged.place_of(key), key, f"does nothing at the top level; it belongs to a server: {place}")
    for name in servers:
        entry = merged.tree[name]
        for place, found in ((name, entry), (f"{name}.{PARENTS[0]}", entry[PARENTS[0]])):
            for key in (key for key in KEYS if key in found and key not in PARENTS and f"${{{place}.{key}" not in text):
                meant = ".".join([name, *PARENTS, key])
                dotted = f"{place}.{key}"
                yield Problem(merged.place_of(dotted), dotted, f"does nothing here; it belongs to a server: {meant}")


def _find_unused(merged: MergedTree) -> Iterator[str]:
    """Yield the keys at the top level that the command line sets and nothing refers to."""
    text = str(merged.tree)
    for key, value in merged.tree.items():
        is_setting = isinstance(value, dict) or key in SHARED_KEYS or f"${{{key}}}" in text
        if not is_setting and merged.origins.get(key) == COMMAND_LINE:
            yield key


def _choose_default(servers: Sequence[str], wanted: str | None, problems: list[Problem]) -> str:
    listed = ", ".join(servers)
    if wanted is not None:
        if wanted not in servers:
            fault = f"{wanted!r} names no server; there are: {listed or 'none'}"
            problems.append(Problem("environment, or --server", SERVER_VARIABLE, fault))
        return wanted
    if not servers:
        if not problems:
            problems.append(Problem("", "", _SNIPPET))
        return ""
    if len(servers) == 1:
        return servers[0]
    if PREFERRED_SERVER not in servers:
        problems.append(
            Problem("environment", SERVER_VARIABLE, f"must say which server is at plain /v1; there are: {listed}")
        )
    return PREFERRED_SERVER


def _list_notes(foreign: Sequence[str], ignored: set[str]) -> tuple[str, ...]:
    notes = []
    if foreign:
        notes.append(f"skipped entries that are no openai_model server: {', '.join(foreign)}")
    if ignored:
        notes.append(f"ignored NeMo Gym's own server keys: {', '.join(sorted(ignored))}")
    return tuple(notes)
