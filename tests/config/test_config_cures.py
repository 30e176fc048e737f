"""One mistake is told once, with its cure, and without what only follows from it."""

from __future__ import annotations

import pytest

from openai_gateway.config.files import read_built_in
from tests.config.folder import DOTTED, GYM_SNIPPET, PLANTED_KEY, Folder, to_server
from tests.support.processes import ROOT


@pytest.mark.parametrize(
    ("env_yaml", "said"),
    [
        pytest.param(f"policy_api_key: '{PLANTED_KEY}\n", "env.yaml: line ", id="a broken file"),
        pytest.param("- a\n", "env.yaml: a mapping", id="a list"),
        pytest.param(
            f"policy_base_url: http://h/v1\npolicy_api_key: {PLANTED_KEY}\npolicy_model: gpt-5\n",
            "env.yaml: policy_model: is a server's entry, which a single value can't replace; "
            "a model's name belongs to policy_model_name",
            id="the name of the server for that of the model",
        ),
    ],
)
def test_env_yaml_that_cant_be_used_is_one_problem(folder: Folder, env_yaml: str, said: str) -> None:
    folder.write(folder.default, GYM_SNIPPET)
    folder.write("env.yaml", env_yaml)
    message = folder.complaint()
    assert message.startswith("openai_gateway: 1 problem ")
    assert said in message


def test_model_on_the_command_line_in_the_servers_place_is_one_problem(folder: Folder) -> None:
    message = folder.complaint(["++policy_model=gpt-5"])
    assert message.startswith("openai_gateway: 1 problem ")
    assert "command line: policy_model: is a server's entry" in message


def test_server_may_be_taken_out_by_null(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(), "judge_model": to_server()})
    assert list(folder.load("++judge_model=null").servers) == ["policy_model"]


def test_unset_environment_variable_is_named_at_both_ends(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(openai_api_key="${policy_api_key}")})
    folder.write("env.yaml", "policy_api_key: ${oc.env:MY_UNSET_KEY}\n")
    said = "openai_api_key: ${policy_api_key} can't be resolved: the environment variable MY_UNSET_KEY is not set"
    assert said in folder.complaint()
    folder.write("env.yaml", "policy_api_key: ${other}\n")
    assert "${policy_api_key} leads to ${other}, which can't be resolved" in folder.complaint()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"'{PLANTED_KEY}'", "begins or ends with a quote"),
        (f'{PLANTED_KEY}"', "begins or ends with a quote"),
        ("$OPENAI_API_KEY", "write ${oc.env:NAME}"),
        ("$" + "{OPENAI_API_KEY", "can't be parsed"),
        ("%OPENAI_API_KEY%", "write ${oc.env:NAME}"),
        ("sk-...", "stands for one in an example"),
        ("<your-key>", "stands for one in an example"),
    ],
)
def test_key_that_cant_be_right_is_questioned(folder: Folder, key: str, said: str) -> None:
    folder.write(folder.default, {"policy_model": to_server(openai_api_key=key)})
    assert said in folder.complaint()
    if "{" not in key:
        folder.write("keys.txt", f"{key}\n")
        folder.write(folder.default, {"policy_model": to_server(openai_api_key=None, openai_api_key_file="keys.txt")})
        assert said in folder.complaint()


def test_key_with_bearer_before_it_is_told_what_is_wrong_and_not_shown(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(openai_api_key=f"Bearer {PLANTED_KEY}")})
    said = folder.complaint()
    assert "without blanks, nor 'Bearer' before them (value not shown)" in said
    assert PLANTED_KEY not in said


def test_half_of_a_surrogate_pair_in_a_body_is_named(folder: Folder) -> None:
    folder.write(folder.default, GYM_SNIPPET.replace("extra_body: {}", 'extra_body: {stop: "\\ud83d"}'))
    folder.write("env.yaml", f"policy_base_url: http://h/v1\npolicy_api_key: {PLANTED_KEY}\npolicy_model_name: m\n")
    assert "extra_body: a text in it holds half of a surrogate pair" in folder.complaint()


def test_without_a_checkout_the_built_in_config_is_read(folder: Folder) -> None:
    (folder.path / folder.default).unlink()
    folder.write("env.yaml", f"policy_base_url: http://h/v1\npolicy_api_key: {PLANTED_KEY}\npolicy_model_name: m\n")
    config = folder.load()
    assert config.servers["policy_model"].openai_model == "m"
    origin = config.origins[f"{DOTTED}.openai_model"]
    assert origin == "the built-in openai_model.yaml, ${policy_model_name} in env.yaml"
    folder.write("env.yaml", "policy_base_url: http://h/v1\n")
    assert "2 problems" in folder.complaint()
    for broken in ("policy_api_key: [x\n", "policy_base_url=http://h/v1\n"):
        folder.write("env.yaml", broken)
        assert folder.complaint().startswith("openai_gateway: 1 problem in the config:\n  - env.yaml: ")
    (folder.path / "env.yaml").unlink()
    message = folder.complaint()
    assert message.startswith("openai_gateway: 1 problem ")
    assert "'openai-gateway init' asks for them and writes env.yaml" in message


def test_built_in_config_is_the_one_that_is_shipped() -> None:
    assert read_built_in() == (ROOT / "conf" / "openai_model.yaml").read_text()
