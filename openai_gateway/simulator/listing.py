"""Lists in OpenAI's form, a page at a time, and stored input as the items and messages that a list holds.

See also: stored (what is listed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from openai_gateway.simulator.errors import ApiError

_DEFAULT_LIMIT: Final = 20
_MOST: Final = 100


def make_page(items: list[dict[str, Any]], query: Mapping[str, str], order: str) -> dict[str, Any]:
    """Return the page that a query asks for with `limit`, `after` and `order`. Raises ApiError."""
    limit = query.get("limit", str(_DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _MOST):
        raise ApiError(400, f"'limit' must be from 1 to {_MOST}.", "invalid_value", param="limit")
    wanted = query.get("order", order)
    if wanted not in ("asc", "desc"):
        raise ApiError(400, "'order' must be 'asc' or 'desc'.", "invalid_value", param="order")
    ordered = items if wanted == "asc" else items[::-1]
    ids = [item["id"] for item in ordered]
    after = query.get("after")
    if after is not None and after not in ids:
        raise ApiError(404, f"No item with id '{after}' found.", param="after")
    start = 0 if after is None else ids.index(after) + 1
    return make_list(ordered[start : start + int(limit)], has_more=len(ordered) > start + int(limit))


def make_list(items: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """Return a list object of all these items."""
    first_id, last_id = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first_id, "last_id": last_id, "has_more": has_more}


def list_items(given: Any) -> list[dict[str, Any]]:
    """Return the items of a Responses `input`, each with an id."""
    items = given if isinstance(given, list) else [{"role": "user", "content": given}] if given is not None else []
    return [_make_item(item, number) for number, item in enumerate(items) if isinstance(item, dict)]


def list_messages(given: Any, completion_id: str) -> list[dict[str, Any]]:
    """Return the messages of a Chat request, each with an id."""
    messages = given if isinstance(given, list) else []
    own = {"name": None, "content_parts": None}
    return [
        {**own, **message, "id": f"{completion_id}-{number}"}
        for number, message in enumerate(messages)
        if isinstance(message, dict)
    ]


def _make_item(item: dict[str, Any], number: int) -> dict[str, Any]:
    if item.get("type", "message") != "message":
        return {"id": f"item_sim{number:012d}", "status": "completed", **item}
    content = item.get("content")
    if isinstance(content, str):
        is_output = item.get("role") == "assistant"
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if is_output else {}
        content = [{"type": "output_text" if is_output else "input_text", "text": content, **more}]
    own = {"id": f"msg_sim_in{number:012d}", "type": "message", "status": "completed"}
    return {**own, **item, "content": content}
