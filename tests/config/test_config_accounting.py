"""The keys of accounting: what a wrong one is told, and that they may stand at the top level, for all servers."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.config.folder import DOTTED, Folder, to_server


def test_usage_log_may_lie_in_a_folder_that_is_there(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(usage_log="usage.jsonl")})
    assert folder.server().usage_log == str(folder.path / "usage.jsonl")


@pytest.mark.parametrize(
    ("settings", "key", "part"),
    [
        pytest.param({"usage_log": "a-file/usage.jsonl"}, "usage_log", "there is no folder", id="under a file"),
        pytest.param({"usage_log": "conf"}, "usage_log", "conf is a folder", id="a folder for the usage log"),
        pytest.param({"usage_log": 7}, "usage_log", "a non-empty string is wanted", id="a number for a path"),
        pytest.param({"usage_log_max_bytes": 0}, "usage_log_max_bytes", "at least 1", id="a size of nothing"),
        pytest.param({"slow_call_s": -1}, "slow_call_s", "above 0", id="a negative time"),
        pytest.param({"log_level": "loud"}, "log_level", "one of debug, info, warning, error", id="an unknown level"),
        pytest.param({"log_format": "xml"}, "log_format", "one of auto, json, plain", id="an unknown format"),
        pytest.param({"access_log": "maybe"}, "access_log", "true or false is wanted", id="neither true nor false"),
        pytest.param({"gateway_headers": 1}, "gateway_headers", "true or false is wanted", id="a number for a boolean"),
        pytest.param({"price_file": "gone.yaml"}, "price_file", "gone.yaml", id="prices that aren't there"),
        pytest.param(
            {"observability_enabled": True},
            "model_call_capture_dir",
            "is missing; observability_enabled: true needs it",
            id="captures without a folder",
        ),
        pytest.param(
            {"observability_enabled": True, "model_call_capture_dir": "a-file"},
            "model_call_capture_dir",
            "a-file is a file",
            id="a file for the captures",
        ),
        pytest.param(
            {"observability_enabled": True, "model_call_capture_dir": "a-file/captures"},
            "model_call_capture_dir",
            "can't be written to",
            id="captures under a file",
        ),
    ],
)
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_wrong_key_is_complained_about(
    settings: dict[str, Any], key: str, part: str, is_shared: bool, folder: Folder
) -> None:
    folder.write("a-file", "x: 1\n")
    own, shared = ({}, settings) if is_shared else (settings, {})
    folder.write(folder.default, {"policy_model": to_server(**own), **shared})
    message = folder.complaint()
    assert message.startswith("openai_gateway: 1 problem ")
    assert f"{folder.default}: {DOTTED}.{key}: " in message
    assert part in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
@pytest.mark.parametrize("settings", [{"usage_log": "shut/usage.jsonl"}, {"usage_log": "shut/deeper/usage.jsonl"}])
def test_usage_log_in_a_folder_that_may_not_be_written_is_refused(settings: dict[str, str], folder: Folder) -> None:
    (folder.path / "shut").mkdir(mode=0o555)
    folder.write(folder.default, {"policy_model": to_server(**settings)})
    assert f"{DOTTED}.usage_log: " in folder.complaint()


def test_capture_folder_of_a_run_that_does_not_observe_is_not_asked_about(folder: Folder) -> None:
    folder.write("a-file", "x: 1\n")
    for enabled in ({}, {"observability_enabled": False}):
        folder.write(folder.default, {"policy_model": to_server(model_call_capture_dir="a-file", **enabled)})
        server = folder.server()
        assert (server.observability_enabled, server.model_call_capture_dir) == (False, None)


def test_shared_key_holds_for_all_servers_and_a_servers_own_wins(folder: Folder) -> None:
    servers = {"policy_model": to_server(), "judge_model": to_server(usage_log="judge.jsonl", slow_call_s=5)}
    folder.write(folder.default, {**servers, "usage_log": "all.jsonl", "slow_call_s": 7, "access_log": True})
    config = folder.load()
    policy, judge = config.servers["policy_model"], config.servers["judge_model"]
    assert (policy.usage_log, policy.slow_call_s, policy.access_log) == (str(folder.path / "all.jsonl"), 7, True)
    assert (judge.usage_log, judge.slow_call_s, judge.access_log) == (str(folder.path / "judge.jsonl"), 5, True)
    assert config.origins[f"{DOTTED}.slow_call_s"] == folder.default


def test_servers_own_null_wins_over_a_shared_value(folder: Folder) -> None:
    entry = to_server()
    entry["responses_api_models"]["openai_model"]["usage_log"] = None
    folder.write(folder.default, {"policy_model": entry, "usage_log": "all.jsonl"})
    assert folder.server().usage_log is None


def test_servers_own_key_wins_over_a_shared_one_of_a_later_place(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(slow_call_s=5)})
    folder.write("env.yaml", {"slow_call_s": 7})
    config = folder.load("++slow_call_s=8")
    assert config.servers["policy_model"].slow_call_s == 5
    assert config.origins[f"{DOTTED}.slow_call_s"] == folder.default


def test_shared_key_is_taken_from_the_last_place_that_gives_it(folder: Folder) -> None:
    folder.write("env.yaml", {"slow_call_s": 7})
    assert folder.server().slow_call_s == 7
    config = folder.load("++slow_call_s=8")
    assert config.servers["policy_model"].slow_call_s == 8
    assert config.origins[f"{DOTTED}.slow_call_s"] == "command line"


def test_servers_key_at_the_top_level_is_complained_of(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(), "max_concurrent_requests": 8})
    complaint = folder.complaint()
    assert f"{folder.default}: max_concurrent_requests: does nothing at the top level" in complaint
    assert f"{DOTTED}.max_concurrent_requests" in complaint


@pytest.mark.parametrize("place", ["policy_model", "policy_model.responses_api_models"])
def test_servers_key_too_high_in_its_entry_is_complained_of_unless_something_refers_to_it(
    folder: Folder, place: str
) -> None:
    folder.write(folder.default, {"policy_model": to_server()})
    complaint = folder.complaint([f"++{place}.max_retries=3"])
    assert (
        f"command line: {place}.max_retries: does nothing here; it belongs to a server: {DOTTED}.max_retries"
        in complaint
    )
    referred = f"++{DOTTED}.max_retries=${{{place}.max_retries}}"
    assert folder.load(f"++{place}.max_retries=3", referred).servers["policy_model"].max_retries == 3


@pytest.mark.parametrize(("given", "meant"), [("acces_log", "access_log"), ("usage_logs", "usage_log")])
def test_misspelt_shared_key_is_complained_of(folder: Folder, given: str, meant: str) -> None:
    folder.write(folder.default, {"policy_model": to_server()})
    folder.write("env.yaml", {given: True})
    assert f"{given}: is unknown and does nothing; did you mean '{meant}'?" in folder.complaint()


def test_other_names_at_the_top_level_are_somebody_elses(folder: Folder) -> None:
    names = {
        "openai_api_key_2": "sk-x",
        "logs": 1,
        "price_files": {"a": 1},
        "limit": 3,
        "usage_logger": "${usage_logs}",
    }
    folder.write(folder.default, {"policy_model": to_server(), **names, "usage_logs": "x"})
    folder.load()


def test_servers_key_at_the_top_level_may_be_referred_to(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(openai_model="${openai_model}"), "openai_model": "m"})
    assert folder.server().openai_model == "m"


def test_usage_log_in_a_folder_that_is_not_there_is_complained_of(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(usage_log="nowhere/usage.jsonl")})
    assert f"there is no folder {folder.path / 'nowhere'}" in folder.complaint()
