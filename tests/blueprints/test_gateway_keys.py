"""Whom the gateway's keys let in, and by which name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from openai_gateway.blueprints.intake import GatewayKeys
from openai_gateway.config import Secret
from openai_gateway.config.clients import Clients, open_clients
from openai_gateway.errors import Forbidden, Unauthorized


def _with(key: str) -> dict[str, str]:
    return {"HTTP_AUTHORIZATION": f"Bearer {key}"}


def test_keys_of_the_config_and_of_the_file_add_up(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("key-of-the-file\n")
    keys = GatewayKeys([Secret("key-of-the-config")], str(path))
    for key in ("key-of-the-config", "key-of-the-file"):
        keys.authenticate(_with(key))
    with pytest.raises(Unauthorized):
        keys.authenticate(_with("another"))


def test_client_is_told_by_its_key_where_it_may_go_and_while_it_may(tmp_path: Path) -> None:
    now = time.gmtime()
    clients = {
        "team": {"key": "key-of-the-team"},
        "judge": {"key": "key-of-the-judge", "servers": ["judge_model"]},
        "old": {"key": "key-of-the-old", "expires": f"{now.tm_year - 1}-12-31"},
        "new": {"key": "key-of-the-new", "expires": f"{now.tm_year + 1}-12-31"},
    }
    path = tmp_path / "clients.yaml"
    path.write_text(yaml.safe_dump(clients))
    file = open_clients(str(path), Clients(), frozenset({"policy_model", "judge_model"}), {})
    keys = GatewayKeys([Secret("key-without-a-name")], None, file, "policy_model")
    assert [getattr(keys.authenticate(_with(f"key-of-the-{name}")), "name", None) for name in ("team", "new")] == [
        "team", "new",
    ]  # fmt: skip
    assert keys.authenticate(_with("key-without-a-name")) is None
    with pytest.raises(Forbidden, match="judge may not use the server policy_model"):
        keys.authenticate(_with("key-of-the-judge"))
    with pytest.raises(Unauthorized, match="old has expired"):
        keys.authenticate(_with("key-of-the-old"))
    for wrong in ("key-of-the-tea", "", "key-of-the-team2"):
        with pytest.raises(Unauthorized):
            keys.authenticate(_with(wrong))


def test_clients_keys_do_not_open_what_operators_keys_open(tmp_path: Path) -> None:
    path = tmp_path / "clients.yaml"
    path.write_text("team: {key: key-of-the-team}\n")
    file = open_clients(str(path), Clients(), frozenset(), {})
    keys = GatewayKeys([], None, file, "policy_model")
    assert (keys.are_required, keys.are_for_operators) == (True, False)
    assert keys.count_matches(b"key-of-the-team") == 0
