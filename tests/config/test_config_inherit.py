"""NeMo Gym's directives: read as Gym reads them, or refused with a word; no server vanishes silently."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.folder import DOTTED, Folder, to_server

JUDGE = "judge_model.responses_api_models.openai_model"


def _own(**settings: Any) -> dict[str, Any]:
    return {"responses_api_models": {"openai_model": settings}}


def test_copied_server_has_what_stands_beside_the_directive_on_top(folder: Folder) -> None:
    judge = {"_copy": "policy_model", **_own(openai_model="a-judge", max_retries=0)}
    folder.write(folder.default, {"policy_model": to_server(max_queue=3), "judge_model": judge})
    config = folder.load()
    policy, judge_server = config.servers["policy_model"], config.servers["judge_model"]
    assert (policy.openai_model, judge_server.openai_model) == ("a-model", "a-judge")
    assert (policy.max_queue, judge_server.max_queue, judge_server.max_retries) == (3, 3, 0)
    assert judge_server.openai_api_key == policy.openai_api_key
    assert config.origins[f"{JUDGE}.max_queue"] == f"{folder.default}, by way of policy_model"
    assert config.origins[f"{JUDGE}.openai_model"] == folder.default


@pytest.mark.parametrize("directive", ["${copy:policy_model}", "${copy: policy_model}"])
def test_copy_may_be_a_text(folder: Folder, directive: str) -> None:
    folder.write(folder.default, {"policy_model": to_server(), "judge_model": directive})
    assert list(folder.load().servers) == ["policy_model", "judge_model"]


@pytest.mark.parametrize("entry", ["${inherit_from:generic_model}", {"_inherit_from": "generic_model"}])
def test_inherited_entry_is_gone_from_where_it_stood(folder: Folder, entry: Any) -> None:
    folder.write(folder.default, {"generic_model": to_server(), "policy_model": entry})
    config = folder.load()
    assert (list(config.servers), config.default_server) == (["policy_model"], "policy_model")


def test_directive_may_come_from_the_command_line(folder: Folder) -> None:
    folder.write("env.yaml", {"judge_name": "a-judge"})
    config = folder.load(
        "++judge_model=${copy:policy_model}", "++third={_copy: policy_model}", f"++third.{DOTTED[13:]}.openai_model=m"
    )
    assert {name: server.openai_model for name, server in config.servers.items()} == {
        "policy_model": "a-model",
        "judge_model": "a-model",
        "third": "m",
    }


def test_part_of_an_entry_may_be_copied(folder: Folder) -> None:
    headers = {"x-team": "a"}
    judge = to_server(openai_default_headers=f"${{copy:{DOTTED}.openai_default_headers}}")
    folder.write(folder.default, {"policy_model": to_server(openai_default_headers=headers), "judge_model": judge})
    config = folder.load()
    assert config.servers["judge_model"].openai_default_headers["x-team"].reveal() == "a"


def test_copy_is_of_the_tree_as_it_was_merged_from_all_places(folder: Folder) -> None:
    folder.write(folder.default, {"judge_model": {"_copy": "policy_model"}, "policy_model": to_server(max_queue=1)})
    folder.write("env.yaml", {"policy_model": _own(max_queue=2)})
    assert folder.load().servers["judge_model"].max_queue == 2


def test_keys_are_deleted_whether_own_or_inherited(folder: Folder) -> None:
    # Own keys of the entry that holds _delete_key go first, then those that come with what it copies.
    entry = {"_delete_key": "extra, responses_api_models", **to_server(), "extra": 1}
    folder.write(folder.default, {"policy_model": to_server(), "judge_model": entry})
    assert list(folder.load().servers) == ["policy_model"]
    base = {**to_server(), "resources_servers": {"x": {}}}
    judge = {"_copy": "base", "_delete_key": "resources_servers"}
    folder.write(folder.default, {"base": base, "policy_model": judge})
    folder.load(OPENAI_GATEWAY_SERVER="policy_model")


def test_dummy_models_settings_lie_under_those_of_the_model_beside_it(folder: Folder) -> None:
    entry = to_server()
    entry["responses_api_models"] = {"dummy_model": {"max_queue": 5, "max_retries": 5}, **entry["responses_api_models"]}
    entry["responses_api_models"]["openai_model"]["max_retries"] = 1
    folder.write(folder.default, {"policy_model": entry})
    assert (folder.server().max_queue, folder.server().max_retries) == (5, 1)


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        pytest.param({"_copy": "policy_modle"}, "judge_model._copy: there is no policy_modle", id="no such entry"),
        pytest.param("${copy:policy_model.x}", "there is no policy_model.x in the config", id="no such key"),
        pytest.param({"_copy": 7}, "the name of an entry is wanted", id="a number"),
        pytest.param({"_copy": "policy_model", "_inherit_from": "x"}, "exclude each other", id="both"),
        pytest.param({"_copy": f"{DOTTED}.openai_model", "a": 1}, "is no mapping", id="a text to add to"),
        pytest.param({"_copy": "policy_model", "_delete_key": "x"}, "no key 'x' to delete", id="nothing to delete"),
        pytest.param({"_copy": "policy_model", "_delete_key": ["x"]}, "names of keys are wanted", id="a list"),
        pytest.param({"_copy": "chained"}, "was inherited or copied itself; name policy_model there", id="a chain"),
    ],
)
def test_directive_that_cant_be_carried_out_is_refused(folder: Folder, judge: Any, said: str) -> None:
    chained = {"chained": {"_copy": "policy_model"}} if judge == {"_copy": "chained"} else {}
    folder.write(folder.default, {"policy_model": to_server(), "judge_model": judge, **chained})
    message = folder.complaint()
    assert said in message
    assert f"{folder.default}: judge_model" in message


def test_copy_of_what_is_unset_is_unset(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(), "judge_model": to_server(max_queue="${copy:a.b}")})
    folder.write("env.yaml", {"a": {"b": "???"}})
    assert f"{JUDGE}.max_queue: is ??? and must be set" in folder.complaint()


def test_unset_value_never_takes_the_place_of_one(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(max_queue=4)})
    folder.write("env.yaml", {"policy_model": _own(max_queue="???")})
    assert folder.server().max_queue == 4


def test_what_is_merged_into_a_reference_is_merged_into_what_it_names(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(max_queue=4), "judge_model": "${policy_model}"})
    folder.write("env.yaml", {"judge_model": _own(openai_model="a-judge")})
    config = folder.load()
    assert (config.servers["judge_model"].openai_model, config.servers["judge_model"].max_queue) == ("a-judge", 4)
    assert config.servers["policy_model"].openai_model == "a-model"


@pytest.mark.parametrize("given", ["${my_config_paths}", "[${first},b.yaml]"])
def test_config_paths_may_refer_to_env_yaml(folder: Folder, given: str) -> None:
    folder.write("a.yaml", {"policy_model": to_server(max_queue=1, max_retries=1)})
    folder.write("b.yaml", {"policy_model": _own(max_queue=2)})
    folder.write("env.yaml", {"my_config_paths": ["a.yaml", "b.yaml"], "first": "a.yaml"})
    server = folder.server(f"+config_paths={given}")
    assert (server.max_queue, server.max_retries) == (2, 1)


def test_config_paths_may_stand_in_env_yaml(folder: Folder) -> None:
    folder.write("a.yaml", {"policy_model": to_server(max_queue=1)})
    folder.write("env.yaml", {"config_paths": ["a.yaml"]})
    assert folder.server().max_queue == 1
    assert folder.server(OPENAI_GATEWAY_CONFIG_PATHS=folder.default).max_queue is None


def test_config_paths_that_refer_to_nothing_are_named(folder: Folder) -> None:
    assert "config_paths: ${nowhere} can't be resolved" in folder.complaint(["+config_paths=${nowhere}"])


def test_file_that_two_others_name_is_merged_once_and_before_both(folder: Folder) -> None:
    folder.write("base.yaml", {"policy_model": to_server(max_queue=1)})
    folder.write("a.yaml", {"config_paths": ["base.yaml"], "policy_model": _own(max_queue=2)})
    folder.write("b.yaml", {"config_paths": ["base.yaml"]})
    assert folder.server("+config_paths=[a.yaml,b.yaml]").max_queue == 2
