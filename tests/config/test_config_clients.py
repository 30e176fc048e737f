"""The clients file: what it may say, what a wrong one is told, and what must hold between it and the servers."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_gateway.config import watched_file
from openai_gateway.config.clients import Clients, open_clients, parse_clients
from openai_gateway.config.watched_file import BadContent
from tests.config.folder import PLANTED_KEY, Folder, to_server

SERVERS = frozenset({"policy_model", "judge_model"})


def _parse(**clients: Any) -> Clients:
    return parse_clients(yaml.safe_dump(clients), SERVERS)


def test_client_is_found_by_its_key_or_the_keys_hash() -> None:
    digest = hashlib.sha256(b"gw-two").hexdigest().upper()
    clients = _parse(one={"key": "gw-one"}, two={"key_sha256": digest})
    assert [getattr(clients.find(key), "name", None) for key in (b"gw-one", b"gw-two", b"gw-on", b"")] == [
        "one", "two", None, None,
    ]  # fmt: skip
    assert "gw-one" not in repr(clients)


def test_settings_of_a_client_and_their_defaults() -> None:
    plain = _parse(a={"key": "k"}).by_name["a"]
    assert (plain.budget_usd, plain.per, plain.share, plain.max_concurrent_requests) == (None, "total", 1.0, None)
    assert (plain.expires, plain.may_use("policy_model")) == (None, True)
    full = {"key": "k", "budget_usd": "20", "per": "Day", "share": 3, "servers": "judge_model", "expires": "2026-12-31"}
    client = _parse(a=full).by_name["a"]
    assert (client.budget_usd, client.per, client.share) == (20.0, "day", 3.0)
    assert (client.may_use("judge_model"), client.may_use("policy_model")) == (True, False)
    # To the end of that day, UTC.
    assert client.expires == 1798761600.0
    assert _parse(a={**full, "expires": "2026-12-31T18:00+02:00"}).by_name["a"].expires == 1798732800.0


@pytest.mark.parametrize(
    ("client", "said"),
    [
        pytest.param(None, "a mapping such as", id="nothing"),
        pytest.param({}, "one of key and key_sha256", id="no key"),
        pytest.param({"key": PLANTED_KEY, "key_sha256": "0" * 64}, "one of key and key_sha256", id="two keys"),
        pytest.param({"key": f"{PLANTED_KEY} x"}, "key: a key is wanted", id="a key with a space"),
        pytest.param({"key_sha256": PLANTED_KEY}, "64 hexadecimal digits", id="a key for its hash"),
        pytest.param({"key": "k", "budgt_usd": 1}, "did you mean budget_usd?", id="a misspelt setting"),
        pytest.param({"key": "k", "budget_usd": -1}, "budget_usd: a number from 0", id="a negative budget"),
        pytest.param({"key": "k", "per": "day"}, "per: says what budget_usd is for", id="a period of no budget"),
        pytest.param({"key": "k", "budget_usd": 1, "per": "week"}, "one of day, month, total", id="another period"),
        pytest.param({"key": "k", "share": 0}, "share: a number", id="no share"),
        pytest.param({"key": "k", "expires": "soon"}, "expires: a date", id="no date"),
        pytest.param({"key": "k", "servers": ["x"]}, "'x' names no server", id="an unknown server"),
    ],
)
def test_client_is_refused(client: Any, said: str) -> None:
    with pytest.raises(BadContent, match="can't be used: a: ") as refused:
        _parse(a=client)
    assert said in str(refused.value)
    assert PLANTED_KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "no mapping of names"),
        ("'a b': {key: k}", "a client: a name is"),
        ("a: {key: k}\nb: {key: k}", "b: has the key of a"),
        ("a: {key: k}\na: {key: l}", "stands here twice"),
    ],
)
def test_file_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadContent, match=said):
        parse_clients(text, SERVERS)


def test_bad_new_file_is_refused_whole_and_the_last_good_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(watched_file, "monotonic", lambda: now_s[0])
    caplog.set_level(logging.INFO)
    path = tmp_path / "clients.yaml"
    path.write_text("a: {key: ka}\n")
    server = sorted(SERVERS)[0]
    file = open_clients(str(path), Clients(), SERVERS, {server: ["a budget can't hold"]})

    def names_after(text: str | None, seconds: float = 1.0) -> list[str]:
        path.unlink() if text is None else path.write_text(text)
        now_s[0] += seconds
        return list(file.read().by_name)

    assert list(file.read().by_name) == ["a"]
    assert names_after("a: {key: ka}\nb: {key: kb, budget: 1}\n") == ["a"]
    assert file.problem is not None
    assert "did you mean budget_usd?; the last clients stay as they are" in caplog.text
    assert names_after("a: {key: ka, budget_usd: 1}\nc: {key: kc}\n") == ["a"]
    assert "a: a budget can't hold" in caplog.text
    # It may not use the server where none holds.
    others = ", ".join(SERVERS - {server})
    assert names_after(f"a: {{key: ka, budget_usd: 1, servers: [{others}]}}\n") == ["a"]
    assert file.problem is None
    assert names_after("b: {key: kb}\n") == ["b"]
    assert file.problem is None
    assert names_after("", 0.5) == ["b"]
    now_s[0] += 0.5
    assert list(file.read().by_name) == []
    assert names_after("b: {key: kb}\n") == ["b"]
    assert names_after(None) == ["b"]
    now_s[0] += 10
    assert list(file.read().by_name) == []
    assert file.problem == "is gone"


def test_servers_of_one_config_share_a_clients_file_named_at_the_top(folder: Folder) -> None:
    folder.write("clients.yaml", "a: {key: ka, servers: judge_model}\n")
    servers = {"policy_model": to_server(), "judge_model": to_server()}
    folder.write(folder.default, {**servers, "clients_file": "clients.yaml"})
    config = folder.load()
    path = str(folder.path / "clients.yaml")
    assert {server.clients_file for server in config.servers.values()} == {path}
    assert list(config.clients[path].by_name) == ["a"]


@pytest.mark.parametrize(
    ("clients", "settings", "said"),
    [
        pytest.param("a: {}", {}, "clients.yaml can't be used: a: one of key", id="a bad file"),
        pytest.param("a: {key: k, budget_usd: 1}", {}, "a: a budget needs a usage log; set usage_log", id="no log"),
        pytest.param(
            "a: {key: k, budget_usd: 1}",
            {"usage_log": "usage.jsonl"},
            "a: a budget can't hold for a-model, which has no price",
            id="no price",
        ),
    ],
)
def test_clients_that_the_server_can_not_serve_stop_the_start(
    folder: Folder, clients: str, settings: dict[str, Any], said: str
) -> None:
    folder.write("clients.yaml", clients)
    folder.write(folder.default, {"policy_model": to_server(clients_file="clients.yaml", **settings)})
    assert said in folder.complaint()


def test_missing_clients_file_stops_the_start(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(clients_file="gone.yaml")})
    assert "clients_file: the file" in folder.complaint()


def test_model_without_a_price_may_be_allowed(folder: Folder) -> None:
    folder.write("clients.yaml", "a: {key: k, budget_usd: 1}\n")
    settings = {"clients_file": "clients.yaml", "usage_log": "usage.jsonl", "unknown_cost": "allow"}
    folder.write(folder.default, {"policy_model": to_server(**settings)})
    assert folder.server().unknown_cost == "allow"


def test_server_that_anybody_may_use_beside_one_that_asks_for_keys_is_told_of(folder: Folder) -> None:
    servers = {"policy_model": to_server(gateway_api_keys=["k"]), "judge_model": to_server()}
    folder.write(folder.default, servers)
    assert any(note.startswith("judge_model: anybody may use it without a key") for note in folder.load().notes)
    folder.write(folder.default, {**servers, "gateway_api_keys": ["k"]})
    assert not any("without a key" in note for note in folder.load().notes)
