"""What the simulator remembers: answers by id, with their requests.

Bounded in number and in bytes of requests: the oldest are forgotten. See also: stored (the URLs that serve them).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.simulator.answers import Said

_MOST_REQUEST_BYTES: Final = 64 * 1024 * 1024


@dataclass
class Stored:
    """An answer as it is now, as it will be from `ready_at` on, and the request and words that it was made of."""

    now: dict[str, Any]
    later: dict[str, Any]
    request: bytes
    said: Said
    number: int
    ready_at: float = 0.0

    def body(self) -> dict[str, Any]:
        """Return the request's body."""
        body: dict[str, Any] = json.loads(self.request)
        return body


class AnswerStore:
    """Answers by id, oldest first."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._answers: OrderedDict[str, Stored] = OrderedDict()
        self._bytes = 0

    def __contains__(self, answer_id: object) -> bool:
        return answer_id in self._answers

    def put(self, stored: Stored) -> None:
        """Keep an answer, forgetting the oldest if there are too many or they are too large."""
        self._answers[stored.now["id"]] = stored
        self._bytes += len(stored.request)
        while len(self._answers) > self._most or (self._bytes > _MOST_REQUEST_BYTES and len(self._answers) > 1):
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest.request)

    def get(self, answer_id: str) -> Stored | None:
        """Return what is stored under an id, in the state that it has by now."""
        stored = self._answers.get(answer_id)
        if stored is not None and self.wait_s(stored) <= 0:
            stored.now = stored.later
        return stored

    def pop(self, answer_id: str) -> None:
        """Forget an answer."""
        self._bytes -= len(self._answers.pop(answer_id).request)

    def wait_s(self, stored: Stored) -> float:
        """Return how long until an answer is ready."""
        return max(0.0, stored.ready_at - self._clock())

    def answers(self, prefix: str) -> list[dict[str, Any]]:
        """Return the answers whose ids start so, oldest first."""
        return [stored.now for answer_id, stored in self._answers.items() if answer_id.startswith(prefix)]
