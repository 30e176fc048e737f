"""Every key of a server, each one declaration; frozen values are what a config comes to.

To add a key, add a line to its group, here or in upstream_keys, call_keys or recording_keys. It is then read, checked
and shown by `openai-gateway config`; `python -m openai_gateway.config.reference openai_gateway/docs/configuration.md`
documents it. See also: declaration (what a line says), checks and path_checks (what a value may be), build (what must
hold between keys).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from openai_gateway.config.checks import Boolean, CorsOrigins, Integer, Keys, OneOf, Seconds
from openai_gateway.config.clients import Clients
from openai_gateway.config.declaration import key, keys_of
from openai_gateway.config.path_checks import CreatedFile, CreatedFolder, KeyFilePath, PathText, TextFile
from openai_gateway.config.prices import PriceTable
from openai_gateway.config.recording_keys import RecordingKeys
from openai_gateway.config.secret import Secret

CLIENTS: Final = "Clients"
ACCOUNTING: Final = "Accounting"
LOGS: Final = "Logs"


@dataclass(frozen=True, slots=True)
class ServerConfig(RecordingKeys):
    """The settings of one server; keys as in NeMo Gym's `openai_model`, and ours.

    `model_call_capture_dir` is None unless `observability_enabled`. `prices` is what `price_file` holds.
    """

    gateway_api_keys: tuple[Secret, ...] = key(
        Keys(),
        (),
        "keys that clients must send as `Authorization: Bearer`; none at all, here or in a file, lets everybody in",
        CLIENTS,
        shared=True,
    )
    gateway_api_keys_file: str | None = key(
        KeyFilePath(), None, "a file with such keys, one a line; read again when it changes", CLIENTS, shared=True
    )
    clients_file: str | None = key(
        TextFile(),
        None,
        "a file of clients with names, keys, budgets: `{team-a: {key: gw-..., budget_usd: 20, per: day}}`; read again "
        "when it changes",
        CLIENTS,
        shared=True,
    )
    unknown_cost: str = key(
        OneOf("refuse", "allow"),
        "refuse",
        "what a model without a price means to clients with budgets: the config is refused, or its calls are allowed "
        "and count as nothing",
        CLIENTS,
        shared=True,
    )
    cors_origins: tuple[str, ...] | None = key(
        CorsOrigins(),
        None,
        "web origins whose pages may call with a client key, or `*`; null: with client keys all, without none",
        CLIENTS,
    )
    price_file: str | None = key(
        PathText(),
        None,
        "table of prices, also LiteLLM's; null is `conf/prices.yaml` in the working folder, else the package's own",
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

    `notes` say what was ignored, a line each; `origins` where each dotted key came from, those in a mapping too;
    `clients` what each clients file held, by its path; `unused` keys of the command line are referred to by nothing.
    """

    servers: Mapping[str, ServerConfig]
    default_server: str
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    clients: Mapping[str, Clients] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
