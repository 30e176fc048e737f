"""A config that replays what a gateway has recorded, kept beside the answers: the folder is all that a replay needs.

It holds what calls are made of (base URL, model, defaults) and no secret. See also: recordings.opening (the folder).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from openai_gateway.config.build import PARENTS
from openai_gateway.config.keys import ServerConfig
from openai_gateway.config.parse import NotYaml, parse_yaml
from openai_gateway.config.redact import mask_url

FILE_NAME: Final = "replay.yaml"
_SAME: Final = ("openai_model", "extra_body", "extra_body_responses", "extra_body_chat", "drop_input_reasoning_items")


def write_replay_config(folder: Path, servers: Iterable[ServerConfig]) -> None:
    """Put the config for some servers into a folder, beside what is there of others. Raises OSError."""
    path = folder / FILE_NAME
    try:
        there = parse_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotYaml):
        there = {}
    tree = {**(there if isinstance(there, dict) else {}), **{server.name: _to_entry(server) for server in servers}}
    if tree != there:
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        new.chmod(0o600)
        new.rename(path)


def _to_entry(server: ServerConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "openai_base_url": mask_url(server.openai_base_url),
        "openai_api_key": "none",
        **{name: getattr(server, name) for name in _SAME},
    }
    inner, outer = PARENTS[::-1]
    return {outer: {inner: settings}}
