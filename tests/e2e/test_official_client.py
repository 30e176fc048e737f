"""The official OpenAI client through real gunicorn: both APIs, streams, tools, stored answers, error classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.processes import Gunicorn

TOOL_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
MESSAGES: list[Any] = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(scope="module")
def client(gateway: Gunicorn) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="sk-client", base_url=f"{gateway.url}/v1", max_retries=0) as client:
        yield client


def test_response_comes_back_whole_and_from_the_configured_model(client: openai.OpenAI) -> None:
    response = client.responses.create(model="ignored", input="Say hello")
    assert (response.model, response.status) == ("the-model", "completed")
    assert response.output_text.startswith("You said: Say hello.")
    assert response.usage is not None
    assert response.usage.output_tokens > 0


def test_chat_completion_comes_back_whole_and_from_the_configured_model(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="ignored", messages=MESSAGES)
    assert completion.model == "the-model"
    assert (completion.choices[0].message.content or "").startswith("You said: Say hello.")


def test_streamed_response_has_every_event_in_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="ignored", input="Say hello", stream=True))
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


def test_streamed_chat_has_its_text_and_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("You said: Say hello.")
    assert chunks[-1].usage is not None


def test_tool_call_comes_back_from_both_apis(client: openai.OpenAI) -> None:
    flat: Any = [{"type": "function", "name": "weather", "parameters": TOOL_PARAMETERS, "strict": False}]
    response = client.responses.create(model="m", input="Weather?", tools=flat)
    assert response.output[0].type == "function_call"
    nested: Any = [{"type": "function", "function": {"name": "weather", "parameters": TOOL_PARAMETERS}}]
    completion = client.chat.completions.create(model="m", messages=MESSAGES, tools=nested)
    calls: Any = completion.choices[0].message.tool_calls
    assert calls[0].function.name == response.output[0].name == "weather"
    with client.chat.completions.stream(model="m", messages=MESSAGES, tools=nested) as stream:
        streamed: Any = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed[0].function.arguments == calls[0].function.arguments


def test_stored_response_is_retrieved_listed_cancelled_and_deleted(client: openai.OpenAI) -> None:
    made = client.responses.create(model="m", input="keep this")
    assert client.responses.retrieve(made.id).id == made.id
    assert len(client.responses.input_items.list(made.id).data) == 1
    assert client.responses.cancel(made.id).status == "cancelled"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_stored_completion_is_listed_updated_and_deleted(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="m", messages=MESSAGES, store=True)
    assert made.id in [completion.id for completion in client.chat.completions.list().data]
    assert client.chat.completions.retrieve(made.id).id == made.id
    assert client.chat.completions.update(made.id, metadata={"a": "b"}).metadata == {"a": "b"}  # type: ignore[attr-defined]
    assert client.chat.completions.messages.list(made.id).data[0].content == "Say hello"
    assert client.chat.completions.delete(made.id).deleted


def test_models_are_the_configured_one(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["the-model"]
    assert client.models.retrieve("the-model").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another-model")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_error_of_the_upstream_is_the_clients_error_class(
    status: int, error: type[openai.APIStatusError], client: openai.OpenAI
) -> None:
    with pytest.raises(error) as raised:
        client.responses.create(model="m", input="x", metadata={"sim_status": str(status), "sim_key": f"k{status}"})
    assert raised.value.status_code == status


def test_failure_that_passes_is_not_seen_by_the_client(client: openai.OpenAI) -> None:
    metadata = {"sim_status": "503", "sim_times": "1", "sim_key": "passes"}
    assert client.responses.create(model="m", input="x", metadata=metadata).status == "completed"


def test_stream_that_breaks_midway_is_an_api_error(client: openai.OpenAI) -> None:
    metadata = {"sim_fault": "drop_in_stream"}
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.responses.create(model="m", input="x", stream=True, metadata=metadata))
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, metadata=metadata))


def test_request_that_lacks_its_input_names_the_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="m")
    assert (raised.value.param, raised.value.code) == ("input", "missing_required_parameter")
