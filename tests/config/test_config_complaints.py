"""One message names every problem: its file, its dotted key, what is wrong; and never a key."""

from __future__ import annotations

import pytest

from openai_gateway.config import ConfigError
from tests.config.folder import DOTTED, GYM_SNIPPET, PLANTED_KEY, Folder, to_server


def test_three_mistakes_are_named_in_one_message(folder: Folder) -> None:
    text = GYM_SNIPPET.replace("max_concurrent_requests: null", "max_concurrent_requests: zero")
    folder.write(folder.default, text.replace("extra_body: {}", "extra_bdy: {}").replace("${policy_api_key}", "???"))
    folder.write("env.yaml", "policy_base_url: https://h/v1\npolicy_model_name: m\n")
    message = folder.complaint()
    assert message.startswith("openai_gateway: 3 problems")
    for key in ("max_concurrent_requests", "extra_bdy", "openai_api_key"):
        assert f"{folder.default}: {DOTTED}.{key}: " in message


def test_each_problem_is_kept_with_place_and_key(folder: Folder) -> None:
    folder.write("env.yaml", "policy_model: {responses_api_models: {openai_model: {max_retries: -1}}}\n")
    with pytest.raises(ConfigError) as raised:
        folder.load()
    (problem,) = raised.value.problems
    assert (problem.place, problem.key) == ("env.yaml", f"{DOTTED}.max_retries")


def test_mistakes_in_several_files_servers_and_overrides_are_one_message(folder: Folder) -> None:
    folder.write("a.yaml", {"policy_model": to_server(max_queue=-1), "judge_model": to_server(idle_timeout_s="x")})
    folder.write("b.yaml", "a: [\n")
    message = folder.complaint(["nonsense"], OPENAI_GATEWAY_CONFIG_PATHS="a.yaml,b.yaml,c.yaml")
    for part in ("a.yaml: policy_model.", "a.yaml: judge_model.", "b.yaml: line ", "c.yaml: ", "command line: "):
        assert part in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("max_retrys", "max_retries"), ("openai_base_ur", "openai_base_url"), ("entry_point", "entrypoint")],
)
def test_unknown_key_is_named_with_the_nearest_known_one(folder: Folder, key: str, nearest: str) -> None:
    folder.write(folder.default, {"policy_model": to_server(**{key: 1})})
    assert f"{DOTTED}.{key}: unknown key; did you mean {nearest}?" in folder.complaint()


def test_unknown_key_like_no_other_is_named(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(zzz=1)})
    assert f"{DOTTED}.zzz: unknown key" in folder.complaint()


@pytest.mark.parametrize("key", ["openai_base_url", "openai_model", "openai_api_key"])
def test_missing_required_key_is_named(folder: Folder, key: str) -> None:
    folder.write(folder.default, {"policy_model": to_server(**{key: None})})
    assert f"{DOTTED}.{key}: is missing" in folder.complaint()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param("a: 1\na: 2\n", "line 2: ", id="a key given twice"),
        pytest.param("a:\n  b: 1\n  c: [2\nd: 3\n", "line ", id="a list left open"),
        pytest.param(f"a: 1\nopenai_api_key: '{PLANTED_KEY}\n", "line ", id="a quote left open after a key"),
        pytest.param(f"api_key: {PLANTED_KEY}: x\n", "line 1: ", id="a colon in a key"),
        pytest.param("a: \x01\n", "is not valid YAML", id="a control character"),
        pytest.param("- a\n", "a mapping", id="a list at the top"),
        pytest.param("config_paths: 7\n", "config_paths: a list of paths is wanted", id="config_paths of a wrong type"),
        pytest.param("config_paths: [7]\n", "config_paths: a list of paths is wanted", id="a path of a wrong type"),
    ],
)
def test_file_is_refused(folder: Folder, content: str, part: str) -> None:
    folder.write(folder.default, content)
    message = folder.complaint()
    assert f"{folder.default}: " in message
    assert part in message


def test_file_that_is_no_text_is_refused(folder: Folder) -> None:
    (folder.path / folder.default).write_bytes(b"a: \xff\n")
    assert f"{folder.default}: the file can't be read" in folder.complaint()


def test_folder_in_the_place_of_a_file_is_refused(folder: Folder) -> None:
    assert "conf: the file can't be read" in folder.complaint(OPENAI_GATEWAY_CONFIG_PATHS="conf")


@pytest.mark.parametrize("variable", ["OPENAI_GATEWAY_CONFIG_PATHS", "OPENAI_GATEWAY_ENV_YAML"])
def test_missing_file_is_named_with_the_folder(folder: Folder, variable: str) -> None:
    message = folder.complaint(**{variable: "gone.yaml"})
    assert "gone.yaml: there is no such file" in message
    assert str(folder.path) in message


def test_cycle_of_config_paths_is_named(folder: Folder) -> None:
    folder.write("a.yaml", {"config_paths": ["b.yaml"]})
    folder.write("b.yaml", {"config_paths": ["a.yaml"]})
    assert "a.yaml > b.yaml > a.yaml" in folder.complaint(OPENAI_GATEWAY_CONFIG_PATHS="a.yaml")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        pytest.param(PLANTED_KEY, "an argument without '='", id="no equals sign"),
        pytest.param("=1", "is wanted", id="no key"),
        pytest.param("+++a=1", "'+++a'", id="three plus signs"),
        pytest.param(
            f"+a=[{PLANTED_KEY}", "a: the value can't be read (a list's bracket is not closed)", id="an open list"
        ),
        pytest.param(f"nowhere.at.all={PLANTED_KEY}", "nowhere.at.all: there is no such key", id="nothing to override"),
        pytest.param(f"{DOTTED}.max_queue=1", "there is no such key", id="a last part that isn't there"),
    ],
)
def test_override_is_refused(folder: Folder, override: str, part: str) -> None:
    message = folder.complaint([override])
    assert "command line: " in message
    assert part in message


def test_plain_override_of_nothing_leaves_no_trace(folder: Folder) -> None:
    assert "1 problem " in folder.complaint(["nowhere.at.all=1"])
