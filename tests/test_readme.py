"""What the README says is so: its commands, its config, its reference, and the configs that are shipped."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from openai_gateway.config import ServerConfig, load_config
from openai_gateway.simulator.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ENV_YAML = (
    "policy_base_url: http://p/v1\npolicy_api_key: sk-p\npolicy_model_name: p\n"
    "judge_base_url: http://j/v1\njudge_api_key: sk-j\njudge_model_name: j\n"
)
KINDS = {"bool": "boolean", "int": "integer", "float": "number", "Secret": "string", "tuple[Secret, ...]": "list"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "env.yaml").write_text(ENV_YAML)
    return tmp_path


def test_quick_start_has_exactly_two_commands() -> None:
    section = README.partition("## Quick start")[2].partition("With a real key")[0]
    commands = [block.strip() for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert commands[0].endswith("openai-gateway demo")
    assert commands[1].endswith("pytest")


def test_every_key_is_in_the_reference_with_its_type_and_default() -> None:
    table = README.partition("## Config reference")[2].partition("## ")[0]
    rows = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            rows.update(dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), (cells[1], cells[2].strip("`"))))
    for field in dataclasses.fields(ServerConfig):
        if field.name in ("name", "prices"):
            continue
        kind, default = rows[field.name]
        # Annotations are strings here: the first word is the type, "None" aside.
        assert kind == KINDS.get(str(field.type).split(" |")[0], kind), field.name
        if isinstance(field.default, bool):
            assert default == str(field.default).lower()
        elif isinstance(field.default, int | float):
            assert float(default) == field.default
        elif field.default is None and field.name != "openai_api_key":
            assert default == "null"


def test_config_snippet_of_the_readme_loads(folder: Path) -> None:
    snippet = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
    (folder / "snippet.yaml").write_text(snippet)
    config = load_config({"OPENAI_GATEWAY_CONFIG_PATHS": "snippet.yaml"}, cwd=folder)
    assert config.servers["policy_model"].max_concurrent_requests == 64


def test_shipped_configs_load_alone_and_together(folder: Path) -> None:
    assert load_config({}, cwd=folder).default_server == "policy_model"
    paths = "conf/openai_model.yaml,conf/openai_judge_model.yaml"
    both = load_config({"OPENAI_GATEWAY_CONFIG_PATHS": paths}, cwd=folder)
    assert set(both.servers) == {"policy_model", "judge_model"}
    (folder / "env.yaml").write_text((ROOT / "conf" / "env.example.yaml").read_text())
    assert load_config({}, cwd=folder).servers["policy_model"].openai_base_url == "https://api.openai.com/v1"


def test_shipped_simulator_settings_are_the_defaults() -> None:
    assert load_settings(ROOT / "conf" / "simulator.yaml", {}) == Settings()
