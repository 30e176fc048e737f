"""What README and pages say is so: their commands, links and examples, and the configs that are shipped."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from openai_gateway import errors
from openai_gateway.cli.main import main
from openai_gateway.config import load_config
from openai_gateway.config.reference import put_tables
from openai_gateway.simulator.settings import SimulatorSettings, load_settings
from openai_gateway.wire.call import CallRecord
from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "openai_gateway" / "docs").glob("*.md"))
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *PAGES, *ROOT.glob(".github/*.md")]
}
CONFIGURATION = TEXTS["openai_gateway/docs/configuration.md"]
ENV_YAML = (
    "policy_base_url: http://p/v1\npolicy_api_key: sk-p\npolicy_model_name: p\n"
    "judge_base_url: http://j/v1\njudge_api_key: sk-j\njudge_model_name: j\n"
)


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
    assert commands[1].endswith("python -m pytest -n 6 --dist loadfile")


def test_tables_of_keys_are_those_of_the_declarations() -> None:
    assert put_tables(CONFIGURATION) == CONFIGURATION, (
        "run: python -m openai_gateway.config.reference openai_gateway/docs/configuration.md"
    )


def _find_blocks(language: str) -> list[tuple[str, str]]:
    return [
        (name, block)
        for name, text in TEXTS.items()
        for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(("name", "block"), _find_blocks("yaml"))
def test_config_in_a_page_loads(folder: Path, name: str, block: str) -> None:
    assert isinstance(yaml.safe_load(block), dict)
    if "responses_api_models" in block:
        (folder / "snippet.yaml").write_text(block)
        assert load_config({"OPENAI_GATEWAY_CONFIG_PATHS": "snippet.yaml"}, cwd=folder).servers


@pytest.mark.parametrize(("name", "block"), _find_blocks("bash"))
def test_commands_in_a_page_are_shell_and_their_options_are_there(name: str, block: str) -> None:
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False).stderr == ""
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            is_first = at == 0 or words[at - 1] in ("&&", ";", "|")
            if is_first and word in ("openai-gateway", ".venv/bin/openai-gateway"):
                _check_options(words[at + 1 :])


def _check_options(words: list[str]) -> None:
    end = next((at for at, word in enumerate(words) if word in ("&", "&&", "|", ">", ";")), len(words))
    name, *arguments = words[:end]
    command = (
        main
        if name.startswith("-")
        else getattr(importlib.import_module(f"openai_gateway.cli.{name}"), f"{name}_command")
    )
    while isinstance(command, click.Group) and command is not main:
        command, *arguments = command.commands[arguments[0]], *arguments[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known


def test_every_command_is_listed_in_the_readme() -> None:
    listed = set(re.findall(r"^\| `openai-gateway (\w+)", README, re.MULTILINE))
    assert listed == set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_paths_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[name]):
        assert link.startswith("https://") or (folder / link).exists(), link
    for path in re.findall(r"`((?:conf|tests|openai_gateway|\.ci|\.github)/[\w./-]*)`", TEXTS[name]):
        assert (ROOT / path).exists(), path


def test_names_in_the_architecture_page_are_there() -> None:
    text = TEXTS["openai_gateway/docs/architecture.md"]
    for path, _, name in re.findall(r"`([a-z_/]+(?:\.py|/))(:(\w+))?`", text):
        module = next((folder / path for folder in (ROOT / "openai_gateway", ROOT) if (folder / path).exists()), None)
        assert module is not None, path
        assert not name or re.search(rf"^(?:class|def) {name}\b", module.read_text(), re.MULTILINE), f"{path}:{name}"
    floors = {
        room.strip("`/").removesuffix(".py"): int(floor)
        for floor, rooms in re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE)
        for room in rooms.split(", ")
    }
    ranks = [{room for room, floor in FLOORS.items() if floor == rank} for rank in sorted({*FLOORS.values()})]
    assert [{room for room, floor in floors.items() if floor == rank} for rank in sorted({*floors.values()})] == ranks


def test_every_page_is_in_the_readmes_table() -> None:
    assert {f"openai_gateway/docs/{path.name}" for path in PAGES} <= set(re.findall(r"\]\(([^)]+)\)", README))


def test_every_code_of_the_gateways_own_errors_is_in_the_table_of_errors() -> None:
    table = TEXTS["openai_gateway/docs/relaying.md"].partition("## Errors of the gateway itself")[2].partition("## ")[0]
    source = "\n".join(
        path.read_text() for path in (ROOT / "openai_gateway").rglob("*.py") if "simulator" not in path.parts
    )
    codes = {code for kind in vars(errors).values() if isinstance(kind, type) and (code := getattr(kind, "code", None))}
    codes |= set(re.findall(r'\bcode="(\w+)"', source))
    assert codes <= set(re.findall(r"`(\w+)`", table))


def test_every_field_of_the_usage_log_is_in_the_table_of_fields() -> None:
    table = TEXTS["openai_gateway/docs/operations.md"].partition("## Usage log")[2].partition("## ")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(CallRecord.__struct_fields__)


def test_sample_row_is_one_that_collect_takes_and_its_first_command_estimates_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [block for name, block in _find_blocks("json") if "_params" in block or "messages" in block]
    assert rows
    monkeypatch.chdir(folder)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(json.loads(row)) + "\n" for row in rows))
    command = next(line for _, block in _find_blocks("bash") for line in block.splitlines() if "--dry-run" in line)
    result = CliRunner().invoke(main, shlex.split(command, comments=True)[1:])
    assert result.exit_code == 0, result.output
    assert str(4 * len(rows)) in result.output


def test_shipped_configs_load_alone_and_together(folder: Path) -> None:
    assert load_config({}, cwd=folder).default_server == "policy_model"
    paths = "conf/openai_model.yaml,conf/openai_judge_model.yaml"
    both = load_config({"OPENAI_GATEWAY_CONFIG_PATHS": paths}, cwd=folder)
    assert set(both.servers) == {"policy_model", "judge_model"}
    (folder / "env.yaml").write_text((ROOT / "conf" / "env.example.yaml").read_text().replace("sk-...", "sk-mine"))
    assert load_config({}, cwd=folder).servers["policy_model"].openai_base_url == "https://api.openai.com/v1"


def test_shipped_simulator_settings_are_the_defaults() -> None:
    assert load_settings(ROOT / "conf" / "simulator.yaml", {}) == SimulatorSettings()
