"""The values that travel with a call: what is asked of the upstream, and what is known once it is over.

Frozen: nobody on the way changes a call. Structs, because one of each is made for every call. See also:
upstream.recorder (who fills a record), blueprints.calls (who makes a call).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from openai_gateway.wire.api import Api
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.usage import Usage


class Reservation(Protocol):
    """Money set aside for a call; whoever records the call settles it, once."""

    def settle(self, record: CallRecord | None) -> float:
        """Settle and return what is charged, in US dollars; None for a call of which nothing is known any more."""

    def release(self) -> None:
        """Give it back for a call that was never made; does nothing once it is settled."""


class Call(msgspec.Struct, frozen=True):
    """One call as every attempt sends it.

    `target` is path and query below the base URL's `/v1`, such as `/responses?x=1`; `body` None means no body.
    `headers` are the client's, without the gateway's own. `rollout_id` comes from the `/ng-rollout/<id>` prefix.
    `outlives_client`: it goes on to its end, whether or not its client stays. `is_streamed`: the client asked for a
    stream. `is_metered`: its answer reports the tokens it used up. `received` is the body as the client sent it, kept
    for a capture only. `client` is the name that its key has in the clients file, `share` its weight among those that
    wait; `reservation` the money set aside for the call. `rollout_key` tells calls of one rollout in the queue, None:
    it is one by itself; `output_tokens` is the body's own bound, None if it has none.
    """

    api: Api
    method: str
    target: str
    headers: RequestHeaders
    body: bytes | None
    outlives_client: bool = False
    is_streamed: bool = False
    rollout_id: str | None = None
    request_id: str = ""
    is_metered: bool = False
    received: bytes | None = None
    client: str | None = None
    share: float = 1.0
    reservation: Reservation | None = None
    rollout_key: str | None = None
    output_tokens: int | None = None


class CallRecord(msgspec.Struct, frozen=True, omit_defaults=False):
    """What is known of a call when it is over; handed to every observer once. What isn't known is None, never zero.

    `time` is the Unix time of the call's arrival; `first_byte_s` (the answer's first body byte) and `duration_s` count
    from there, waiting for a slot and all attempts included. `outcome` is `completed` (the upstream's answer went
    out in full, whatever its status), `failed` (the gateway answered, or a stream broke), or `client_gone`.
    `status` is what the client got, None if it left before; `error_code` is the gateway's own, or that of the
    upstream's error. `model` to `usage` are as the upstream reported them; `retries` has the reason of each further
    attempt, a status or an error code. `is_replayed`: a kept answer, or another call's, for which nothing was paid;
    `saved_usd` is what it would have cost.
    """

    time: float
    server: str
    api: str
    method: str
    path: str
    rollout_id: str | None
    request_id: str
    client_request_id: str | None
    upstream_request_id: str | None
    outcome: str
    status: int | None
    error_code: str | None
    attempts: int
    retries: tuple[str, ...]
    queue_wait_s: float
    queue_reason: str | None
    first_byte_s: float | None
    duration_s: float
    request_bytes: int
    answer_bytes: int
    is_metered: bool
    model: str | None
    finish_reason: str | None
    service_tier: str | None
    system_fingerprint: str | None
    usage: Usage | None
    cost_usd: float | None
    traceparent: str | None
    is_replayed: bool = False
    saved_usd: float | None = None
    client: str | None = None
    charged_usd: float | None = None
