"""What is learnt of one upstream, as a host's workers hand it to each other: the limiter's parts, and its own values.

It is read and written for each decision, so all of it is structs, which msgspec reads and writes whole. See also:
limiter (what is made of it), limits_file (where it stands).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from openai_gateway.limits.blind import BlindRate
from openai_gateway.limits.held import HeldPace
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.seen import SeenRate
from openai_gateway.limits.window import Window

# The limiter's own values, in the order of `State.others`.
LEARNT: Final = (
    "pause_until",
    "token_factor",
    "_is_bound",
    "_number",
    "_last_refused",
    "_last_refused_number",
    "_passed_since",
    "_started_at",
    "_probe_s",
    "_unexplained",
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
    told: dict[str, Ledger]
    others: list[Any]
