"""What is learnt of one upstream, as a host's workers hand it to each other: the limiter's parts, and its own values.

All of it is structs, which msgspec reads and writes whole. See also: learnt (what is handed on when), limits_file
(where it stands).
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from openai_gateway.limits.blind import BlindRate
from openai_gateway.limits.doubts import Doubts
from openai_gateway.limits.held import HeldPace
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.seen import SeenRate
from openai_gateway.limits.window import Window

# What each call changes, and nearly each answer: two whole numbers, and 26 others.
Values: TypeAlias = tuple[Any, ...]
VALUES_FORMAT: Final = "qq26d"

# The limiter's own values, in the order of `State.others`.
LEARNT: Final = (
    "pause_until",
    "token_factor",
    "_is_bound",
    "_last_refused_number",
    "_passed_since",
    "_probe_s",
    "_unexplained",
    "_unexplained_elsewhere",
    "_guessed_by",
    "_is_rate",
)


class State(msgspec.Struct, array_like=True):
    """All that is learnt of one upstream; `told` are the configuration's bounds, by kind and amount."""

    requests: Ledger
    tokens: Ledger
    blind: BlindRate
    window: Window
    held: HeldPace
    seen: SeenRate
    doubts: Doubts
    told: dict[str, Ledger]
    others: list[Any]


# What each call changes, and all else if that has changed, too.
Known: TypeAlias = tuple[Values, State | None]
