"""The values that travel with a call: what is asked of the upstream, and what is known once it is over.

Frozen: nobody on the way changes a call. Structs, because one of each is made for every call.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Call(msgspec.Struct, frozen=True):
    """One call as every attempt sends it.

    `target` is path and query below the base URL's `/v1`, such as `/responses?x=1`; `body` None means no body.
    `api` is `responses` or `chat`; `rollout_id` comes from the `/ng-rollout/<id>` prefix.
    """

    api: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None
    background: bool = False
    rollout_id: str | None = None


class CallRecord(msgspec.Struct, frozen=True):
    """What is known of a call when it is over; handed to every observer once.

    `outcome` is `completed` (the upstream's answer went out in full, whatever its status), `failed` (the gateway
    answered, or a stream broke), or `client_gone`. `status` is what the client got, None if it left before.
    """

    server: str
    api: str
    method: str
    target: str
    rollout_id: str | None
    outcome: str
    status: int | None
    error_code: str | None
    attempts: int
    queue_wait_s: float
    duration_s: float
    client_request_id: str | None
    upstream_request_id: str | None
