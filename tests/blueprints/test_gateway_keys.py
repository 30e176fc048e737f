"""Whom the gateway's keys let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_gateway.blueprints.intake import GatewayKeys
from openai_gateway.config import Secret
from openai_gateway.errors import Unauthorized


def test_keys_of_the_config_and_of_the_file_add_up(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("key-of-the-file\n")
    keys = GatewayKeys([Secret("key-of-the-config")], str(path))
    for key in ("key-of-the-config", "key-of-the-file"):
        keys.authenticate({"HTTP_AUTHORIZATION": f"Bearer {key}"})
    with pytest.raises(Unauthorized):
        keys.authenticate({"HTTP_AUTHORIZATION": "Bearer another"})
