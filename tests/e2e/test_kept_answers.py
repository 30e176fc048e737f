"""Kept answers through real gunicorn: paid for once, replayed byte for byte, one call for all who ask at once."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import yaml

from tests.support.processes import Gunicorn, eventually, run_gateway, run_simulator
from tests.support.upstreams import (
    LAST_CHUNK,
    PATHS,
    STREAM_HEAD,
    Conversation,
    run_upstream,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)

APIS = ("chat", "responses")
CALLS = [(api, stream) for api in APIS for stream in (False, True)]


def _settings(folder: Path, mode: str, **more: Any) -> dict[str, Any]:
    return {
        "recordings": mode,
        "recordings_dir": str(folder / "kept"),
        "usage_log": str(folder / "usage.jsonl"),
        **more,
    }


def _count(simulator: Gunicorn) -> int:
    count: int = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()["requests"]
    return count


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, simulator: Gunicorn) -> Iterator[tuple[Gunicorn, Path]]:
    folder = tmp_path_factory.mktemp("kept")
    with run_gateway(folder, simulator.url, _settings(folder, "reuse"), "-w", "2") as gateway:
        yield gateway, folder


def _ask(gateway: Gunicorn, api: str, *, path: str = "", stream: bool = False, **headers: str) -> requests.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    url = gateway.url + path + PATHS[api]
    return requests.post(url, json=to_request_body(api, stream=stream), headers=given, timeout=60)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_second_run_is_the_same_and_costs_nothing(
    api: str, stream: bool, kept: tuple[Gunicorn, Path], simulator: Gunicorn
) -> None:
    gateway, _ = kept
    first = [_ask(gateway, api, stream=stream, x_gateway_run=f"{api}-{stream}-1") for _ in range(3)]
    assert [answer.headers["cache-status"] for answer in first] == ["openai_gateway; fwd=miss; stored"] * 3
    before = _count(simulator)
    again = [_ask(gateway, api, stream=stream, x_gateway_run=f"{api}-{stream}-2") for _ in range(3)]
    assert [answer.content for answer in again] == [answer.content for answer in first]
    assert [answer.headers["cache-status"] for answer in again] == ["openai_gateway; hit"] * 3
    assert all(int(answer.headers["age"]) >= 0 and answer.headers["x-gateway-attempts"] == "0" for answer in again)
    assert [answer.headers["content-type"] for answer in again] == [answer.headers["content-type"] for answer in first]
    assert _count(simulator) == before
    fourth = _ask(gateway, api, stream=stream, x_gateway_run=f"{api}-{stream}-2")
    assert fourth.headers["cache-status"] == "openai_gateway; fwd=miss; stored"


def test_what_was_saved_is_in_the_usage_log(kept: tuple[Gunicorn, Path]) -> None:
    gateway, folder = kept
    _ask(gateway, "chat", path="/ng-rollout/saved", cache_control="no-cache")
    _ask(gateway, "chat", path="/ng-rollout/saved")

    def read() -> list[dict[str, Any]]:
        lines = map(json.loads, (folder / "usage.jsonl").read_text().splitlines())
        # Two workers write, each a little after the call.
        return sorted((line for line in lines if line["rollout_id"] == "saved"), key=lambda line: line["time"])

    eventually(lambda: len(read()) == 2)
    assert [line["is_replayed"] for line in read()] == [False, True]
    assert (read()[1]["cost_usd"], read()[1]["usage"]) == (0.0, read()[0]["usage"])


def test_rollout_asks_again_and_gets_its_own_answer(kept: tuple[Gunicorn, Path]) -> None:
    gateway, _ = kept
    one = _ask(gateway, "responses", path="/ng-rollout/a1", x_gateway_run="askers")
    other = _ask(gateway, "responses", path="/ng-rollout/a2", x_gateway_run="askers")
    assert one.json()["id"] != other.json()["id"]
    assert _ask(gateway, "responses", path="/ng-rollout/a1", x_gateway_run="askers").content == one.content


def test_http_words_are_followed(kept: tuple[Gunicorn, Path]) -> None:
    gateway, _ = kept
    body = {"model": "m", "messages": [{"role": "user", "content": "never asked before"}]}

    def ask(directive: str) -> requests.Response:
        url = gateway.url + PATHS["chat"]
        return requests.post(url, json=body, headers={"cache-control": directive, "x-gateway-run": "w"}, timeout=60)

    miss = ask("only-if-cached")
    assert (miss.status_code, miss.json()["error"]["code"]) == (504, "gateway_no_recording")
    assert miss.headers["x-should-retry"] == "false"
    assert ask("no-store").headers["cache-status"] == "openai_gateway; fwd=request"
    assert ask("only-if-cached").status_code == 504
    assert ask("no-cache").headers["cache-status"] == "openai_gateway; fwd=request; stored"


def test_stateful_calls_pass_by(kept: tuple[Gunicorn, Path]) -> None:
    gateway, _ = kept
    for more in ({"store": True}, {"previous_response_id": "resp_1"}):
        answer = requests.post(gateway.url + PATHS["responses"], json={"input": "x", **more}, timeout=60)
        assert answer.headers["cache-status"] == "openai_gateway; fwd=bypass"


def test_folder_alone_is_enough_to_replay(tmp_path: Path) -> None:
    with run_simulator(tmp_path) as simulator:
        settings = _settings(tmp_path, "record", extra_body_chat={"temperature": 0.5})
        with run_gateway(tmp_path, simulator.url, settings) as gateway:
            live = [_ask(gateway, api, stream=stream) for api, stream in CALLS]
            live_by_client = _ask_by_official_client(gateway.url)
    config = yaml.safe_load((tmp_path / "kept" / "replay.yaml").read_text())
    assert "sk-" not in json.dumps(config)
    command = [sys.executable, "-m", "openai_gateway.cli", "serve", "--replay", str(tmp_path / "kept"), "--port", "0"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with subprocess.Popen(command, cwd=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            lines = (line.decode() for line in process.stdout)
            told = "".join(itertools.takewhile(lambda line: "Starting gunicorn" not in line, lines))
            assert f"never called: answers are those in {tmp_path / 'kept'}" in told
            found = re.search(r"serves +(http://[\d.:]+)/v1", told)
            assert found is not None
            url = found[1]
            eventually(lambda: _is_up(url))
            for api, stream in CALLS:
                answer = requests.post(url + PATHS[api], json=to_request_body(api, stream=stream), timeout=60)
                assert answer.content == live.pop(0).content
            assert _ask_by_official_client(url) == live_by_client
            missing = requests.post(url + PATHS["chat"], json=to_request_body("chat"), timeout=60)
            assert missing.json()["error"]["code"] == "gateway_no_recording"
        finally:
            process.terminate()


def _ask_by_official_client(url: str) -> list[Any]:
    """Return what the openai SDK makes of each API's answers, whole and streamed."""
    messages: Any = [{"role": "user", "content": "from the SDK"}]
    with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:
        whole = [
            client.responses.create(model="m", input="from the SDK"),
            client.chat.completions.create(model="m", messages=messages),
        ]
        events = list(client.responses.create(model="m", input="from the SDK", stream=True))
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    assert (events[-1].type, chunks[-1].choices[0].finish_reason) == ("response.completed", "stop")
    return [found.model_dump() for found in (*whole, *events, *chunks)]


