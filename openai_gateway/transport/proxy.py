"""A tunnel through an HTTP proxy (CONNECT), by which a peer is reached that can't be connected to.

The proxy learns host and port only; what is said through it is the caller's, TLS or not. See also: dial (who asks),
config.proxy_url (which proxy there is).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from http.client import responses as REASONS
from typing import Final
from urllib.parse import unquote, urlsplit

from openai_gateway.transport.answer_heads import await_head
from openai_gateway.transport.connection import Connection
from openai_gateway.transport.errors import Unreachable

_DEFAULT_PORT: Final = 80


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is, and the value of `proxy-authorization` that it wants."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


def parse_proxy(url: str) -> Proxy:
    """Return the proxy of a URL such as `http://user:password@host:3128`, which was checked before."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORT
    if parts.username is None:
        return Proxy(host, port)
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, f"Basic {base64.b64encode(credentials.encode()).decode()}")


def open_tunnel(connection: Connection, proxy: Proxy, host: str, port: int) -> None:
    """Have the proxy at the other end of a connection connect it to host and port. Raises Unreachable, OSError."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"host: {place}"]
    if proxy.authorization is not None:
        lines.append(f"proxy-authorization: {proxy.authorization}")
    connection.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head, surplus = await_head(connection)
    if not 200 <= head.status < 300:
        # Its own words are shown to nobody: they might repeat the password.
        raise Unreachable(f"can't be reached: the proxy answered {head.status} {REASONS.get(head.status, '')}".rstrip())
    if surplus:
        raise Unreachable("can't be reached: the proxy sent more than its answer")
