"""Has a config lead to the simulator, whatever endpoint and key it names or lacks.

See also: serve (which starts the simulator itself).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from openai_gateway.config.files import read_sources
from openai_gateway.config.load import find_servers
from openai_gateway.config.names import OLD_NAMES

_KEY: Final = "sk-simulated"
_MODEL: Final = "simulated-model"
_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_][\w-]*)\s*\}")


def make_overrides(environ: Mapping[str, str], base_url: str) -> list[str]:
    """Return overrides that lead each server to `base_url` and stand in for what only a real endpoint needs."""
    merged = read_sources(environ, (), Path.cwd(), [])
    servers = find_servers(merged.tree)
    made = [f"++{name}={_MODEL}" for name in sorted({*_find_references(servers)} - merged.tree.keys())]
    for server, settings in servers.items():
        for key, value in (("openai_base_url", base_url), ("openai_api_key", _KEY), ("openai_api_key_file", "null")):
            name = next((old for old, new in OLD_NAMES.items() if new == key and old in settings), key)
            if value != "null" or name in settings:
                made.append(f"++{server}.responses_api_models.openai_model.{name}={value}")
    return made


def _find_references(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _find_references(inner)
    elif isinstance(node, str):
        yield from _REFERENCE.findall(node)
