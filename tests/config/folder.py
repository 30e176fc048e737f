"""A working folder with config files in it, and the config that it makes.

The planted key stands wherever a key may stand: no message may hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_gateway.config import ConfigError, GatewayConfig, ServerConfig, load_config

PLANTED_KEY = "planted-Q7x9-key"
DOTTED = "policy_model.responses_api_models.openai_model"

GYM_SNIPPET = """
policy_model:
  responses_api_models:
    openai_model:
      entrypoint: app.py
      openai_base_url: ${policy_base_url}
      openai_api_key: ${policy_api_key}
      openai_model: ${policy_model_name}
      openai_default_headers: {}
      extra_body: {}
      max_concurrent_requests: null
      drop_input_reasoning_items: ${oc.env:POLICY_DROP_REASONING_ITEMS,false}
"""


def to_server(**settings: Any) -> dict[str, Any]:
    """Return an `openai_model` server's entry: the required keys, changed and added to; a setting None is left out."""
    all_settings = {
        "openai_base_url": "https://upstream.example/v1",
        "openai_api_key": PLANTED_KEY,
        "openai_model": "a-model",
        **settings,
    }
    given = {key: value for key, value in all_settings.items() if value is not None}
    return {"responses_api_models": {"openai_model": given}}


class Folder:
    """A working folder; `default` is the file that is read when nothing says which."""

    default = "conf/openai_model.yaml"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ: dict[str, str] = {}

    def write(self, name: str, content: Mapping[str, Any] | str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            content if isinstance(content, str) else yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8"
        )

    def load(self, *overrides: str, **environ: str) -> GatewayConfig:
        return load_config({**self.environ, **environ}, overrides, self.path)

    def server(self, *overrides: str, **environ: str) -> ServerConfig:
        config = self.load(*overrides, **environ)
        return config.servers[config.default_server]

    def complaint(self, overrides: Sequence[str] = (), **environ: str) -> str:
        """Return the one message; whatever is wrong, the planted key isn't in it."""
        with pytest.raises(ConfigError) as raised:
            self.load(*overrides, **environ)
        shown = [str(raised.value), repr(raised.value), repr(raised.value.problems)]
        assert not any(PLANTED_KEY in text for text in shown)
        return str(raised.value)
