"""`openai-gateway config`: every value with where it came from, no secret, and a check that says ok."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from openai_gateway.cli.main import main
from openai_gateway.config.keys import KEYS

CONFIG = """
policy_model:
  responses_api_models:
    openai_model:
      entrypoint: app.py
      openai_base_url: ${policy_base_url}
      openai_api_key: ${policy_api_key}
      openai_model: ${oc.env:THE_MODEL,fallback-model}
      openai_default_headers: {X-Team: blue-team-secret}
      extra_body: {temperature: 0.5, note: "two\\nlines # no comment", user_token: hush-hush-hush}
      max_retries: ${retries}
retries: 7
log_level: debug
other_thing: {x: 1}
"""
ENV_YAML = "policy_base_url: https://x.example/v1?api-version=1&code=query-secret\npolicy_api_key: ${oc.env:THE_KEY}\n"
SECRETS = ("environment-secret", "query-secret", "blue-team-secret", "hush-hush-hush")
PREFIX = "policy_model.responses_api_models.openai_model"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.yaml").write_text(CONFIG)
    (tmp_path / "env.yaml").write_text(ENV_YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _show(*arguments: str, **environ: str | None) -> Result:
    cleared = dict.fromkeys(("CONFIG_PATHS", "OVERRIDES", "ENV_YAML", "SERVER"), None)
    environ = {f"OPENAI_GATEWAY_{name}": value for name, value in cleared.items()} | environ
    environ = {"THE_KEY": "environment-secret", "THE_MODEL": None, **environ}
    result = CliRunner(env=environ).invoke(main, ["config", "--config", "a.yaml", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert not any(secret in result.output for secret in SECRETS)
    return result


def _origins(result: Result) -> dict[str, str]:
    """Return each key's trailing comment."""
    pairs = (line.partition("  # ") for line in result.output.splitlines() if "  # " in line)
    return {text.split(":")[0].strip().strip('"'): origin for text, _, origin in pairs}


def test_every_key_is_shown_as_yaml_with_its_origin(folder: Path) -> None:
    result = _show(f"++{PREFIX}.extra_body.seed=3", f"++{PREFIX}.max_queue=5")
    assert result.exit_code == 0
    shown = yaml.safe_load(result.output)["policy_model"]["responses_api_models"]["openai_model"]
    assert list(shown) == list(KEYS)
    assert shown["openai_base_url"] == "https://x.example/v1?api-version=1&code=***"
    assert shown["extra_body"] == {
        "temperature": 0.5,
        "note": "two\nlines # no comment",
        "user_token": "***",
        "seed": 3,
    }
    assert (shown["openai_model"], shown["openai_api_key"], shown["max_retries"]) == ("fallback-model", "***", 7)
    origins = _origins(result)
    assert origins["openai_base_url"] == "a.yaml, ${policy_base_url} in env.yaml"
    assert origins["openai_api_key"] == "a.yaml, ${policy_api_key} in env.yaml, $THE_KEY in the environment"
    assert origins["openai_model"] == "a.yaml, $THE_MODEL is not set: its default"
    assert origins["max_retries"] == "a.yaml, ${retries} in a.yaml"
    assert (origins["log_level"], origins["max_queue"], origins["idle_timeout_s"]) == (
        "a.yaml",
        "command line",
        "default",
    )
    assert (origins["temperature"], origins["seed"]) == ("a.yaml", "command line")
    assert "# skipped entries that are no openai_model server: other_thing" in result.output
    assert "# at plain /v1: policy_model" in result.output


def test_environment_and_command_line_are_told_apart(folder: Path) -> None:
    origins = _origins(_show("++policy_api_key=environment-secret", THE_MODEL="m"))
    assert origins["openai_model"] == "a.yaml, $THE_MODEL in the environment"
    assert origins["openai_api_key"] == "a.yaml, ${policy_api_key} on the command line"


def test_json_has_value_and_origin(folder: Path) -> None:
    found = json.loads(_show("--json").output)
    assert found["servers"]["policy_model"]["max_retries"] == {"value": 7, "origin": "a.yaml, ${retries} in a.yaml"}
    assert found["servers"]["policy_model"]["openai_api_key"]["value"] == "***"
    assert found["default_server"] == "policy_model"


def test_validate_says_ok_or_every_mistake(folder: Path) -> None:
    result = _show("--validate")
    assert (result.exit_code, result.output) == (0, "ok: 1 server, policy_model; at plain /v1: policy_model\n")
    result = _show("--validate", f"++{PREFIX}.max_retrys=1", THE_KEY=None)
    assert result.exit_code == 2
    assert result.output.startswith("openai_gateway: 2 problems in the config:\n")


def test_overrides_of_the_environment_count_and_those_given_win(folder: Path) -> None:
    handed_down = json.dumps([f"++{PREFIX}.max_queue=1", f"++{PREFIX}.max_retries=1"])
    result = _show("--json", f"++{PREFIX}.max_queue=2", OPENAI_GATEWAY_OVERRIDES=handed_down)
    server = json.loads(result.output)["servers"]["policy_model"]
    assert (server["max_queue"]["value"], server["max_retries"]["value"]) == (2, 1)
    result = _show(OPENAI_GATEWAY_OVERRIDES="[1]")
    assert (result.exit_code, "a JSON list such as" in result.output) == (2, True)
    result = _show("++a=1", OPENAI_GATEWAY_OVERRIDES="{")
    assert (result.exit_code, "unset it" in result.output) == (2, True)


def test_several_files_with_commas_or_repeated(folder: Path) -> None:
    (folder / "b.yaml").write_text("retries: 8\n")
    for arguments in (["--config", "b.yaml"], ["--config", "a.yaml,b.yaml"]):
        origins = _origins(_show(*arguments))
        assert origins["max_retries"] == "a.yaml, ${retries} in b.yaml"
