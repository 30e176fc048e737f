"""`limits_url`: what it may be, what is said when it can't be, and that its password shows nowhere."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.config.folder import Folder, to_server


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host:6379/2",
        "rediss://user:secret-word@host:6380/0",
        "redis://:secret-word@[::1]:6379",
        "redis://user:p%40ss@host/",
    ],
)
def test_url_of_a_redis_is_taken_and_hidden(url: str, folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(limits_url=url)})
    found = folder.server().limits_url
    assert found is not None
    assert found.reveal() == url
    assert "secret-word" not in repr(folder.server())


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("host:6379", id="no scheme"),
        pytest.param("http://user:secret-word@host", id="another scheme"),
        pytest.param("redis://user:secret-word@/0", id="no host"),
        pytest.param("redis://user:secret-word@host:port", id="a port that is none"),
        pytest.param("redis://user:secret-word@host/cache", id="a database that is no number"),
        pytest.param("redis://user:secret-word@host/0?socket_timeout=60", id="options"),
        pytest.param("redis://user:secret word@host", id="a blank"),
        pytest.param(6379, id="a number"),
    ],
)
def test_what_is_no_such_url_is_complained_of_and_not_shown(url: Any, folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(limits_url=url)})
    problem = folder.complaint()
    assert "limits_url" in problem
    assert "redis://user:password@host:6379/0" in problem
    assert "secret" not in problem


def test_without_the_package_the_command_that_installs_it_is_told(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder.write(folder.default, {"policy_model": to_server(limits_url="redis://host")})
    assert "pip install 'openai_gateway[redis]'" in folder.complaint()


def test_it_may_stand_at_the_top_level_for_all_servers(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(), "limits_url": "redis://host"})
    found = folder.server().limits_url
    assert found is not None
    assert found.reveal() == "redis://host"
