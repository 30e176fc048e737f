"""Examines the Redis by which hosts share limits, as one finding of `check`.

See also: examination (the upstream's findings), limits.redis_link (the connection).
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Final

from openai_gateway.config import ServerConfig
from openai_gateway.limits.redis_link import RedisAway, RedisLink
from openai_gateway.probe.examination import FAILED, OK, Finding

_CURE: Final = (
    "see whether limits_url names the right host, port, user and password, and that Redis runs; without it calls go on,"
    " but each host goes by itself"
)


def examine_redis(server: ServerConfig) -> Iterator[Finding]:
    """Give the finding, if the server's limits are shared with other hosts."""
    if server.limits_url is None:
        return
    link, started = RedisLink(server.limits_url), perf_counter()
    try:
        (told,) = link.ask([("INFO", "server")])
    except RedisAway as away:
        yield Finding("Redis", FAILED, perf_counter() - started, str(away), _CURE)
    else:
        kind = "Valkey" if "valkey_version" in told else "Redis"
        version = told.get("valkey_version") or told.get("redis_version")
        yield Finding("Redis", OK, perf_counter() - started, f"{kind} {version} answers; hosts share limits by it")
    finally:
        link.close()
