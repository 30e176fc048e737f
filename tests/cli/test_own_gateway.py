"""The gateway that a command starts for itself: nobody else gets in, and it is patient unless the config says how."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
import yaml

from openai_gateway.cli.own_gateway import OwnGateway, to_server_url
from tests.support.processes import Gunicorn, write_config


def test_only_who_started_it_gets_in(tmp_path: Path, simulator: Gunicorn) -> None:
    known = {"gateway_api_keys": ["a-key-that-is-known"]}
    own = OwnGateway([str(write_config(tmp_path, simulator.url, known))], [], None)
    with own.run() as (url, key):
        for given, status in ((key, 200), ("a-key-that-is-known", 401), ("", 401)):
            headers = {"authorization": f"Bearer {given}"} if given else {}
            answer = requests.post(f"{url}/responses", json={"input": "x"}, headers=headers, timeout=10)
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("settings", "overrides", "set_for_this_run"),
    [
        ({}, [], ["max_retries=100", "retry_budget_s=3600", "retry_ratio=null"]),
        ({"max_retries": 5}, [], ["retry_budget_s=3600", "retry_ratio=null"]),
        ({"max_retries": 2, "retry_budget_s": None, "retry_ratio": 0.2}, [], []),
        (
            {},
            ["++policy_model.responses_api_models.openai_model.retry_budget_s=1"],
            ["max_retries=100", "retry_ratio=null"],
        ),
    ],
    ids=["nothing", "one", "all, some to their defaults", "one on the command line"],
)
def test_patience_is_set_where_the_config_says_nothing(
    tmp_path: Path, settings: dict[str, object], overrides: list[str], set_for_this_run: list[str]
) -> None:
    entry = {"openai_base_url": "http://127.0.0.1:9/v1", "openai_api_key": "sk-x1", "openai_model": "m", **settings}
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"policy_model": {"responses_api_models": {"openai_model": entry}}}))
    own = OwnGateway([str(path)], overrides, None)
    told = [f"set for this run, as the config doesn't: {', '.join(set_for_this_run)}"]
    assert own.notes == (told if set_for_this_run else [])


def test_url_of_one_of_several_servers() -> None:
    assert to_server_url("http://a/v1/", None) == "http://a/v1"
    assert to_server_url("http://a/v1", "judge") == "http://a/judge/v1"
