"""What a config comes to: frozen values, and a holder for secrets that never shows them.

How they are read is `files`', how they are checked `schema`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from openai_gateway.config.prices import PriceTable


class Secret:
    """A string that shows itself only to `reveal()`: not in repr, str, format, a traceback or a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret can't be pickled")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of one server; keys as in NeMo Gym's `openai_model`, and ours. Times are seconds, None no bound.

    Exactly one of `openai_api_key` and `openai_api_key_file` is set. `openai_base_url` has no trailing slash.
    `model_call_capture_dir` is None unless `observability_enabled`. `prices` is what `price_file` holds.
    """

    name: str
    openai_base_url: str
    openai_model: str
    openai_api_key: Secret | None = None
    openai_api_key_file: str | None = None
    openai_default_headers: Mapping[str, Secret] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    extra_body_responses: Mapping[str, Any] = field(default_factory=dict)
    extra_body_chat: Mapping[str, Any] = field(default_factory=dict)
    max_concurrent_requests: int | None = None
    drop_input_reasoning_items: bool = False
    max_queue: int | None = None
    queue_timeout_s: float | None = None
    max_body_bytes: int = 64 * 1024 * 1024
    connect_timeout_s: float | None = 10.0
    first_byte_timeout_s: float | None = 600.0
    idle_timeout_s: float | None = 600.0
    client_timeout_s: float | None = 60.0
    total_timeout_s: float | None = None
    cancel_on_disconnect: bool = True
    max_retries: int = 2
    retry_budget_s: float | None = 60.0
    retry_ratio: float | None = 0.2
    hint_clients: bool = True
    breaker_cooldown_s: float | None = 30.0
    gateway_api_keys: tuple[Secret, ...] = ()
    gateway_api_keys_file: str | None = None
    ssl_ca_file: str | None = None
    price_file: str | None = None
    usage_log: str | None = None
    usage_log_max_bytes: int | None = None
    access_log: bool = False
    slow_call_s: float | None = 300.0
    gateway_headers: bool = True
    log_level: str = "info"
    log_format: str = "auto"
    observability_enabled: bool = False
    model_call_capture_dir: str | None = None
    prices: PriceTable = field(default_factory=PriceTable)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All servers of one config; `default_server` names the one at plain `/v1`.

    `notes` say what was ignored, a line each; `origins` where each dotted key came from, those in a mapping too.
    """

    servers: Mapping[str, ServerConfig]
    default_server: str
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config: where, what was found, and what is wanted; never a secret."""

    place: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)


class ConfigError(Exception):
    """The config can't be used; the message lists every problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"openai_gateway: {count} in the config:\n" + "\n".join(f"  - {p}" for p in problems))
