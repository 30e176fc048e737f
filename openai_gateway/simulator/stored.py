"""The URLs of what is stored, of counting and compacting tokens, and of the models.

See also: answer_store (what remembers), listing, responses and chat (the form of answers).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import flask

from openai_gateway.simulator.answer_store import AnswerStore, Stored
from openai_gateway.simulator.answers import count_input_tokens
from openai_gateway.simulator.errors import ApiError, missing_parameter, unknown_model
from openai_gateway.simulator.listing import list_items, list_messages, make_list, make_page
from openai_gateway.simulator.reading import read_json
from openai_gateway.simulator.responses import CREATED_AT, make_events, make_usage
from openai_gateway.simulator.settings import SimulatorSettings


def make_responses_blueprint(store: AnswerStore, settings: SimulatorSettings) -> flask.Blueprint:
    """Return the URLs of stored responses, and those of counting and compacting."""
    urls = flask.Blueprint("stored_responses", __name__, url_prefix="/v1/responses")

    @urls.get("/<answer_id>")
    def retrieve(answer_id: str) -> Any:
        stored = _get_response(store, answer_id)
        if flask.request.args.get("stream") != "true":
            return stored.now
        after = flask.request.args.get("starting_after", "-1")
        if after != "-1" and not (after.isascii() and after.isdigit()):
            raise ApiError(400, "'starting_after' must be a whole number.", "invalid_value", param="starting_after")
        events = _replay_events(stored, store, int(after[:9]) + 1)
        return flask.Response(events, content_type="text/event-stream; charset=utf-8")

    @urls.delete("/<answer_id>")
    def delete(answer_id: str) -> dict[str, Any]:
        _get_response(store, answer_id)
        store.pop(answer_id)
        return {"id": answer_id, "object": "response", "deleted": True}

    @urls.post("/<answer_id>/cancel")
    def cancel(answer_id: str) -> dict[str, Any]:
        # The real API refuses to cancel what isn't in the background; here it becomes cancelled.
        stored = _get_response(store, answer_id)
        if not (stored.now["background"] and stored.now["status"] != "in_progress"):
            stored.now = stored.later = {**stored.now, "status": "cancelled"}
        return stored.now

    @urls.get("/<answer_id>/input_items")
    def input_items(answer_id: str) -> dict[str, Any]:
        items = list_items(_get_response(store, answer_id).body().get("input"))
        return make_page(items, flask.request.args, "desc")

    @urls.post("/compact")
    def compact() -> dict[str, Any]:
        body = _read_for(settings)
        tokens = count_input_tokens(body)
        kept = [item for item in list_items(body.get("input")) if item.get("role") == "user"]
        compaction = {"id": "cmp_sim", "type": "compaction", "encrypted_content": f"simulated-{tokens}"}
        frame = {"id": "resp_sim_compacted", "object": "response.compaction", "created_at": CREATED_AT}
        return {**frame, "output": [*kept, compaction], "usage": make_usage(tokens, 0, 1, 0)}

    @urls.post("/input_tokens")
    def count_tokens() -> dict[str, Any]:
        return {"object": "response.input_tokens", "input_tokens": count_input_tokens(_read_for(settings))}

    return urls


def make_chat_blueprint(store: AnswerStore) -> flask.Blueprint:
    """Return the URLs of stored chat completions."""
    urls = flask.Blueprint("stored_completions", __name__, url_prefix="/v1/chat/completions")

    @urls.get("")
    def list_completions() -> dict[str, Any]:
        query = flask.request.args
        wanted = {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[")}
        found = [
            answer
            for answer in store.answers("chatcmpl-")
            if query.get("model") in (None, answer["model"]) and wanted.items() <= (answer["metadata"] or {}).items()
        ]
        return make_page(found, query, "asc")

    @urls.get("/<answer_id>")
    def retrieve(answer_id: str) -> dict[str, Any]:
        return _get_completion(store, answer_id).now

    @urls.post("/<answer_id>")
    def update(answer_id: str) -> dict[str, Any]:
        stored = _get_completion(store, answer_id)
        body = read_json()
        if "metadata" not in body:
            raise missing_parameter("metadata")
        metadata = body["metadata"]
        if metadata is not None and not _is_metadata(metadata):
            raise ApiError(400, "'metadata' must be an object of strings.", "invalid_type", param="metadata")
        stored.now = stored.later = {**stored.now, "metadata": metadata}
        return stored.now

    @urls.delete("/<answer_id>")
    def delete(answer_id: str) -> dict[str, Any]:
        _get_completion(store, answer_id)
        store.pop(answer_id)
        return {"id": answer_id, "object": "chat.completion.deleted", "deleted": True}

    @urls.get("/<answer_id>/messages")
    def messages(answer_id: str) -> dict[str, Any]:
        given = _get_completion(store, answer_id).body().get("messages")
        return make_page(list_messages(given, answer_id), flask.request.args, "asc")

    return urls


def make_models_blueprint(names: tuple[str, ...] | None) -> flask.Blueprint:
    """Return the URLs of the models; None has one, and any that is asked for."""
    urls = flask.Blueprint("models", __name__, url_prefix="/v1/models")

    @urls.get("")
    def list_models() -> dict[str, Any]:
        return make_list([_make_model(name) for name in names or ("simulated-model",)])

    @urls.get("/<path:name>")
    def retrieve(name: str) -> dict[str, Any]:
        if names is not None and name not in names:
            raise unknown_model(name)
        return _make_model(name)

    return urls


def _get_response(store: AnswerStore, answer_id: str) -> Stored:
    found = store.get(answer_id) if answer_id.startswith("resp_") else None
    if found is None:
        raise ApiError(404, f"Response with id '{answer_id}' not found.")
    return found


def _get_completion(store: AnswerStore, answer_id: str) -> Stored:
    found = store.get(answer_id) if answer_id.startswith("chatcmpl-") else None
    if found is None:
        raise ApiError(404, f"No chat completion found for id: {answer_id}.")
    return found


def _read_for(settings: SimulatorSettings) -> dict[str, Any]:
    body = read_json()
    model = body.get("model")
    if isinstance(model, str) and settings.models is not None and model not in settings.models:
        raise unknown_model(model)
    return body


def _replay_events(stored: Stored, store: AnswerStore, start: int) -> Iterator[bytes]:
    """Yield the events from number `start` on, as they were when the answer was made, once it is ready."""
    time.sleep(store.wait_s(stored))
    for event, _ in islice(make_events(stored.body(), stored.said, stored.number), start, None):
        yield event


def _is_metadata(given: Any) -> bool:
    return isinstance(given, dict) and all(isinstance(value, str) for value in given.values())


def _make_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED_AT, "owned_by": "simulator"}
