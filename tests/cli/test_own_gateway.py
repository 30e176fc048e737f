"""The gateway that a command starts for itself: nobody else gets in."""

from __future__ import annotations

from pathlib import Path

import requests

from openai_gateway.cli.own_gateway import OwnGateway, find_server_url
from tests.support.processes import Gunicorn, write_config


def test_only_who_started_it_gets_in(tmp_path: Path, simulator: Gunicorn) -> None:
    known = {"gateway_api_keys": ["a-key-that-is-known"]}
    own = OwnGateway([str(write_config(tmp_path, simulator.url, known))], [], None)
    with own.run() as (url, key):
        for given, status in ((key, 200), ("a-key-that-is-known", 401), ("", 401)):
            headers = {"authorization": f"Bearer {given}"} if given else {}
            answer = requests.post(f"{url}/responses", json={"input": "x"}, headers=headers, timeout=60)
            assert answer.status_code == status


def test_url_of_one_of_several_servers() -> None:
    assert find_server_url("http://a/v1/", None) == "http://a/v1"
    assert find_server_url("http://a/v1", "judge") == "http://a/judge/v1"
