"""What the simulator remembers: stored responses and completions, and the URLs that serve them.

Bounded: the oldest are forgotten.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flask


@dataclass
class Stored:
    """An answer as it was first given, as it will be, and the request body."""

    now: dict[str, Any]
    later: dict[str, Any]
    body: Mapping[str, Any]


class Store:
    """Answers by id."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[str, Stored] = OrderedDict()

    def __contains__(self, answer_id: object) -> bool:
        return answer_id in self._answers

    def put(self, now: dict[str, Any], later: dict[str, Any], body: Mapping[str, Any]) -> None:
        """Keep an answer, forgetting the oldest if there are too many."""
        self._answers[now["id"]] = Stored(now, later, body)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def get(self, answer_id: str, prefix: str) -> Stored:
        """Return what is stored under an id of a kind. Aborts with 404."""
        found = self._answers.get(answer_id)
        if found is None or not answer_id.startswith(prefix):
            flask.abort(_to_not_found(answer_id))
        return found

    def pop(self, answer_id: str, prefix: str) -> None:
        """Forget an answer. Aborts with 404."""
        self.get(answer_id, prefix)
        del self._answers[answer_id]

    def completions(self) -> list[dict[str, Any]]:
        """Return the stored chat completions, oldest first."""
        return [stored.now for answer_id, stored in self._answers.items() if answer_id.startswith("chatcmpl-")]


def make_blueprint(store: Store, models: tuple[str, ...] | None) -> flask.Blueprint:
    """Return the URLs of what is stored, of counting and compacting, and of the models."""
    urls = flask.Blueprint("stored", __name__, url_prefix="/v1")

    @urls.get("/responses/<answer_id>")
    def retrieve(answer_id: str) -> dict[str, Any]:
        stored = store.get(answer_id, "resp_")
        answer = stored.now
        if stored.now["status"] == "in_progress":
            stored.now = stored.later
        return answer

    @urls.delete("/responses/<answer_id>")
    def delete(answer_id: str) -> dict[str, Any]:
        store.pop(answer_id, "resp_")
        return {"id": answer_id, "object": "response", "deleted": True}

    @urls.post("/responses/<answer_id>/cancel")
    def cancel(answer_id: str) -> dict[str, Any]:
        stored = store.get(answer_id, "resp_")
        stored.now = stored.later = {**stored.now, "status": "cancelled"}
        return stored.now

    @urls.get("/responses/<answer_id>/input_items")
    def input_items(answer_id: str) -> dict[str, Any]:
        given = store.get(answer_id, "resp_").body.get("input", [])
        items = given if isinstance(given, list) else [_to_message(given)]
        numbered = [{"id": f"item_{number}", "type": "message", **item} for number, item in enumerate(items)]
        return _to_list(numbered)

    @urls.post("/responses/compact")
    def compact() -> dict[str, Any]:
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, **details}
        frame = {"id": "resp_compacted", "object": "response.compaction", "created_at": 1_700_000_000}
        return {**frame, "output": [], "usage": usage}

    @urls.post("/responses/input_tokens")
    def count_tokens() -> dict[str, Any]:
        given = json.dumps((flask.request.get_json(silent=True) or {}).get("input", ""))
        return {"object": "response.input_tokens", "input_tokens": max(1, len(given) // 4)}

    @urls.get("/chat/completions")
    def list_completions() -> dict[str, Any]:
        return _to_list(store.completions())

    @urls.get("/chat/completions/<answer_id>")
    def retrieve_completion(answer_id: str) -> dict[str, Any]:
        return store.get(answer_id, "chatcmpl-").now

    @urls.post("/chat/completions/<answer_id>")
    def update_completion(answer_id: str) -> dict[str, Any]:
        stored = store.get(answer_id, "chatcmpl-")
        metadata = (flask.request.get_json(silent=True) or {}).get("metadata")
        stored.now = {**stored.now, "metadata": metadata}
        return stored.now

    @urls.delete("/chat/completions/<answer_id>")
    def delete_completion(answer_id: str) -> dict[str, Any]:
        store.pop(answer_id, "chatcmpl-")
        return {"id": answer_id, "object": "chat.completion.deleted", "deleted": True}

    @urls.get("/chat/completions/<answer_id>/messages")
    def messages(answer_id: str) -> dict[str, Any]:
        given = store.get(answer_id, "chatcmpl-").body.get("messages", [])
        return _to_list([{"id": f"{answer_id}-{number}", **message} for number, message in enumerate(given)])

    @urls.get("/models")
    def list_models() -> dict[str, Any]:
        return _to_list([_to_model(name) for name in models or ("simulated-model",)])

    return urls


def _to_list(items: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [item.get("id") for item in items]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": items, **ends, "has_more": False}


def _to_message(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_text", "text": text}]}


def _to_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}


def _to_not_found(answer_id: str) -> flask.Response:
    error = {
        "message": f"No stored answer with id '{answer_id}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    return flask.Response(json.dumps({"error": error}), 404, content_type="application/json")
