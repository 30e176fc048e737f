"""The keys that say where a server's calls go and what is in them.

See also: keys (all of a server's keys), declaration (what a line says).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.config.checks import BaseUrl, BodyDefaults, Boolean, Headers, Integer, SecretText, Text
from openai_gateway.config.declaration import REQUIRED, key
from openai_gateway.config.path_checks import KeyFilePath
from openai_gateway.config.secret import Secret

UPSTREAM: Final = "Upstream"
BODIES: Final = "Bodies"


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class UpstreamKeys:
    """The upstream, and the bodies sent to it. Exactly one of `openai_api_key` and `openai_api_key_file` is set.

    `openai_base_url` has no trailing slash.
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
