"""What the simulated model says: words, tokens, function calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.simulator.answers import compose_answer
from openai_gateway.simulator.examples import make_example
from openai_gateway.simulator.settings import Script
from tests.simulator.calling import chat, make_client, respond

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
OTHER = {**FUNCTION, "name": "g"}
NESTED = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        pytest.param(None, {}, id="no schema"),
        pytest.param({"type": "string"}, {}, id="not an object's schema"),
        pytest.param({"properties": {"a": {"type": "integer"}}}, {"a": 1}, id="properties without a type"),
        pytest.param({"properties": {"a": {"type": ["null", "string"]}}}, {"a": None}, id="first of several types"),
        pytest.param({"properties": {"a": {"enum": [7, 8]}}}, {"a": 7}, id="first of an enum"),
        pytest.param({"properties": {"a": {"const": "c"}}}, {"a": "c"}, id="a constant"),
        pytest.param({"properties": {"a": {"type": "array"}}}, {"a": ["example"]}, id="array of anything"),
        pytest.param({"properties": {"a": {"anyOf": [{"type": "number"}]}}}, {"a": 1.5}, id="first alternative"),
        pytest.param(
            {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "boolean"}}},
            {"a": True},
            id="a reference into the schema",
        ),
        pytest.param({"properties": {"a": {"$ref": "#/$defs/A"}}}, {"a": "example"}, id="a reference to nowhere"),
        pytest.param({"properties": {"a": 5}}, {"a": None}, id="not a schema at all"),
    ],
)
def test_arguments_fit_the_schema(schema: Any, example: Any) -> None:
    assert make_example(schema) == example


def test_schema_that_refers_to_itself_ends() -> None:
    assert len(json.dumps(make_example({"type": "object", "properties": {"inner": {"$ref": "#"}}}))) < 200
    assert make_example({"$ref": "#"}) == {}


@pytest.mark.parametrize(
    ("tools", "choice", "name"),
    [
        pytest.param([FUNCTION, OTHER], None, "f", id="the first"),
        pytest.param([FUNCTION, OTHER], {"type": "function", "name": "g"}, "g", id="named as in Responses"),
        pytest.param([FUNCTION, NESTED], {"type": "function", "function": {"name": "g"}}, "g", id="named as in Chat"),
        pytest.param(
            [FUNCTION, OTHER],
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
            "g",
            id="allowed as in Responses",
        ),
        pytest.param(
            [FUNCTION, OTHER],
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "g"}}]}},
            "g",
            id="allowed as in Chat",
        ),
        pytest.param([FUNCTION], {"type": "function", "name": "no"}, None, id="one that is not given"),
        pytest.param([{"type": "web_search"}], None, None, id="no function among the tools"),
        pytest.param([FUNCTION], "none", None, id="none wanted"),
        pytest.param("x", None, None, id="not a list of tools"),
    ],
)
def test_function_is_called_as_chosen(tools: Any, choice: Any, name: str | None) -> None:
    assert compose_answer({"input": "x", "tools": tools, "tool_choice": choice}, Script()).name == name


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        pytest.param("a  b\n c", "You said: a  b\n c.", id="white space as it is"),
        pytest.param([{"role": "user", "content": [{"type": "input_text", "text": "t"}]}], "You said: t.", id="parts"),
        pytest.param([{"role": "user", "content": "u"}, {"role": "assistant"}], "You said: u.", id="last of the user"),
        pytest.param([{"role": "user", "content": None}], "You said: .", id="nothing"),
        pytest.param([], "You said: .", id="no items"),
    ],
)
def test_last_text_of_the_user_is_echoed(asked: Any, text: str) -> None:
    assert compose_answer({"input": asked}, Script()).text.startswith(text)


@pytest.mark.parametrize("events", [1, 2, 40])
def test_text_has_as_many_deltas_as_asked_for(events: int) -> None:
    data = respond(make_client(), stream=True, metadata={"sim_events": str(events)}).text
    assert data.count("event: response.output_text.delta\n") == events
    data = chat(make_client(script=Script(events=events)), stream=True).text
    assert data.count('"delta": {"content"') == events


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_answer_that_reaches_its_limit_says_so_and_keeps_to_it(limit: int) -> None:
    client = make_client()
    whole = respond(client, max_output_tokens=limit).json
    assert (whole["status"], whole["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    assert whole["usage"]["output_tokens"] == limit
    assert respond(client, max_output_tokens=limit, stream=True).text.count("event: response.incomplete\n") == 1
    for name in ("max_tokens", "max_completion_tokens"):
        completion = chat(client, **{name: limit}).json
        assert completion["choices"][0]["finish_reason"] == "length"
        assert completion["usage"]["completion_tokens"] == limit
    assert respond(client, max_output_tokens=1000).json["status"] == "completed"


def test_reasoning_costs_tokens_within_the_limit() -> None:
    client = make_client()
    usage = respond(client, reasoning={"effort": "high"}).json["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == 32
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    cut = respond(client, reasoning={"effort": "high"}, max_output_tokens=20).json
    assert (cut["usage"]["output_tokens"], cut["output"][0]["content"][0]["text"]) == (20, "")
    usage = chat(client, reasoning_effort="low").json["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 8


def test_long_input_is_partly_cached() -> None:
    usage = respond(make_client(), input="x" * 8190).json["usage"]
    assert (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]) == (2048, 1024)


def test_same_requests_get_the_same_bytes_from_two_processes() -> None:
    first, second = (
        [respond(client, stream=True).data, chat(client, stream=True).data, respond(client).data, chat(client).data]
        for client in (make_client(), make_client())
    )
    assert first == second
