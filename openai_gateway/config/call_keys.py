"""The keys that say when a server's calls are made, how long they may take, and when they are made again.

See also: keys (all of a server's keys), declaration (what a line says).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from openai_gateway.config.checks import Boolean, Integer, Number, OneOf, Seconds
from openai_gateway.config.connection_keys import ConnectionKeys
from openai_gateway.config.declaration import key
from openai_gateway.config.redis_url import RedisUrl
from openai_gateway.config.secret import Secret

LIMITS: Final = "Limits"
TIMES: Final = "Times"
RETRIES: Final = "Retries"


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class CallKeys(ConnectionKeys):
    """Limits, times and retries. Times are seconds; None is no bound."""

    max_concurrent_requests: int | None = key(
        Integer(1), None, "cap on concurrent upstream calls, per worker process; null is no cap", LIMITS
    )
    max_concurrent_requests_total: int | None = key(
        Integer(1),
        None,
        "the same for all workers of this host together, and of all hosts with `limits_url`",
        LIMITS,
    )
    max_queue: int | None = key(
        Integer(0), None, "calls that may wait for their turn; one more gets 429 `gateway_queue_full`", LIMITS
    )
    queue_timeout_s: float | None = key(
        Seconds(), None, "longest wait for a turn; then 429 `gateway_queue_timeout`", LIMITS
    )
    learn_limits: bool = key(
        Boolean(),
        True,
        "learn the upstream's rate limits and send no call before they admit it; false: only react to 429s",
        LIMITS,
    )
    requests_per_minute: float | None = key(
        Number(1, 1e9, may_be_null=True), None, "never more than this, whatever is learnt; null is no bound", LIMITS
    )
    tokens_per_minute: float | None = key(
        Number(1, 1e12, may_be_null=True), None, "the same for tokens: a body's bytes / 4 and its output bound", LIMITS
    )
    schedule: str = key(
        OneOf("rollouts", "fifo"),
        "rollouts",
        "order of waiting calls: `rollouts`: as they came, those of begun rollouts sooner; `fifo`: as they came",
        LIMITS,
    )
    limits_url: Secret | None = key(
        RedisUrl(),
        None,
        "Redis or Valkey, `redis://[user:password@]host[:port][/db]` (`rediss://`: TLS), by which hosts share limits, "
        "the total cap and budgets; needs `pip install 'openai_gateway[redis]'`; null: each host goes by itself",
        LIMITS,
        shared=True,
    )
    connect_timeout_s: float | None = key(Seconds(), 10.0, "for name lookup, connection and TLS", TIMES)
    first_byte_timeout_s: float | None = key(
        Seconds(), 600.0, "from sending the request to the answer's headers", TIMES
    )
    idle_timeout_s: float | None = key(Seconds(), 600.0, "between two pieces of an answer", TIMES)
    client_timeout_s: float | None = key(
        Seconds(), 60.0, "for the client to send its body, and to take each piece of the answer", TIMES
    )
    total_timeout_s: float | None = key(Seconds(), None, "for the whole call, retries and stream included", TIMES)
    cancel_on_disconnect: bool = key(
        Boolean(),
        True,
        "cancel the upstream call when its client leaves; if not, its answer is read to its end and recorded, as that "
        "of a call with `background: true` always is",
        TIMES,
    )
    stream_heartbeat_s: float | None = key(
        Seconds(),
        None,
        "put a comment line into a stream of events that is silent for so long, for balancers that cut silent "
        "connections; null: never",
        TIMES,
    )
    websocket: bool = key(
        Boolean(),
        True,
        "serve the Responses API's WebSocket mode, if the upstream has it; false: clients are told 426",
        TIMES,
    )
    max_retries: int = key(Integer(0), 2, "further attempts of a call that failed; a 429 of a limit is none", RETRIES)
    retry_budget_s: float | None = key(
        Seconds(),
        600.0,
        "no further attempt starts later than this after the call's first turn; null is no bound",
        RETRIES,
    )
    retry_ratio: float | None = key(
        Number(0, 1, may_be_null=True),
        0.2,
        "share of recent calls that may be retried for another reason than 429, beside a floor of 10; null is no bound",
        RETRIES,
    )
    hint_clients: bool = key(
        Boolean(),
        True,
        "add `x-should-retry: false` once the retries are used up, so that the SDKs don't multiply them",
        RETRIES,
    )
    breaker_cooldown_s: float | None = key(
        Seconds(),
        30.0,
        "after two refusals of the key (401) or for used-up quota in a row, calls are refused at once; one probe after "
        "each such time; null: never",
        RETRIES,
    )
