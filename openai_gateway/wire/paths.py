"""What a request path means: which rollout and server it names, and what it asks for below `/v1`.

Ids are checked here, so that no client can reach another path of the upstream. See also: app (who asks).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

# NeMo Gym's agents put a second part there when a rollout's tokens are to be trained on: the same call to us.
# A name of a file, with what comes after it.
_ROLLOUT = re.compile(r"/ng-rollout/([A-Za-z0-9._-]{1,200})(?:/training-token-capture)?(/.*)")
# How clients write what is below a base URL: without /v1 in that, with it twice, as Azure has it.
_API: Final = re.compile(
    r"/(?:v1/(?:v1/)?|openai/(?:v1/|deployments/[^/]+/)?)?((?:responses|chat/completions|conversations|models)(?:/.*)?)"
)
ID_PATTERN: Final = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~:=@+-]{1,512}"
# No URL; what is asked for by it is unknown.
UNKNOWN: Final = "/v1/"


def split(path: str, servers: Collection[str]) -> tuple[str | None, str | None, str]:
    """Return (rollout id, server name, path of the API) of a decoded path; the last starts with `/v1/` and is written
    in one way only, or is the path itself if that is the gateway's own, such as `/metrics`.

    `/ng-rollout/r1/judge_model/responses/` gives (`r1`, `judge_model`, `/v1/responses`); None where none is named.
    Prefixes lead to the API alone: a proxy that keeps `/metrics` to itself keeps all of it.
    """
    if "//" in path:
        return None, None, UNKNOWN
    rollout_id, name, rest = None, None, path
    if rest.startswith("/ng-rollout/"):
        match = _ROLLOUT.fullmatch(rest)
        if match is None:
            return None, None, UNKNOWN
        rollout_id, rest = match[1], match[2]
    first, slash, below = rest[1:].partition("/")
    if slash and first in servers:
        name, rest = first, "/" + below
    asked = _API.fullmatch(rest)
    if asked is not None:
        return rollout_id, name, "/v1/" + asked[1].removesuffix("/")
    return rollout_id, name, UNKNOWN if rest is not path or rest.startswith("/v1") else path
