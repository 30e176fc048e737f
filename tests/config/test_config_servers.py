"""Which entries are servers, which one is at plain /v1, and that Gym's files and ours load."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_gateway.config import ConfigError, Secret, load_config
from tests.config.folder import DOTTED, GYM_SNIPPET, PLANTED_KEY, Folder, to_server

ROOT = Path(__file__).parents[2]
ENV_YAML = "".join(
    f"{who}_base_url: https://{who}.example/v1/\n{who}_api_key: {who}-key\n{who}_model_name: {who}-model\n"
    for who in ("policy", "judge")
)


def test_gym_snippet_loads_unchanged(folder: Folder) -> None:
    folder.write(folder.default, GYM_SNIPPET)
    folder.write("env.yaml", ENV_YAML)
    config = folder.load()
    server = config.servers["policy_model"]
    assert server.openai_base_url == "https://policy.example/v1"
    assert server.openai_api_key == Secret("policy-key")
    assert server.openai_model == "policy-model"
    assert server.max_concurrent_requests is None
    assert server.drop_input_reasoning_items is False
    assert config.notes == (), "what stands in every file of Gym's needs no line at each start"


def test_shipped_files_load_with_the_env_yaml_they_ask_for(folder: Folder) -> None:
    folder.write("env.yaml", ENV_YAML)
    paths = ",".join(str(ROOT / "conf" / name) for name in ("openai_model.yaml", "openai_judge_model.yaml"))
    config = folder.load(OPENAI_GATEWAY_CONFIG_PATHS=paths)
    assert list(config.servers) == ["policy_model", "judge_model"]
    assert config.default_server == "policy_model"
    assert config.servers["judge_model"].openai_model == "judge-model"


def test_shipped_env_example_has_all_that_the_shipped_files_ask_for(tmp_path: Path) -> None:
    env_yaml = tmp_path / "env.yaml"
    environ = {
        "OPENAI_GATEWAY_CONFIG_PATHS": "conf/openai_model.yaml,conf/openai_judge_model.yaml",
        "OPENAI_GATEWAY_ENV_YAML": str(env_yaml),
    }
    example = (ROOT / "conf" / "env.example.yaml").read_text()
    env_yaml.write_text(example)
    with pytest.raises(ConfigError, match="put your own in") as refused:
        load_config(environ, cwd=ROOT)
    assert len(refused.value.problems) == 2
    env_yaml.write_text(example.replace("sk-...", "sk-mine"))
    assert len(load_config(environ, cwd=ROOT).servers) == 2


@pytest.mark.parametrize(
    ("names", "wanted", "default"),
    [
        (["mine"], None, "mine"),
        (["judge_model", "policy_model"], None, "policy_model"),
        (["a", "b"], "b", "b"),
        (["policy_model", "b"], "b", "b"),
    ],
    ids=["the only one", "policy_model of two", "the one that the variable names", "the variable before policy_model"],
)
def test_default_server_is(folder: Folder, names: list[str], wanted: str | None, default: str) -> None:
    folder.write(folder.default, {name: to_server() for name in names})
    environ = {"OPENAI_GATEWAY_SERVER": wanted} if wanted else {}
    assert folder.load(**environ).default_server == default


@pytest.mark.parametrize("wanted", [None, "c"], ids=["none is preferred", "the variable names another"])
def test_complaint_about_the_default_server_lists_the_names(folder: Folder, wanted: str | None) -> None:
    folder.write(folder.default, {"a": to_server(), "b": to_server()})
    message = folder.complaint(**({"OPENAI_GATEWAY_SERVER": wanted} if wanted else {}))
    assert "OPENAI_GATEWAY_SERVER" in message
    assert "a, b" in message


@pytest.mark.parametrize(
    "name", ["v1", "ng-rollout", "metrics", "status", "healthz", "readyz", "..", "a/b", "a b", "ä"]
)
def test_server_name_that_is_no_url_segment_of_its_own_is_refused(folder: Folder, name: str) -> None:
    folder.write(folder.default, {name: to_server()})
    assert "server name" in folder.complaint()


@pytest.mark.parametrize(
    "content",
    ["", "a: 1\n", "a: {b: 1}\n", "a: {responses_api_models: {vllm_model: {x: 1}}}\n"],
    ids=["an empty file", "variables only", "a mapping of another kind", "another implementation only"],
)
def test_no_server_at_all_is_a_complaint_with_the_cure(folder: Folder, content: str) -> None:
    folder.write(folder.default, content)
    message = folder.complaint()
    assert "no server is defined" in message
    assert all(word in message for word in ("responses_api_models", "openai_model", "openai_base_url"))


def test_empty_list_of_paths_is_a_complaint(folder: Folder) -> None:
    assert "no server is defined" in folder.complaint(OPENAI_GATEWAY_CONFIG_PATHS=" , ")


def test_foreign_entries_are_skipped_with_one_note(folder: Folder) -> None:
    foreign = {
        "my_agent": {"responses_api_agents": {"simple_agent": {"unknown": "${not_there}"}}},
        "my_resources": {"resources_servers": {"weather": {"domain": "???"}}},
        "my_vllm": {"responses_api_models": {"vllm_model": {"model": "x"}}},
        "head_server": {"host": "127.0.0.1"},
    }
    folder.write(folder.default, {"policy_model": to_server(), "policy_base_url": "unused", **foreign})
    config = folder.load()
    assert list(config.servers) == ["policy_model"]
    (note,) = config.notes
    assert all(name in note for name in foreign)


def test_gyms_own_keys_are_ignored_with_one_note(folder: Folder) -> None:
    own = {
        "host": "0.0.0.0",
        "port": 8000,
        "num_workers": 2,
        "domain": "math",
        "verified": True,
    }
    folder.write(folder.default, {"policy_model": to_server(**own), "judge": to_server(entrypoint="app.py")})
    (note,) = folder.load().notes
    assert all(key in note for key in own)


def test_older_names_are_taken(folder: Folder) -> None:
    older = {"base_url": "https://old.example/v1", "api_key": PLANTED_KEY, "model": "old"}
    folder.write(folder.default, {"policy_model": {"responses_api_models": {"openai_model": older}}})
    config = folder.load()
    server = config.servers["policy_model"]
    assert (server.openai_base_url, server.openai_model) == ("https://old.example/v1", "old")
    assert server.openai_api_key == Secret(PLANTED_KEY)
    assert config.origins[f"{DOTTED}.openai_model"] == folder.default


def test_older_style_has_openais_base_url_by_default(folder: Folder) -> None:
    older = {"api_key": PLANTED_KEY, "model": "old"}
    folder.write(folder.default, {"policy_model": {"responses_api_models": {"openai_model": older}}})
    assert folder.server().openai_base_url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("old", "value"), [("base_url", "https://b.example"), ("api_key", PLANTED_KEY), ("model", "b")]
)
def test_older_and_newer_name_together_are_refused(folder: Folder, old: str, value: str) -> None:
    folder.write(folder.default, {"policy_model": to_server(**{old: value})})
    message = folder.complaint()
    assert f"{DOTTED}.{old}" in message
    assert f"openai_{old.removeprefix('openai_')}" in message


def test_each_server_has_its_own_settings(folder: Folder) -> None:
    folder.write(
        folder.default,
        {"policy_model": to_server(max_concurrent_requests=3), "judge_model": to_server(openai_api_key="judge-key")},
    )
    servers = folder.load().servers
    assert [server.name for server in servers.values()] == ["policy_model", "judge_model"]
    assert [server.max_concurrent_requests for server in servers.values()] == [3, None]
    assert servers["judge_model"].openai_api_key == Secret("judge-key")
