"""Every key of a server, each one declaration; frozen values are what a config comes to. Times are seconds.

To add a key, add a line here: it is then read, checked, shown by `openai-gateway config` and documented.
See also: declaration (what a line says), checks (what a value may be), build (what must hold between keys).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from openai_gateway.config.checks import (
    BaseUrl,
    BodyDefaults,
    Boolean,
    Headers,
    Integer,
    Keys,
    Number,
    OneOf,
    Seconds,
    SecretText,
    Text,
)
from openai_gateway.config.declaration import REQUIRED, key, keys_of
from openai_gateway.config.paths import CertificateFile, CreatedFile, CreatedFolder, KeyFilePath, PathText
from openai_gateway.config.prices import PriceTable
from openai_gateway.config.secret import Secret

UPSTREAM: Final = "Upstream"
BODIES: Final = "Bodies"
LIMITS: Final = "Limits"
TIMES: Final = "Times"
RETRIES: Final = "Retries"
CLIENTS: Final = "Clients"
ACCOUNTING: Final = "Accounting"
LOGS: Final = "Logs"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of one server; keys as in NeMo Gym's `openai_model`, and ours. Of a time, None is no bound.

    Exactly one of `openai_api_key` and `openai_api_key_file` is set. `openai_base_url` has no trailing slash.
    `model_call_capture_dir` is None unless `observability_enabled`. `prices` is what `price_file` holds.
    """

    name: str
    openai_base_url: str = key(
        BaseUrl(),
        REQUIRED,
        "the endpoint, ending in `/v1`; may have a query such as `?api-version=preview`",
        UPSTREAM,
    )
    openai_model: str = key(Text(), REQUIRED, "the model of every call, whatever the client asks for", UPSTREAM)
    openai_api_key: Secret | None = key(
        SecretText(),
        None,
        "the upstream's key; not with `openai_api_key_file`",
        UPSTREAM,
        shown_default="required",
    )
    openai_api_key_file: str | None = key(
        KeyFilePath(),
        None,
        "a file with the key instead (leave `openai_api_key` out); read again within a second when it changes",
        UPSTREAM,
    )
    openai_default_headers: Mapping[str, Secret] = key(
        Headers(), {}, "headers that win over the client's, also over `authorization`", UPSTREAM
    )
    ssl_ca_file: str | None = key(
        CertificateFile(),
        None,
        "CA certificates to trust instead of the usual ones; verification is always on",
        UPSTREAM,
    )
    extra_body: Mapping[str, Any] = key(
        BodyDefaults(), {}, "default body parameters; the request wins, an explicit null too", BODIES
    )
    extra_body_responses: Mapping[str, Any] = key(
        BodyDefaults(), {}, "defaults for the Responses API, over `extra_body`", BODIES
    )
    extra_body_chat: Mapping[str, Any] = key(
        BodyDefaults(), {}, "defaults for chat completions, over `extra_body`", BODIES
    )
    drop_input_reasoning_items: bool = key(
        Boolean(), False, "take `reasoning` items out of a Responses `input`", BODIES
    )
    max_body_bytes: int = key(
        Integer(1), 64 * 1024 * 1024, "largest request body (64 MiB); a larger one gets 413", BODIES
    )
    max_concurrent_requests: int | None = key(
        Integer(1), None, "cap on concurrent upstream calls, per worker process; null is no cap", LIMITS
    )
    max_queue: int | None = key(
        Integer(0), None, "calls that may wait for a slot; one more gets 429 `gateway_queue_full`", LIMITS
    )
    queue_timeout_s: float | None = key(
        Seconds(), None, "longest wait for a slot; then 429 `gateway_queue_timeout`", LIMITS
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
        "cancel the upstream call when its client leaves; calls with `background: true` never are",
        TIMES,
    )
    max_retries: int = key(Integer(0), 2, "further attempts of a call", RETRIES)
    retry_budget_s: float | None = key(
        Seconds(),
        60.0,
        "no further attempt starts later than this after the call got its slot; null is no bound",
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
        "after a refused key (401) or used-up quota, calls get that answer at once; one probe after each such time; "
        "null: never",
        RETRIES,
    )
    gateway_api_keys: tuple[Secret, ...] = key(
        Keys(), (), "keys that clients must send as `Authorization: Bearer`; none lets everybody in", CLIENTS
    )
    gateway_api_keys_file: str | None = key(
        KeyFilePath(), None, "a file with such keys, one a line; read again when it changes", CLIENTS
    )
    price_file: str | None = key(
        PathText(),
        None,
        "table of prices; null is `conf/prices.yaml` in the working folder, if there",
        ACCOUNTING,
        shared=True,
    )
    usage_log: str | None = key(
        CreatedFile(),
        None,
        "regular file that each finished call is appended to, as a JSON line",
        ACCOUNTING,
        shared=True,
    )
    usage_log_max_bytes: int | None = key(
        Integer(1),
        None,
        "size above which the usage log is renamed to `<path>.<UTC time>`; null leaves it to logrotate",
        ACCOUNTING,
        shared=True,
    )
    observability_enabled: bool = key(
        Boolean(), False, "capture the calls of rollouts as NeMo Gym does", ACCOUNTING, shared=True
    )
    model_call_capture_dir: str | None = key(
        CreatedFolder(), None, "folder for `<rollout id>.capture.jsonl`", ACCOUNTING, shared=True
    )
    access_log: bool = key(Boolean(), False, "log every call, not only failed and slow ones", LOGS, shared=True)
    slow_call_s: float | None = key(
        Seconds(), 300.0, "a call that takes longer is logged; null: none is", LOGS, shared=True
    )
    gateway_headers: bool = key(
        Boolean(),
        True,
        "add `x-gateway-request-id`, `x-gateway-attempts` and `x-gateway-queue-ms` to answers",
        LOGS,
        shared=True,
    )
    log_level: str = key(
        OneOf("debug", "info", "warning", "error"),
        "info",
        "debug, info, warning or error; the default server's holds for the process",
        LOGS,
        shared=True,
    )
    log_format: str = key(
        OneOf("auto", "json", "plain"),
        "auto",
        "json, plain, or auto: plain on a terminal, else JSON lines; the default server's holds for the process",
        LOGS,
        shared=True,
    )
    prices: PriceTable = field(default_factory=PriceTable)


KEYS: Final = keys_of(ServerConfig)
# May stand at the top level, for all servers, as NeMo Gym has it with its observability keys; a server's own key wins.
SHARED_KEYS: Final = tuple(name for name, declared in KEYS.items() if declared.is_shared)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All servers of one config; `default_server` names the one at plain `/v1`.

    `notes` say what was ignored, a line each; `origins` where each dotted key came from, those in a mapping too.
    """

    servers: Mapping[str, ServerConfig]
    default_server: str
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
