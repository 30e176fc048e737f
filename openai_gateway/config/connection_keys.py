"""The keys that say how connections to a server's upstream are made, trusted and kept.

See also: keys (all of a server's keys), declaration (what a line says), build (what must hold between keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from openai_gateway.config.checks import Boolean, Seconds
from openai_gateway.config.declaration import key
from openai_gateway.config.path_checks import CertificateFile, TextFile
from openai_gateway.config.proxy_url import ProxyUrl
from openai_gateway.config.secret import Secret
from openai_gateway.config.upstream_keys import UpstreamKeys

CONNECTIONS: Final = "Connections"


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class ConnectionKeys(UpstreamKeys):
    """TLS, proxy, age and probes of connections. `upstream_proxy` is a URL, which may hold a password."""

    ssl_ca_file: str | None = key(
        CertificateFile(),
        None,
        "CA certificates to trust instead of the usual ones; verification is always on",
        CONNECTIONS,
    )
    ssl_strict: bool = key(
        Boolean(),
        False,
        "refuse certificates that break formal rules of RFC 5280, as Python 3.13 does by itself; those of many private "
        "CAs do",
        CONNECTIONS,
    )
    ssl_cert_file: str | None = key(
        TextFile(), None, "the certificate (chain) that the gateway shows to the upstream, as PEM", CONNECTIONS
    )
    ssl_key_file: str | None = key(
        TextFile(), None, "its private key, as PEM without a password; null: in `ssl_cert_file`", CONNECTIONS
    )
    upstream_proxy: Secret | None = key(
        ProxyUrl(),
        None,
        "HTTP proxy to reach the upstream through (CONNECT), `http://[user:password@]host:port`; `environment`: what "
        "`https_proxy` and its kin say, which else are never looked at",
        CONNECTIONS,
    )
    connection_max_age_s: float | None = key(
        Seconds(),
        300.0,
        "a connection that old takes no further call, so that a balancer's changes are followed; null: any age",
        CONNECTIONS,
    )
    tcp_keepalive_s: float | None = key(
        Seconds(),
        60.0,
        "TCP probes on connections silent for so long, to upstreams and, by the default server's value, from clients; "
        "null: none",
        CONNECTIONS,
        shared=True,
    )
