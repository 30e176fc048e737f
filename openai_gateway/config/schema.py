"""The keys of a server's settings: what each must be, and how a wrong one is complained about.

A key is one line in KEYS and one field of ServerConfig; where values come from is `files`'.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from openai_gateway.config.values import Secret

# NeMo Gym's BaseRunServerInstanceConfig, BaseResponsesAPIModelConfig and their kin.
GYM_KEYS: Final = frozenset(
    {
        "datasets",
        "debug",
        "description",
        "domain",
        "dry_run",
        "entrypoint",
        "extra_args",
        "host",
        "license",
        "name",
        "num_gpus_required",
        "num_workers",
        "port",
        "provides",
        "replace_developer_role_with_system",
        "return_token_id_information",
        "reward_range",
        "should_capture_model_calls",
        "spinup_server",
        "trajectory_capture_dir",
        "uses_reasoning_parser",
        "value",
        "verified",
    }
)
CURES: Final = {"openai_organization": "give it as the header OpenAI-Organization in openai_default_headers"}
OLD_NAMES: Final = {"base_url": "openai_base_url", "api_key": "openai_api_key", "model": "openai_model"}
OLD_DEFAULTS: Final = {"openai_base_url": "https://api.openai.com/v1"}
REQUIRED: Final = ("openai_base_url", "openai_model")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MOST_SECONDS: Final = 1e9  # what a socket's timeout can hold


class Unfit(Exception):
    """A value that is not what its key wants; `found` holds it if it may be shown, the message says what is wanted."""

    def __init__(self, message: str, *found: Any) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, slots=True)
class Key:
    """What a key's value is turned into."""

    convert: Callable[[Any], Any]
    may_be_null: bool = False


