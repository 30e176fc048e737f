"""Clients that are not openai-python: Azure's, the JDK's two, Node's, curl, each in a process of its own language."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.processes import Gunicorn, eventually, run_gateway

KEY = "gw-key-0123456789"
CLIENTS = Path(__file__).parent / "clients"
MESSAGES: list[Any] = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(scope="module", params=["shortcut", "flask"])
def keyed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, simulator: Gunicorn
) -> Iterator[Gunicorn]:
    settings = {"gateway_api_keys": [KEY], "max_retries": 0}
    arguments = ["--access-logfile", "/dev/null"] if request.param == "flask" else []
    folder, environ = tmp_path_factory.mktemp("keyed"), {"INSPECTED_WAY": request.param}
    with run_gateway(folder, simulator.url, settings, *arguments, environ=environ) as running:
        yield running
        eventually(lambda: running.inspect()["in_flight"] == 0)
        assert "Traceback" not in running.log()


def _needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@_needs("java")
def test_both_clients_of_the_jdk(keyed: Gunicorn) -> None:
    # A JVM that is about to end need not compile and collect as one that stays.
    hasty = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    told = _run("java", *hasty, str(CLIENTS / "JdkClient.java"), f"{keyed.url}/v1", KEY)
    assert len(told.splitlines()) == 9


@_needs("node")
def test_fetch_of_node(keyed: Gunicorn) -> None:
    told = _run("node", str(CLIENTS / "fetch.mjs"), f"{keyed.url}/v1", KEY)
    assert len(told.splitlines()) == 5


@_needs("curl")
@pytest.mark.parametrize("more", [[], ["-H", "expect: 100-continue"], ["--http1.0"], ["--http2"], ["--compressed"]])
def test_curl(more: list[str], keyed: Gunicorn, tmp_path: Path) -> None:
    (tmp_path / "large.json").write_text(json.dumps({"input": "x" * 2_000_000}))
    (tmp_path / "small.json").write_text(json.dumps({"input": "Say hello", "stream": True}))
    common = ["curl", "-sS", "-w", "%{http_code}", "-H", "content-type: application/json", *more]
    url = f"{keyed.url}/v1/responses"
    for name, key, end in (("large", KEY, "200"), ("small", KEY, "200"), ("large", "wrong", "401")):
        told = _run(*common, "-H", f"authorization: Bearer {key}", "-d", f"@{tmp_path / name}.json", url)
        assert told.endswith(end)
        assert ("response.completed" in told) is (name == "small")


@pytest.fixture
def azure(keyed: Gunicorn) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(azure_endpoint=keyed.url, api_key=KEY, api_version="2024-10-21", max_retries=0) as client:
        yield client


def test_azures_client_calls_both_apis(azure: openai.AzureOpenAI) -> None:
    completion = azure.chat.completions.create(model="any-deployment", messages=MESSAGES)
    assert completion.model == "the-model"
    chunks = list(azure.chat.completions.create(model="any-deployment", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).startswith("You said")
    made = azure.responses.create(model="any-deployment", input="Say hello")
    assert made.output_text.startswith("You said: Say hello.")
    events = list(azure.responses.create(model="any-deployment", input="Say hello", stream=True))
    assert events[-1].type == "response.completed"
    assert azure.responses.retrieve(made.id).id == made.id
    azure.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        azure.responses.retrieve(made.id)
    assert [model.id for model in azure.models.list().data] == ["the-model"]


def test_azures_newer_base_url_is_served(keyed: Gunicorn) -> None:
    with openai.OpenAI(base_url=f"{keyed.url}/openai/v1/", api_key=KEY, max_retries=0) as client:
        assert client.responses.create(model="m", input="Say hello").status == "completed"
        assert client.chat.completions.create(model="m", messages=MESSAGES).choices


def test_azures_client_with_a_wrong_key_is_refused_as_it_expects(keyed: Gunicorn) -> None:
    with (
        openai.AzureOpenAI(azure_endpoint=keyed.url, api_key="wrong", api_version="2024-10-21") as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.chat.completions.create(model="any-deployment", messages=MESSAGES)
    assert raised.value.code == "invalid_api_key"
