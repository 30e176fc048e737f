"""Whatever stands in a config file, loading ends in a config or in a ConfigError, and no key shows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.config import ConfigError, load_config
from openai_gateway.config.keys import KEYS

KEY = "sk-planted-in-the-config"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just("${nope}")
    | st.just("???"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SETTINGS = st.dictionaries(st.sampled_from(sorted(KEYS)) | st.text(max_size=12), VALUES, max_size=5)


def _load(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fuzz.yaml").write_bytes(text)
        try:
            shown = repr(load_config({"OPENAI_GATEWAY_CONFIG_PATHS": "fuzz.yaml"}, cwd=Path(folder)))
        except ConfigError as error:
            shown = str(error)
    assert KEY not in shown
    assert "problem" in shown or "ServerConfig" in shown


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_config_or_a_config_error(text: bytes) -> None:
    _load(text)


@given(st.text("policy_model:${}?[]-&*!| \n'\"#%@\t,ab", max_size=120))
def test_any_yaml_like_text_ends_in_a_config_or_a_config_error(text: str) -> None:
    _load(text.encode())


@given(SETTINGS, st.dictionaries(st.text(max_size=8), VALUES, max_size=2))
def test_any_settings_end_in_a_config_or_a_config_error(settings: dict[str, Any], others: dict[str, Any]) -> None:
    base = {"openai_base_url": "http://x/v1", "openai_api_key": KEY, "openai_model": "m"}
    server = {"responses_api_models": {"openai_model": {**base, **settings}}}
    _load(yaml.safe_dump({**others, "policy_model": server}).encode(errors="replace"))