def _number(value: Any) -> Any:
    """Return a number given as a string, as environment variables give it, as a number."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _to_int(least: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        number = _number(value)
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise Unfit(f"a whole number of at least {least} is wanted", value)
        return number

    return convert


def _to_float(wanted: str, may_be: Callable[[float], bool]) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        number = _number(value)
        if isinstance(number, bool) or not isinstance(number, int | float) or not may_be(number):
            raise Unfit(f"{wanted}, or null for no bound, is wanted", value)
        return float(number)

    return convert


def _to_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Unfit("true or false is wanted", value)
    return value


def _to_one_of(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in choices:
            raise Unfit(f"one of {', '.join(choices)} is wanted", value)
        return value.lower()

    return convert


def _to_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise Unfit("a non-empty string is wanted", value)
    return value


def _to_secret(value: Any) -> Secret:
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable() or " " in value:
        raise Unfit(f"a key is wanted: a string of visible ASCII characters, not {_kind(value)} (value not shown)")
    return Secret(value)


def _kind(value: Any) -> str:
    names = {str: "such a string", dict: "a mapping", list: "a list", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _to_secrets(value: Any) -> tuple[Secret, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise Unfit(f"a list of keys is wanted, not {_kind(value)} (value not shown)")
    return tuple(_to_secret(item) for item in value)


def _to_headers(value: Any) -> dict[str, Secret]:
    if not isinstance(value, dict):
        raise Unfit(f"a mapping of header names to values is wanted, not {_kind(value)} (value not shown)")
    headers: dict[str, Secret] = {}
    for name, content in value.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise Unfit("a header name may hold letters, digits and !#$%&'*+.^_`|~- only")
        if type(content) not in (str, int, float) or not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", str(content)):
            raise Unfit(f"the value of header {name} must be one line of Latin-1 text (value not shown)")
        if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
            raise Unfit(f"header {name} is the connection's own and can't be configured")
        if name.lower() in (taken.lower() for taken in headers):
            raise Unfit(f"header {name} is given twice")
        headers[name] = Secret(str(content))
    return headers


def _to_body(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Unfit(f"a mapping of body parameters is wanted, not {_kind(value)}")
    if "model" in value:
        raise Unfit("'model' doesn't belong here: the model is always openai_model")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise Unfit("a number in it is infinite or not a number, which JSON has no form for") from None
    return value


def _to_base_url(value: Any) -> str:
    wanted = "a URL such as https://api.openai.com/v1 is wanted"
    # A URL with a user, a password or a query may hold a key.
    shown = () if isinstance(value, str) and ("@" in value or "?" in value) else (value,)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise Unfit(wanted, *shown)
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        raise Unfit(f"{wanted}; this one can't be parsed") from None
    if url.username is not None or url.password is not None:
        raise Unfit(f"{wanted}, without user or password (value not shown)")
    if url.scheme not in ("http", "https") or not host:
        raise Unfit(wanted, *shown)
    if url.fragment:
        raise Unfit(f"{wanted}, without '#'")
    return url._replace(path=url.path.rstrip("/")).geturl()


_SECONDS: Final = Key(
    _to_float("a number of seconds above 0 and up to 1e9", lambda number: 0 < number <= _MOST_SECONDS), may_be_null=True
)
KEYS: Final[Mapping[str, Key]] = {
    "openai_base_url": Key(_to_base_url),
    "openai_api_key": Key(_to_secret, may_be_null=True),
    "openai_api_key_file": Key(_to_text, may_be_null=True),
    "openai_model": Key(_to_text),
    "openai_default_headers": Key(_to_headers),
    "extra_body": Key(_to_body),
    "extra_body_responses": Key(_to_body),
    "extra_body_chat": Key(_to_body),
    "max_concurrent_requests": Key(_to_int(1), may_be_null=True),
    "drop_input_reasoning_items": Key(_to_bool),
    "max_queue": Key(_to_int(0), may_be_null=True),
    "queue_timeout_s": _SECONDS,
    "max_body_bytes": Key(_to_int(1)),
    "connect_timeout_s": _SECONDS,
    "first_byte_timeout_s": _SECONDS,
    "idle_timeout_s": _SECONDS,
    "client_timeout_s": _SECONDS,
    "total_timeout_s": _SECONDS,
    "cancel_on_disconnect": Key(_to_bool),
    "max_retries": Key(_to_int(0)),
    "retry_budget_s": _SECONDS,
    "retry_ratio": Key(_to_float("a number from 0 to 1", lambda number: 0 <= number <= 1), may_be_null=True),
    "hint_clients": Key(_to_bool),
    "breaker_cooldown_s": _SECONDS,
    "gateway_api_keys": Key(_to_secrets),
    "gateway_api_keys_file": Key(_to_text, may_be_null=True),
    "ssl_ca_file": Key(_to_text, may_be_null=True),
    "price_file": Key(_to_text, may_be_null=True),
    "usage_log": Key(_to_text, may_be_null=True),
    "usage_log_max_bytes": Key(_to_int(1), may_be_null=True),
    "access_log": Key(_to_bool),
    "slow_call_s": _SECONDS,
    "gateway_headers": Key(_to_bool),
    "log_level": Key(_to_one_of("debug", "info", "warning", "error")),
    "log_format": Key(_to_one_of("auto", "json", "plain")),
    "observability_enabled": Key(_to_bool),
    "model_call_capture_dir": Key(_to_text, may_be_null=True),
}
# May stand at the top level, for all servers, as NeMo Gym has it with the last two; a server's own key wins.
SHARED_KEYS: Final = tuple(KEYS)[tuple(KEYS).index("price_file") :]


def nearest_shared(name: str) -> str | None:
    """Return the shared key that an unknown name must be misspelt for, None if it is some other name."""
    matches = difflib.get_close_matches(name, SHARED_KEYS, n=1, cutoff=0.9) if name not in KEYS else []
    return matches[0] if matches else None


def nearest(name: str) -> str | None:
    """Return the known key that an unknown one most likely means."""
    matches = difflib.get_close_matches(name, [*KEYS, *GYM_KEYS], n=1, cutoff=0.6)
    return matches[0] if matches else None
