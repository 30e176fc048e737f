"""`openai-gateway init`, as a newcomer in an empty folder meets it, and `openai-gateway docs`."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from openai_gateway.cli.docs import read_pages
from openai_gateway.cli.main import main
from tests.support.processes import ROOT, Gunicorn
from tests.support.terminals import run_on_terminal

KEY = "sk-upstream-key"
CONFIG = """
policy_model:
  responses_api_models:
    openai_model:
      openai_base_url: ${policy_base_url}
      openai_api_key: ${policy_api_key}
      openai_model: ${policy_model_name}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/openai_model.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _init(*arguments: str, given: str) -> Result:
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": None, "OPENAI_GATEWAY_ENV_YAML": None, "OPENAI_GATEWAY_OVERRIDES": None}
    result = CliRunner(env=environ).invoke(main, ["init", *arguments], input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert KEY not in result.output
    return result


def test_three_answers_make_an_env_yaml_that_works(folder: Path, simulator: Gunicorn) -> None:
    """A URL without a path gets /v1."""
    result = _init(given=f"{simulator.url}\n{KEY}\ngpt-5-mini\n")
    assert result.exit_code == 0, result.output
    assert "All is well." in result.output
    assert "openai-gateway serve" in result.output
    path = folder / "env.yaml"
    assert yaml.safe_load(path.read_text()) == {
        "policy_base_url": f"{simulator.url}/v1",
        "policy_api_key": KEY,
        "policy_model_name": "gpt-5-mini",
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_endpoint_that_refuses_the_key_is_exit_code_1_and_says_what_to_mend(folder: Path, simulator: Gunicorn) -> None:
    result = _init("--base-url", f"{simulator.url}/v1", "--model", "m", given="sk-wrong\n")
    assert result.exit_code == 1
    assert "set openai_api_key (now from conf/openai_model.yaml, ${policy_api_key} in env.yaml)" in result.output
    assert (folder / "env.yaml").exists()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f'"{KEY}"', "a quote"),
        ("$OPENAI_API_KEY", "oc.env"),
        (f"Bearer {KEY}", "no Bearer"),
        (f"{KEY[:5]} {KEY[5:]}x", "no Bearer"),
    ],
)
def test_key_that_cant_be_one_is_asked_for_again(folder: Path, key: str, said: str) -> None:
    result = _init("--no-check", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", given=f"{key}\nsk-right\n")
    assert (result.exit_code, said in result.output) == (0, True), result.output
    assert yaml.safe_load((folder / "env.yaml").read_text())["policy_api_key"] == "sk-right"


def test_env_yaml_that_is_there_is_left_as_it_is(folder: Path) -> None:
    (folder / "env.yaml").write_text("mine: 1\n")
    result = _init(given="")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "edit it, or move it away" in result.stderr
    assert (folder / "env.yaml").read_text() == "mine: 1\n"


def test_url_that_is_none_is_refused_with_a_word(folder: Path) -> None:
    result = _init("--no-check", "--base-url", "api.openai.com", given="")
    assert (result.exit_code, "a URL such as" in result.stderr) == (2, True)


def test_key_is_not_echoed_on_a_terminal(folder: Path) -> None:
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "openai_gateway.cli", "init", "--no-check", "--model", "m"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_GATEWAY_ENV_YAML": str(folder / "mine.yaml")}
    process = subprocess.Popen(
        [*command, "--base-url", "http://x/v1"], stdin=its, stdout=its, stderr=its, env=environ, start_new_session=True
    )
    os.close(its)
    shown = b""
    try:
        while b"API key" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, KEY.encode() + b"\n")
        while b"Wrote" not in shown:
            shown += os.read(ours, 1000)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(60)
        os.close(ours)
    assert KEY.encode() not in shown
    assert KEY in (folder / "mine.yaml").read_text()


def test_docs_lists_every_page_with_what_is_in_it() -> None:
    result = CliRunner().invoke(main, ["docs"])
    pages = sorted(path.stem for path in (ROOT / "openai_gateway/docs").glob("*.md"))
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == pages
    assert pages


@pytest.mark.parametrize("given", ["troubleshooting", "troubleshooting.md"])
def test_page_that_is_piped_is_the_file_as_it_is(given: str) -> None:
    result = CliRunner().invoke(main, ["docs", given])
    assert result.stdout == (ROOT / "openai_gateway/docs/troubleshooting.md").read_text()


def test_unknown_page_names_what_is_near() -> None:
    result = CliRunner().invoke(main, ["docs", "trobleshooting"])
    assert (result.exit_code, "did you mean 'troubleshooting'?" in result.stderr) == (2, True)


def test_page_on_a_terminal_fits_it_and_goes_through_a_pager(tmp_path: Path) -> None:
    shown = run_on_terminal(["docs", "architecture"], tmp_path, {"PAGER": "sed s/^/paged:/"}, columns=60)
    lines = shown.splitlines()
    assert all(line.startswith("paged:") for line in lines)
    assert "Architecture" in lines[0]
    assert max(len(line) for line in lines) <= 60 + len("paged:")


def test_pages_are_in_the_package() -> None:
    assert "configuration" in read_pages()
