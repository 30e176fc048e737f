"""What the simulator's settings and metadata may be, and what is said of those that may not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_gateway.simulator.settings import Script, SettingsError, SimulatorSettings, load_settings, script_of
from tests.simulator.calling import make_client, respond
from tests.support.processes import ROOT


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "simulator.yaml"
    path.write_text("latency_ms: 5\nevent_gap_ms: 6\nmodels: [a]\n")
    settings = load_settings(path, {"latency_ms": 7})
    assert settings == SimulatorSettings(models=("a",), script=Script(latency_ms=7, event_gap_ms=6))


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"latencyms": 5, "rpm": 0, "fault": "explode"})
    said = str(caught.value)
    assert "did you mean 'latency_ms'?" in said
    assert "'rpm' must be a whole number from 1, or null, not 0" in said
    assert "drop_in_stream" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("models", "abc", id="a string is not a list of models"),
        pytest.param("models", [1], id="a number is not a model"),
        pytest.param("apis", ["embeddings"], id="an API that is not simulated"),
        pytest.param("api_key", "", id="an empty key"),
        pytest.param("tpm", "many", id="a word is not a number"),
        pytest.param("tpm", True, id="true is not a number"),
        pytest.param("latency_ms", -1, id="time does not run backwards"),
        pytest.param("latency_ms", 1.5, id="milliseconds are whole"),
        pytest.param("latency_ms", None, id="null is not a number"),
        pytest.param("status", 999, id="no such status"),
        pytest.param("status", 200, id="success is not scripted"),
        pytest.param("events", 10**9, id="more events than a test wants"),
        pytest.param("retry_after", "1\r\nx: y", id="a header in a header"),
        pytest.param("key", None, id="null is not a name"),
        pytest.param("should_retry", [], id="a list is not a header"),
    ],
)
def test_impossible_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"'{name}' must be"):
        load_settings(None, {name: value})


@pytest.mark.parametrize("text", ["a: [", "- a\n", "\xff"], ids=["broken", "a list", "not UTF-8"])
def test_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "simulator.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"simulator\.yaml"):
        load_settings(path, {})


def test_every_setting_of_a_script_is_a_metadata_key_and_is_shipped() -> None:
    values = {"fault": "html_502", "status": "429", "should_retry": "true"}
    names = {field.name for field in dataclasses.fields(Script)}
    metadata = {f"sim_{name}": values.get(name, "3") for name in names}
    script = script_of(SimulatorSettings(), {"metadata": {**metadata, "other": "x"}})
    assert (script.status, script.after, script.key, script.fault) == (429, 3, "3", "html_502")
    shipped = yaml.safe_load((ROOT / "conf" / "simulator.yaml").read_text())
    general = {field.name for field in dataclasses.fields(SimulatorSettings)} - {"script"}
    assert set(shipped) == names | general


def test_wrong_metadata_is_told_with_its_prefix() -> None:
    error = respond(make_client(), metadata={"sim_latency": "5", "sim_status": "x"}).json["error"]
    assert error["param"] == "metadata"
    assert "unknown setting 'sim_latency'; did you mean 'sim_latency_ms'?" in error["message"]
    assert "'sim_status' must be" in error["message"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [('{"rpm": "x"}', "'rpm' must be"), ("[]", "not a JSON object"), ("{", "not JSON")],
    ids=["a wrong value", "a list", "not JSON"],
)
def test_wrong_settings_end_the_worker_with_one_message(overrides: str, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import openai_gateway.simulator.wsgi"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_GATEWAY_SIMULATOR_OVERRIDES": overrides},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (4, 1)
    assert said in ended.stderr
