"""The official OpenAI client, validating strictly, straight at the simulator under gunicorn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.processes import Gunicorn

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FLAT: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
NESTED: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
MESSAGES: Any = [{"role": "user", "content": "Say hello"}]
USAGE: Any = {"include_usage": True}


@pytest.fixture(scope="module")
def client(simulator: Gunicorn) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key="sk-upstream-key", base_url=f"{simulator.url}/v1", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def lenient(client: openai.OpenAI) -> openai.OpenAI:
    """The client as people use it, for answers that its own types don't describe as they really are."""
    return client.copy(_extra_kwargs={"_strict_response_validation": False})


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="text"),
        pytest.param({"tools": [FLAT]}, id="function call"),
        pytest.param({"max_output_tokens": 3}, id="cut"),
        pytest.param({"background": True}, id="background"),
        pytest.param({"reasoning": {"effort": "low"}, "instructions": "Be brief.", "user": "u"}, id="many parameters"),
        pytest.param({"conversation": "conv_1"}, id="conversation"),
    ],
)
def test_response_is_of_its_type(client: openai.OpenAI, more: dict[str, Any]) -> None:
    made = client.responses.create(model="m-1", input="Say hello", **more)
    assert made.model == "m-1"
    found = client.responses.retrieve(made.id)
    assert found.usage is not None
    assert found.output


def test_streamed_text_has_the_real_sequence_of_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="m", input="x", stream=True, metadata={"sim_events": "2"}))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))


def test_streamed_function_call_has_the_real_sequence_of_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="m", input="x", stream=True, tools=[FLAT]))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    last: Any = events[-1]
    assert last.response.output[0].arguments == '{"city": "example"}'


def test_streaming_accumulators_of_the_client_work(client: openai.OpenAI) -> None:
    with client.responses.stream(model="m", input="x") as stream:
        assert stream.get_final_response().output_text.startswith("You said: x.")
    with client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        assert (stream.get_final_completion().choices[0].message.content or "").startswith("You said: Say hello.")


def test_stream_is_resumed_where_it_was_left(client: openai.OpenAI) -> None:
    events: list[Any] = list(client.responses.create(model="m", input="x", stream=True))
    again = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in again] == list(range(4, len(events)))


def test_tool_loop_ends_in_text(client: openai.OpenAI) -> None:
    call: Any = client.responses.create(model="m", input="x", tools=[FLAT]).output[0]
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    assert client.responses.create(model="m", input=result, tools=[FLAT]).output_text
    message = client.chat.completions.create(model="m", messages=MESSAGES, tools=[NESTED]).choices[0].message
    called: Any = (message.tool_calls or [])[0]
    reply: Any = {"role": "tool", "tool_call_id": called.id, "content": "sunny"}
    messages: Any = [*MESSAGES, message.to_dict(), reply]
    assert client.chat.completions.create(model="m", messages=messages, tools=[NESTED]).choices[0].message.content


def test_streamed_chat_has_role_content_finish_and_usage(client: openai.OpenAI) -> None:
    metadata = {"sim_events": "2"}
    chunks = list(
        client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options=USAGE, metadata=metadata
        )
    )
    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert (chunks[-1].choices, chunks[-1].usage is not None) == ([], True)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_streamed_chat_calls_its_tool(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, tools=[NESTED]))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (deltas[0].id, deltas[0].function.name if deltas[0].function else None) != (None, None)
    arguments = "".join((delta.function.arguments or "") for delta in deltas if delta.function)
    assert arguments == '{"city": "example"}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_stored_response_is_listed_cancelled_and_deleted(client: openai.OpenAI) -> None:
    script = {"sim_latency_ms": "60000"}
    made = client.responses.create(model="m", input="Say hello", background=True, metadata=script)
    assert made.status == "in_progress"
    assert client.responses.cancel(made.id).status == "cancelled"
    items: list[Any] = list(client.responses.input_items.list(made.id))
    assert items[0].content[0].text == "Say hello"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_stored_completions_are_paged_updated_and_deleted(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    made = [client.chat.completions.create(model="paged", messages=MESSAGES, store=True).id for _ in range(3)]
    assert [found.id for found in client.chat.completions.list(model="paged", limit=1)] == made
    client.chat.completions.update(made[0], metadata={"a": "b"})
    assert [found.id for found in client.chat.completions.list(metadata={"a": "b"})] == made[:1]
    # The client's own type of a stored message allows no role but the assistant's.
    assert [message.content for message in lenient.chat.completions.messages.list(made[0])] == ["Say hello"]
    assert client.chat.completions.delete(made[0]).deleted


def test_tokens_are_counted_and_conversations_compacted(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="m", input="Say hello").input_tokens
    usage = client.responses.create(model="m", input="Say hello").usage
    assert usage is not None
    assert usage.input_tokens == counted
    # The client's own type of an output item lacks the user's messages that it says come first.
    assert [item.type for item in lenient.responses.compact(model="gpt-5", input="x").output] == [
        "message",
        "compaction",
    ]


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["simulated-model"]
    assert client.models.retrieve("m").id == "m"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_scripted_status_is_the_clients_own_error(client: openai.OpenAI, status: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        client.responses.create(model="m", input="x", metadata={"sim_status": str(status)})
    with pytest.raises(error):
        client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, metadata={"sim_status": str(status)}, store=True
        )


def test_client_retries_until_a_scripted_failure_has_passed(client: openai.OpenAI) -> None:
    metadata = {"sim_status": "429", "sim_times": "2", "sim_key": "client retries", "sim_retry_after": "0.01"}
    assert client.with_options(max_retries=2).responses.create(model="m", input="x", metadata=metadata).id