def _is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=60).ok
    except requests.RequestException:
        return False


def test_equal_calls_at_once_are_one_call(kept: tuple[Gunicorn, Path], simulator: Gunicorn) -> None:
    gateway, _ = kept
    body = {"model": "m", "input": "all at once"}
    before = _count(simulator)

    def ask(_: int) -> requests.Response:
        return requests.post(f"{gateway.url}/ng-rollout/once/v1/responses", json=body, timeout=60)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({(answer.content, answer.headers["x-request-id"]) for answer in answers}) == 1
    assert _count(simulator) == before + 1


def test_who_waits_for_a_call_is_not_told_what_its_clients_own_header_was_refused_for(tmp_path: Path) -> None:
    has_come, go_on = threading.Event(), threading.Event()

    def refuse_project(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if "openai-project" in request.headers:
                has_come.set()
                go_on.wait(120)
                talk.send(to_answer(b'{"error": {"code": "mismatched_project"}}', status="401 No"))
            else:
                talk.send(to_answer(b'{"choices":[]}'))

    settings = _settings(tmp_path, "reuse", max_retries=0)
    with run_upstream(refuse_project) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        url = f"{gateway.url}/ng-rollout/r1{PATHS['chat']}"
        body = to_request_body("chat")
        with ThreadPoolExecutor(2) as pool:
            own = pool.submit(requests.post, url, json=body, headers={"openai-project": "mine"}, timeout=60)
            assert has_come.wait(60)
            other = pool.submit(requests.post, url, json=body, timeout=60)
            # Waits, or is still on its way, in which case it makes a call of its own.
            time.sleep(0.5)
            go_on.set()
            assert (own.result(60).status_code, other.result(60).status_code) == (401, 200)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_cut_answer_is_not_kept(stream: bool, tmp_path: Path) -> None:
    def cut(talk: Conversation) -> None:
        talk.read_request()
        if stream:
            talk.send(STREAM_HEAD + to_chunk(to_event("chat", "x")))
        else:
            talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{")

    settings = _settings(tmp_path, "reuse", max_retries=0)
    with run_upstream(cut) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        for _ in range(2):
            _ask(gateway, "chat", path="/ng-rollout/r1", stream=stream)
        assert len(upstream.requests) == 2
        assert not list((tmp_path / "kept").glob("*.segment"))


def test_stream_comes_as_far_apart_as_it_was_recorded(tmp_path: Path) -> None:
    def stream(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD)
        for _ in range(3):
            talk.send(to_chunk(to_event("chat", "x")))
            time.sleep(0.3)
        talk.send(to_chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    settings = _settings(tmp_path, "reuse", replay_speed="recorded")
    with run_upstream(stream) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        arrivals = []
        for _ in range(2):
            started, pieces = time.monotonic(), []
            body = to_request_body("chat", stream=True)
            url = f"{gateway.url}/ng-rollout/r1{PATHS['chat']}"
            with requests.post(url, json=body, stream=True, timeout=60) as answer:
                while piece := answer.raw.read1(65536):
                    pieces.append((piece, time.monotonic() - started))
            arrivals.append(pieces)
        assert len(upstream.requests) == 1
        assert b"".join(piece for piece, _ in arrivals[0]) == b"".join(piece for piece, _ in arrivals[1])
        assert arrivals[1][-1][1] >= 0.6


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_call_goes_on_for_those_who_wait_when_its_first_client_leaves(
    stream: bool, workers: str, tmp_path: Path
) -> None:
    go_on = threading.Event()

    def slow(talk: Conversation) -> None:
        talk.read_request()
        if stream:
            talk.send(STREAM_HEAD + to_chunk(to_event("chat", "x")))
        go_on.wait(120)
        if stream:
            talk.send(to_chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
        else:
            talk.send(to_answer(b'{"choices":[]}'))

    settings = _settings(tmp_path, "reuse")
    body = to_request_body("chat", stream=stream)
    with run_upstream(slow) as upstream, run_gateway(tmp_path, upstream.url, settings, "-w", workers) as gateway:
        url = f"{gateway.url}/ng-rollout/r1{PATHS['chat']}"
        first = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
        first.request("POST", "/ng-rollout/r1" + PATHS["chat"], json.dumps(body), {"content-type": "application/json"})
        eventually(lambda: len(upstream.requests) == 1)
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(requests.post, url, json=body, timeout=60) for _ in range(4)]
            # Joined, or still on their way, in which case they join a call that is over.
            time.sleep(1)
            first.close()
            time.sleep(0.5)
            go_on.set()
            answers = [other.result(60) for other in others]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert len(upstream.requests) == 1
