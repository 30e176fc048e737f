"""Stored responses and completions, pages of them, counting, compacting, models, and errors in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.simulator.answer_store import AnswerStore, Stored
from openai_gateway.simulator.settings import Script
from tests.simulator.calling import Clock, chat, make_client, respond


def test_background_response_is_ready_after_its_latency() -> None:
    clock = Clock()
    client = make_client(clock, script=Script(latency_ms=500))
    made = respond(client, background=True).json
    assert (made["status"], made["output"], made["usage"]) == ("in_progress", [], None)
    assert client.get(f"/v1/responses/{made['id']}").json["status"] == "in_progress"
    clock.now_s = 0.5
    ready = client.get(f"/v1/responses/{made['id']}").json
    assert (ready["status"], ready["output"][0]["role"]) == ("completed", "assistant")
    assert client.post(f"/v1/responses/{made['id']}/cancel").json["status"] == "completed"


def test_background_response_stays_cancelled() -> None:
    clock = Clock()
    client = make_client(clock, script=Script(latency_ms=500))
    made = respond(client, background=True).json
    assert client.post(f"/v1/responses/{made['id']}/cancel").json["status"] == "cancelled"
    clock.now_s = 1.0
    assert client.get(f"/v1/responses/{made['id']}").json["status"] == "cancelled"


def test_stream_can_be_read_again_from_any_event() -> None:
    client = make_client()
    stream = respond(client, stream=True).text
    made = json.loads(stream.partition("data: ")[2].partition("\n")[0])["response"]["id"]
    assert client.get(f"/v1/responses/{made}?stream=true").text == stream
    rest = client.get(f"/v1/responses/{made}?stream=true&starting_after=4").text
    assert stream.endswith(rest)
    assert '"sequence_number": 5' in rest.partition("\n\n")[0]
    assert client.get(f"/v1/responses/{made}?stream=true&starting_after=x").status_code == 400


@pytest.mark.parametrize(
    ("body", "is_stored"), [({}, True), ({"store": None}, True), ({"store": True}, True), ({"store": False}, False)]
)
def test_response_is_stored_unless_told_otherwise(body: dict[str, Any], is_stored: bool) -> None:
    client = make_client()
    made = respond(client, **body).json["id"]
    assert (client.get(f"/v1/responses/{made}").status_code == 200) is is_stored
    following = respond(client, previous_response_id=made)
    assert following.status_code == (200 if is_stored else 400)
    if not is_stored:
        assert following.json["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize(("body", "is_stored"), [({}, False), ({"store": True}, True)])
def test_completion_is_stored_only_if_asked_for(body: dict[str, Any], is_stored: bool) -> None:
    client = make_client()
    made = chat(client, **body).json["id"]
    assert (client.get(f"/v1/chat/completions/{made}").status_code == 200) is is_stored


def test_input_items_come_last_first_a_page_at_a_time() -> None:
    client = make_client()
    given = [
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    url = f"/v1/responses/{respond(client, input=given).json['id']}/input_items"
    page = client.get(f"{url}?limit=2").json
    assert ([item["type"] for item in page["data"]], page["has_more"]) == (
        ["function_call_output", "function_call"],
        True,
    )
    rest = client.get(f"{url}?limit=2&after={page['last_id']}").json
    assert (rest["data"][0]["content"], rest["has_more"]) == ([{"type": "input_text", "text": "a"}], False)
    assert client.get(f"{url}?order=asc").json["data"][0]["type"] == "message"


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=101", "order=up", "after=nowhere"])
def test_page_that_cannot_be_is_refused(query: str) -> None:
    answer = make_client().get(f"/v1/chat/completions?{query}")
    assert answer.status_code in (400, 404)
    assert answer.json["error"]["param"] == query.partition("=")[0]


def test_stored_completions_are_listed_by_model_and_metadata() -> None:
    client = make_client()
    first, second = (chat(client, store=True, model=name, metadata={"n": name}).json["id"] for name in "ab")
    listed = [
        [item["id"] for item in client.get(f"/v1/chat/completions{query}").json["data"]]
        for query in ("", "?model=b", "?metadata[n]=a", "?metadata[n]=c", "?order=desc")
    ]
    assert listed == [[first, second], [second], [first], [], [second, first]]


@pytest.mark.parametrize(
    ("body", "status"), [({"metadata": {"a": "b"}}, 200), ({"metadata": None}, 200), ({}, 400), ({"metadata": 1}, 400)]
)
def test_metadata_of_a_completion_is_replaced(body: dict[str, Any], status: int) -> None:
    client = make_client()
    url = f"/v1/chat/completions/{chat(client, store=True).json['id']}"
    assert client.post(url, json=body).status_code == status
    assert client.get(url).json["metadata"] == (body["metadata"] if status == 200 else {})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/responses/resp_no", 404, None),
        ("GET", "/v1/responses/resp_no?stream=true", 404, None),
        ("DELETE", "/v1/responses/resp_no", 404, None),
        ("POST", "/v1/responses/resp_no/cancel", 404, None),
        ("GET", "/v1/responses/resp_no/input_items", 404, None),
        ("GET", "/v1/chat/completions/chatcmpl-no", 404, None),
        ("POST", "/v1/chat/completions/chatcmpl-no", 404, None),
        ("DELETE", "/v1/chat/completions/chatcmpl-no", 404, None),
        ("GET", "/v1/chat/completions/chatcmpl-no/messages", 404, None),
        ("GET", "/v1/models/no", 404, "model_not_found"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("PUT", "/v1/responses", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_told_in_openais_form(method: str, path: str, status: int, code: str | None) -> None:
    client = make_client(models=("m",))
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_response_is_not_found_among_completions() -> None:
    client = make_client()
    assert client.get(f"/v1/chat/completions/{respond(client).json['id']}").status_code == 404


def test_models_are_those_of_the_settings() -> None:
    client = make_client(models=("a", "b"))
    assert [model["id"] for model in client.get("/v1/models").json["data"]] == ["a", "b"]
    assert client.get("/v1/models/b").json["id"] == "b"
    assert make_client().get("/v1/models/any/at/all").json["id"] == "any/at/all"
    for path in ("compact", "input_tokens"):
        assert client.post(f"/v1/responses/{path}", json={"model": "c", "input": "x"}).status_code == 404


def test_store_is_bounded_by_the_bytes_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_gateway.simulator.answer_store._MOST_REQUEST_BYTES", 100)
    store = AnswerStore(10, Clock())
    said: Any = None
    for number in range(4):
        answer = {"id": f"resp_{number}"}
        store.put(Stored(answer, answer, b"x" * 40, said, number))
    assert [f"resp_{number}" in store for number in range(4)] == [False, False, True, True]
    store.pop("resp_3")
    store.put(Stored({"id": "resp_5"}, {}, b"x" * 40, said, 5))
    assert "resp_2" in store


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    for path in ("responses", "chat/completions", "responses/compact", "responses/input_tokens"):
        answer = make_client().post(f"/v1/{path}", data=body)
        assert (answer.status_code, answer.json["error"]["type"]) == (400, "invalid_request_error")
