"""Which of several values wins, and where `origins` says that it came from."""

from __future__ import annotations

import pytest

from openai_gateway.config import load_config
from tests.config.folder import DOTTED, GYM_SNIPPET, PLANTED_KEY, Folder, to_server

RETRIES = f"{DOTTED}.max_retries"


def to_retries(count: int) -> dict[str, object]:
    return {"policy_model": {"responses_api_models": {"openai_model": {"max_retries": count}}}}


def test_default_file_is_read_from_the_working_folder(folder: Folder) -> None:
    assert folder.server().openai_base_url == "https://upstream.example/v1"


def test_the_process_environment_and_folder_are_used_when_none_are_given(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_GATEWAY_CONFIG_PATHS", "OPENAI_GATEWAY_ENV_YAML", "OPENAI_GATEWAY_SERVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(folder.path)
    assert load_config().default_server == "policy_model"


def test_later_file_wins_key_by_key(folder: Folder) -> None:
    folder.write("a.yaml", {"policy_model": to_server(max_retries=3, max_queue=7)})
    folder.write("b.yaml", to_retries(4))
    config = folder.load(OPENAI_GATEWAY_CONFIG_PATHS="a.yaml, b.yaml")
    server = config.servers["policy_model"]
    assert (server.max_retries, server.max_queue) == (4, 7)
    assert config.origins[RETRIES] == "b.yaml"
    assert config.origins[f"{DOTTED}.max_queue"] == "a.yaml"
    assert config.origins[f"{DOTTED}.idle_timeout_s"] == "default"


@pytest.mark.parametrize("nested", [["inner.yaml"], "inner.yaml"], ids=["named in a list", "named alone"])
def test_file_wins_over_those_in_its_config_paths(folder: Folder, nested: object) -> None:
    folder.write("inner.yaml", {"policy_model": to_server(max_retries=3, max_queue=7)})
    folder.write("outer.yaml", {"config_paths": nested, **to_retries(4)})
    server = folder.server(OPENAI_GATEWAY_CONFIG_PATHS="outer.yaml")
    assert (server.max_retries, server.max_queue) == (4, 7)


def test_later_file_wins_with_all_that_it_names(folder: Folder) -> None:
    folder.write("inner.yaml", to_retries(5))
    folder.write("later.yaml", {"config_paths": ["inner.yaml"]})
    assert folder.server(OPENAI_GATEWAY_CONFIG_PATHS=f"{folder.default},later.yaml").max_retries == 5


def test_later_name_in_config_paths_wins_over_an_earlier_one(folder: Folder) -> None:
    folder.write("a.yaml", to_retries(5))
    folder.write("b.yaml", to_retries(6))
    folder.write("outer.yaml", {"config_paths": [folder.default, "a.yaml", "b.yaml"]})
    assert folder.server(OPENAI_GATEWAY_CONFIG_PATHS="outer.yaml").max_retries == 6


def test_file_named_by_two_others_is_no_cycle(folder: Folder) -> None:
    folder.write("a.yaml", {"config_paths": [folder.default]})
    folder.write("b.yaml", {"config_paths": [folder.default]})
    assert folder.server(OPENAI_GATEWAY_CONFIG_PATHS="a.yaml,b.yaml").openai_model == "a-model"


def test_env_yaml_wins_over_files(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(max_retries=3)})
    folder.write("env.yaml", to_retries(4))
    config = folder.load()
    assert config.servers["policy_model"].max_retries == 4
    assert config.origins[RETRIES] == "env.yaml"


def test_env_yaml_may_stand_elsewhere(folder: Folder) -> None:
    folder.write("env.yaml", to_retries(4))
    folder.write("secret/other.yaml", to_retries(5))
    assert folder.server(OPENAI_GATEWAY_ENV_YAML="secret/other.yaml").max_retries == 5


@pytest.mark.parametrize("prefix", ["", "+", "++"], ids=["overridden", "added", "added or overridden"])
def test_command_line_wins_over_env_yaml(folder: Folder, prefix: str) -> None:
    folder.write("env.yaml", to_retries(4))
    config = folder.load(f"{prefix}{RETRIES}=6")
    assert config.servers["policy_model"].max_retries == 6
    assert config.origins[RETRIES] == "command line"


def test_last_of_two_overrides_wins(folder: Folder) -> None:
    assert folder.server(f"++{RETRIES}=6", f"++{RETRIES}=7").max_retries == 7


def test_override_adds_a_server_with_all_above_it(folder: Folder) -> None:
    settings = "{openai_base_url: 'http://b', openai_api_key: k, openai_model: m}"
    config = folder.load(f"+judge.responses_api_models.openai_model={settings}")
    assert config.servers["judge"].openai_model == "m"


def test_overriding_value_may_be_a_mapping(folder: Folder) -> None:
    server = folder.server(f"++{DOTTED}.extra_body={{temperature: 0.5, stop: [a, b], user: null}}")
    assert server.extra_body == {"temperature": 0.5, "stop": ["a", "b"], "user": None}


def test_config_paths_on_the_command_line_replace_the_variable(folder: Folder) -> None:
    folder.write("a.yaml", {"other": to_server()})
    config = folder.load("+config_paths=[a.yaml]", OPENAI_GATEWAY_CONFIG_PATHS=folder.default)
    assert list(config.servers) == ["other"]


def test_variable_set_on_the_command_line_is_seen_by_interpolations(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(openai_model="${name}"), "name": "file"})
    folder.write("env.yaml", {"name": "env"})
    assert folder.server().openai_model == "env"
    assert folder.server("++name=line").openai_model == "line"


@pytest.mark.parametrize(
    ("environ", "drops"),
    [({}, False), ({"DROP": "true"}, True), ({"DROP": "False"}, False)],
    ids=["default of an unset variable", "variable that is set", "other spelling"],
)
def test_oc_env_reads_the_given_environment(folder: Folder, environ: dict[str, str], drops: bool) -> None:
    folder.write(folder.default, {"policy_model": to_server(drop_input_reasoning_items="${oc.env:DROP,false}")})
    assert folder.server(**environ).drop_input_reasoning_items is drops


def test_key_of_the_command_line_that_nothing_refers_to_is_found(folder: Folder) -> None:
    folder.write(folder.default, GYM_SNIPPET)
    given = ["policy_base_url=http://h/v1", f"policy_api_key={PLANTED_KEY}", "policy_model_name=m"]
    shared = "usage_log=usage.jsonl"
    config = folder.load(*(f"++{each}" for each in [*given, shared, "temperature=0.5", "head_server.port=1"]))
    assert config.unused == ("temperature",)
