"""One exchange with a scripted upstream over a pool, without a call around it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from openai_gateway.transport.exchange import Exchange
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CallWatch
from openai_gateway.wire.headers import RequestHeaders
from tests.support.upstreams import ScriptedUpstream


def make_pool(upstream: ScriptedUpstream) -> ConnectionPool:
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    return ConnectionPool(host, int(port), None)


def make_request(watch: CallWatch) -> Any:
    """Return what an exchange asks of a request: its watch, and how often it may be sent."""
    return SimpleNamespace(watch=watch, most_sends=2, sends=0)


def post(pool: ConnectionPool, watch: CallWatch, body: bytes | None = b"{}") -> RawAnswer:
    return Exchange(pool, make_request(watch)).urlopen("POST", "/v1/x", body, RequestHeaders({"host": "x"}))
