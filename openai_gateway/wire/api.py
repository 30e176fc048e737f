"""The two APIs that are relayed, and what differs between them apart from the form of their bodies.

Whoever would ask "responses or chat?" asks the `Api` instead. See also: envelope (requests' bodies), usage (answers').
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class _Facts(NamedTuple):
    path: str
    label: str
    ends: tuple[bytes, ...]
    token_limit: str
    defaults_key: str
    asked: str
    given: str


class Api(str, enum.Enum):
    """One of the APIs; equal to its name as records, options and configs spell it.

    `path` is below `/v1`; `label` is for people; of `ends`, the last events of a whole stream hold one; `token_limit`
    is the body's key that bounds an answer's tokens; `defaults_key` is the config's key for defaults of its bodies;
    `asked` and `given` are the keys of what a body asks and of what an answer gives.
    """

    RESPONSES = (
        "responses",
        _Facts(
            path="/responses",
            label="Responses",
            ends=(b'"response.completed"', b'"response.incomplete"'),
            token_limit="max_output_tokens",
            defaults_key="extra_body_responses",
            asked="input",
            given="output",
        ),
    )
    CHAT = (
        "chat",
        _Facts(
            path="/chat/completions",
            label="Chat",
            ends=(b"[DONE]",),
            token_limit="max_completion_tokens",
            defaults_key="extra_body_chat",
            asked="messages",
            given="choices",
        ),
    )

    path: str
    label: str
    ends: tuple[bytes, ...]
    token_limit: str
    defaults_key: str
    asked: str
    given: str

    def __new__(cls, name: str, facts: _Facts) -> Api:
        """Return a member: the string `name` with its facts."""
        api = str.__new__(cls, name)
        api._value_ = name
        api.path, api.label, api.ends, api.token_limit, api.defaults_key, api.asked, api.given = facts
        return api

    # As the string that it is: Enum's own are Python code, run at each look into a dict.
    __hash__ = str.__hash__
    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]
