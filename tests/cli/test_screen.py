"""What commands draw: right on a terminal of 80 and of 60 columns, plain and whole anywhere else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.support.records import to_record
from tests.support.terminals import run_on_terminal

COMMAND = [sys.executable, "-m", "openai_gateway.cli"]
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    models = ("gpt-5-mini", "a-model-with-a-name-that-is-longer-than-any-column")
    lines = [msgspec.json.encode(to_record(model=model)) for model in models]
    (tmp_path / "u.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path


@pytest.mark.parametrize(("columns", "left_out"), [(120, []), (80, ["left", "retries"]), (60, ["left", "reasoning"])])
def test_table_fits_the_terminal_and_says_what_is_left_out(log: Path, columns: int, left_out: list[str]) -> None:
    shown = _STYLE.sub("", run_on_terminal(["usage", "u.jsonl"], log, columns=columns)).splitlines()
    assert max(map(len, shown)) <= columns
    assert "gpt-5-mini" in "".join(shown)
    said = "".join(shown).partition("Left out")[2]
    assert all(name in said for name in left_out)
    assert bool(said) == bool(left_out)


def test_table_elsewhere_is_whole_and_plain(log: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "usage", "u.jsonl"], cwd=log, capture_output=True, text=True, timeout=60, check=True
    )
    head, rule, *rows = ended.stdout.splitlines()
    assert head.split()[-2:] == ["cost", "USD"]
    assert set(rule) == {"-"}
    assert any(row.startswith("a-model-with-a-name-that-is-longer-than-any-column ") for row in rows)
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize(("no_color", "is_styled"), [("", True), ("1", False)])
def test_colours_are_for_terminals_whose_reader_wants_them(log: Path, no_color: str, is_styled: bool) -> None:
    shown = run_on_terminal(["config"], log, {**CONFIG, "NO_COLOR": no_color})
    assert ("\x1b[" in shown) == is_styled


CONFIG = {
    "OPENAI_GATEWAY_CONFIG_PATHS": "",
    "OPENAI_GATEWAY_OVERRIDES": '["++policy_base_url=http://x/v1","++policy_api_key=sk-x1234567","++policy_model_name=m"]',
}


def test_config_puts_an_origin_below_a_value_where_there_is_no_room_beside_it(log: Path) -> None:
    shown = _STYLE.sub("", run_on_terminal(["config"], log, CONFIG)).splitlines()
    assert max(map(len, shown)) <= 80
    at = next(number for number, line in enumerate(shown) if "openai_model: m" in line)
    assert "#" not in shown[at]
    assert shown[at + 1].startswith("        # ")
    assert any(re.fullmatch(r" +max_queue: null +# default", line) for line in shown)
