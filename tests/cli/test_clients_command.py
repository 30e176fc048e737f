"""`openai-gateway clients`: a key is shown once, the file keeps its hash; what else the file holds stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from openai_gateway.cli.main import main
from openai_gateway.config.clients import parse_clients


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["clients", *arguments])


def test_client_is_made_listed_and_taken_out() -> None:
    path = Path("clients.yaml")
    made = _run("add", "policy-team", "--budget", "20", "--per", "day", "--expires", "2026-12-31")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith("gw-")
    assert key not in path.read_text()
    assert "set clients_file: clients.yaml" in made.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    assert getattr(parse_clients(path.read_text(), frozenset()).find(key.encode()), "name", None) == "policy-team"
    path.write_text(f"# ours\n{path.read_text()}")
    assert _run("add", "second").exit_code == 0
    listed = _run("list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["client", "policy-team", "second"]
    assert "$20.00 a day" in listed[1]
    assert "2027-01-01 00:00 UTC" in listed[1]
    assert _run("remove", "policy-team").exit_code == 0
    assert path.read_text().startswith("# ours\n")
    assert list(parse_clients(path.read_text(), frozenset()).by_name) == ["second"]


def test_file_of_the_config_is_the_one_that_is_changed() -> None:
    Path("conf").mkdir()
    Path("conf/openai_model.yaml").write_text("clients_file: team/clients.yaml\n")
    Path("team").mkdir()
    made = _run("add", "a")
    assert (made.exit_code, "set clients_file" in made.stderr) == (0, False)
    assert Path("team/clients.yaml").exists()
    assert _run("add", "b", "--file", "other.yaml").exit_code == 0
    assert "b:" in Path("other.yaml").read_text()


@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        pytest.param("a: {key: k}\n", ["add", "a"], "has a client a", id="a name that is taken"),
        pytest.param("", ["add", "a b"], "a name is 1 to 64 letters", id="a name that is none"),
        pytest.param("", ["add", "a", "--per", "day"], "--per says what --budget is for", id="a period of nothing"),
        pytest.param("", ["add", "a", "--expires", "soon"], "expires: a date", id="no date"),
        pytest.param("{a: {key: k}}\n", ["add", "b"], "not valid YAML", id="a file in braces"),
        pytest.param("{a: {key: k}}\n", ["remove", "a"], "take a out by hand", id="a file in braces, to remove"),
        pytest.param("a: [\n", ["list"], "not valid YAML", id="a broken file"),
        pytest.param("", ["remove", "a"], "has no client a", id="nobody to remove"),
    ],
)
def test_what_can_not_be_done_is_said_and_leaves_the_file(before: str, arguments: list[str], said: str) -> None:
    Path("clients.yaml").write_text(before)
    result = _run(*arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert Path("clients.yaml").read_text() == before
