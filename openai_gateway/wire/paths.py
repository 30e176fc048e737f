"""What a request path means: which rollout and server it names, and what it asks for below `/v1`.

Ids are checked here, so that no client can reach another path of the upstream.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

# NeMo Gym's agents put a second part there when a rollout's tokens are to be trained on: the same call to us.
_ROLLOUT = re.compile(r"/ng-rollout/([A-Za-z0-9._-]+)(?:/training-token-capture)?(/.*)")
ID_PATTERN: Final = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~:=@+-]{1,512}"


def split(path: str, servers: Collection[str]) -> tuple[str | None, str | None, str]:
    """Return (rollout id, server name, rest) of a decoded path; rest starts with `/`.

    `/ng-rollout/r1/judge_model/v1/responses` gives (`r1`, `judge_model`, `/v1/responses`); None where none is named.
    """
    rollout_id = None
    if path.startswith("/ng-rollout/"):
        match = _ROLLOUT.fullmatch(path)
        if match is None:
            return None, None, path
        rollout_id, path = match[1], match[2]
    name, slash, rest = path[1:].partition("/")
    if slash and name in servers:
        return rollout_id, name, "/" + rest
    return rollout_id, None, path
