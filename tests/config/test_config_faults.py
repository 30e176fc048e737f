"""What went wrong once: keys in messages, crashes in the place of complaints, values changed on the way.

The ordinary cases are in the other modules.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from openai_gateway.config import Secret
from tests.config.folder import DOTTED, GYM_SNIPPET, PLANTED_KEY, Folder, to_server


def to_text(**settings: Any) -> str:
    return yaml.safe_dump({"policy_model": to_server(**settings)}, sort_keys=False)


def test_snippet_without_env_yaml_names_all_three_values(folder: Folder) -> None:
    folder.write(folder.default, GYM_SNIPPET)
    message = folder.complaint()
    assert "3 problems" in message
    for name in ("policy_base_url", "policy_api_key", "policy_model_name"):
        assert f"${{{name}}} can't be resolved" in message


def test_all_unset_values_are_named_together(folder: Folder) -> None:
    folder.write(folder.default, GYM_SNIPPET)
    folder.write("env.yaml", "policy_base_url: ???\npolicy_api_key: k\npolicy_model_name: ???\n")
    message = folder.complaint()
    assert "2 problems" in message
    assert "${policy_base_url}" in message
    assert "${policy_model_name}" in message


def test_all_unresolvable_interpolations_are_named_together(folder: Folder) -> None:
    settings = {"openai_base_url": "${a}", "openai_model": "${oc.env:NOT_SET}", "openai_api_key": "${c}"}
    folder.write(folder.default, {"policy_model": to_server(max_retries="x${d}", **settings)})
    message = folder.complaint()
    assert "4 problems" in message
    assert all(expression in message for expression in settings.values())


@pytest.mark.parametrize(
    "line", ["a: *planted-Q7x9-key", "a: !planted-Q7x9-key x", "a: &planted-Q7x9-key 1\nb: &planted-Q7x9-key 2\nc: ["]
)
def test_key_read_as_yaml_syntax_is_not_shown(folder: Folder, line: str) -> None:
    folder.write("env.yaml", line)
    assert "env.yaml: line " in folder.complaint()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_retries": PLANTED_KEY}, id="a key for a number"),
        pytest.param({"max_retries": ["a", {"b": PLANTED_KEY}]}, id="a key inside a wrong value"),
        pytest.param({"max_retries": "${oc.env:KEY}"}, id="a key by way of the environment"),
        pytest.param(
            {"max_retries": "${my_api_key}", "openai_api_key": "${my_api_key}"}, id="a key by way of a variable"
        ),
        pytest.param({PLANTED_KEY: 1}, id="a key for a key"),
        pytest.param({"openai_base_url": f"user:{PLANTED_KEY}@h/v1"}, id="a password in a URL without scheme"),
        pytest.param({"openai_base_url": f"ftp://h/v1?k={PLANTED_KEY}"}, id="a key in a URL's query"),
        pytest.param({"max_retries": "${" + PLANTED_KEY + "}"}, id="a key for a variable's name"),
        pytest.param({"max_retries": "Bearer x" + PLANTED_KEY, "openai_api_key": "other-key"}, id="a bearer token"),
    ],
)
def test_key_in_the_wrong_place_is_not_shown(folder: Folder, settings: dict[str, Any]) -> None:
    folder.write(folder.default, {"policy_model": to_server(**settings), "my_api_key": PLANTED_KEY})
    assert folder.default in folder.complaint(KEY=PLANTED_KEY)


def test_long_key_is_not_shown_in_part(folder: Folder) -> None:
    key = "k" * 30 + PLANTED_KEY + "k" * 60
    folder.write(folder.default, {"policy_model": to_server(openai_api_key=key, max_retries=key)})
    assert "kkk" not in folder.complaint()


def test_value_like_a_key_is_masked_though_no_key_is_configured(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(max_retries="sk-abcdef", openai_api_key=None)})
    assert "abcdef" not in folder.complaint()


def test_key_in_an_override_of_a_name_is_not_shown(folder: Folder) -> None:
    folder.complaint([f"{PLANTED_KEY}=1", f"++++{PLANTED_KEY}=1"])


def test_path_of_a_key_file_is_shown(folder: Folder) -> None:
    settings = to_server(openai_api_key=None, openai_api_key_file="a/long/path/keys.txt")
    folder.write(folder.default, {"policy_model": settings})
    assert "a/long/path/keys.txt" in folder.complaint()


@pytest.mark.parametrize(
    "line",
    [
        "since: 2024-01-01",
        "since: 2024-99-99",
        "broken: '${a'",
        "nested: [{broken: '${a'}]",
        "merged:\n    <<: {a: 1}\n    b: 2",
    ],
    ids=["a date", "an impossible date", "an unfinished interpolation", "one in a list", "a merge key"],
)
def test_foreign_entry_does_no_harm_with(folder: Folder, line: str) -> None:
    folder.write(folder.default, to_text() + f"foreign:\n  {line}\n")
    assert folder.server().openai_model == "a-model"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1.5E3", 1500.0), ("7", 7), ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), ("no", False)],
)
def test_body_default_is_read_as_gym_reads_it(folder: Folder, text: str, value: object) -> None:
    folder.write(folder.default, to_text() + f"      extra_body: {{a: {text}}}\n")
    got = folder.server().extra_body["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    "text",
    ["!!timestamp x", "!!binary aGk=", "!!set {a}", "!!int x", "!!bool x", "9" * 5000, "&a {x: *a}", "[" * 3000],
    ids=[
        "a timestamp",
        "bytes",
        "a set",
        "a false integer",
        "a false boolean",
        "5,000 digits",
        "itself",
        "3,000 lists",
    ],
)
def test_value_that_json_has_no_form_for_is_a_complaint(folder: Folder, text: str) -> None:
    folder.write(folder.default, to_text() + f"      extra_body: {{a: {text}}}\n")
    assert f"{folder.default}: " in folder.complaint()


@pytest.mark.parametrize("text", [".nan", ".inf", "[-.inf]"])
def test_body_default_must_be_finite(folder: Folder, text: str) -> None:
    folder.write(folder.default, to_text() + f"      extra_body: {{a: {text}}}\n")
    assert f"{DOTTED}.extra_body: " in folder.complaint()


@pytest.mark.parametrize("value", [10**400, 1e10], ids=["a very large integer", "more than a socket's timeout holds"])
def test_time_is_bounded(folder: Folder, value: float) -> None:
    folder.write(folder.default, to_text(idle_timeout_s=value))
    assert f"{DOTTED}.idle_timeout_s: " in folder.complaint()


def test_each_value_in_a_mapping_is_resolved_or_named(folder: Folder) -> None:
    body = {"a": "${x}", "b": ["${y}", "???", "${z"], "c": {"d": "${oc.env:SET}"}}
    folder.write(folder.default, {"policy_model": to_server(extra_body=body)})
    message = folder.complaint(SET="1")
    assert "4 problems" in message
    for key in ("a", "b[0]", "b[1]", "b[2]"):
        assert f"{folder.default}: {DOTTED}.extra_body.{key}: " in message


def test_values_in_mappings_are_resolved(folder: Folder) -> None:
    body = {"a": "${x}", "b": ["${x}", {"c": "${x}"}]}
    headers = {"Authorization": "Bearer ${x}"}
    folder.write(folder.default, {"policy_model": to_server(extra_body=body, openai_default_headers=headers), "x": "y"})
    server = folder.server()
    assert server.extra_body == {"a": "y", "b": ["y", {"c": "y"}]}
    assert server.openai_default_headers == {"Authorization": Secret("Bearer y")}


@pytest.mark.parametrize("expression", ["${x", "${${}"], ids=["left open", "empty inside"])
def test_interpolation_that_cannot_be_parsed_is_one_complaint(folder: Folder, expression: str) -> None:
    folder.write(folder.default, {"policy_model": to_server(openai_model=expression)})
    message = folder.complaint()
    assert "1 problem " in message
    assert f"{DOTTED}.openai_model: the interpolation can't be parsed" in message


def test_interpolation_that_holds_itself_is_a_complaint(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(extra_body={"a": "${x}"}), "x": {"b": "${x}"}})
    assert f"{DOTTED}.extra_body" in folder.complaint()


def test_interpolation_of_what_it_stands_in_is_a_complaint(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(extra_body={"a": f"${{{DOTTED}.extra_body}}"})})
    assert f"{DOTTED}.extra_body" in folder.complaint()


@pytest.mark.parametrize("key", ["max_retries", "extra_body.a.b"])
def test_problem_of_an_override_is_placed_on_the_command_line(folder: Folder, key: str) -> None:
    assert f"command line: {DOTTED}.{key}: " in folder.complaint([f"++{DOTTED}.{key}='${{nowhere}}'"])


def test_server_made_by_a_mistyped_override_is_placed_on_the_command_line(folder: Folder) -> None:
    message = folder.complaint(["++policy_modle.responses_api_models.openai_model.max_retries=1"])
    assert "command line: policy_modle.responses_api_models.openai_model.openai_model: is missing" in message


@pytest.mark.parametrize("override", ["+a..b=1", "+.a=1", "+a.=1"])
def test_override_with_an_empty_part_is_refused(folder: Folder, override: str) -> None:
    assert "is wanted" in folder.complaint([override])


@pytest.mark.parametrize("given", ["[b.yaml]", "b.yaml"], ids=["a list", "one path"])
def test_last_config_paths_on_the_command_line_wins(folder: Folder, given: str) -> None:
    folder.write("a.yaml", {"a": to_server()})
    folder.write("b.yaml", {"b": to_server()})
    assert list(folder.load("+config_paths=[a.yaml]", f"+config_paths={given}").servers) == ["b"]


def test_config_paths_of_a_wrong_type_on_the_command_line_are_refused(folder: Folder) -> None:
    assert "command line: config_paths: a list of paths is wanted" in folder.complaint(["+config_paths={a: 1}"])


def test_config_paths_may_be_null(folder: Folder) -> None:
    folder.write(folder.default, "config_paths: null\n" + to_text())
    assert folder.server().openai_model == "a-model"


def test_empty_server_variable_is_no_choice(folder: Folder) -> None:
    assert folder.load(OPENAI_GATEWAY_SERVER="").default_server == "policy_model"


def test_missing_env_yaml_names_its_own_variable(folder: Folder) -> None:
    assert "OPENAI_GATEWAY_ENV_YAML" in folder.complaint(OPENAI_GATEWAY_ENV_YAML="gone.yaml")


def test_no_server_is_cured_by_a_snippet(folder: Folder) -> None:
    folder.write(folder.default, "")
    assert "      responses_api_models:\n        openai_model:\n" in folder.complaint()


def test_keys_of_gyms_own_shipped_file_are_ignored(folder: Folder) -> None:
    folder.write(folder.default, to_text(provides=["image-model"]))
    assert "provides" in folder.load().notes[0]


def test_organization_is_refused_with_the_header_to_give(folder: Folder) -> None:
    folder.write(folder.default, to_text(openai_organization="o"))
    assert "OpenAI-Organization" in folder.complaint()


@pytest.mark.parametrize(
    "headers", [{"Api-Key": "a", "api-key": "b"}, {"X": True}], ids=["a name twice but for case", "a boolean"]
)
def test_headers_are_refused_with(folder: Folder, headers: dict[str, Any]) -> None:
    folder.write(folder.default, to_text(openai_default_headers=headers))
    assert f"{DOTTED}.openai_default_headers: " in folder.complaint()


def test_default_base_url_of_the_older_style_has_its_origin(folder: Folder) -> None:
    older = {"api_key": PLANTED_KEY, "model": "old"}
    folder.write(folder.default, {"policy_model": {"responses_api_models": {"openai_model": older}}})
    assert folder.load().origins[f"{DOTTED}.openai_base_url"] == "default"
