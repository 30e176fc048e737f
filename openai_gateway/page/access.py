"""Decides who may see the status page: whoever has a gateway key; without any keys, whoever sits at this machine.

See also: blueprints.intake (which holds and compares the keys).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from openai_gateway.blueprints.intake import GatewayKeys
from openai_gateway.errors import Forbidden, Unauthorized

_CHALLENGE: Final = ("www-authenticate", 'Basic realm="openai_gateway", charset="UTF-8"')
# What a proxy adds: whoever asks is elsewhere.
_PROXY_HEADERS: Final = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP")
_PROXY_PREFIX: Final = "HTTP_X_FORWARDED_"


def admit(environ: Mapping[str, Any], servers: Iterable[GatewayKeys]) -> None:
    """Let the request in or raise: Unauthorized without a key of any server, Forbidden from elsewhere if none has keys.

    A browser gives the key as the password of HTTP Basic, with any user name.
    """
    guarded = [keys for keys in servers if keys.are_for_operators]
    if guarded:
        given = _read_key(environ.get("HTTP_AUTHORIZATION", ""))
        # All of them are looked at: the time taken tells nothing.
        if sum([keys.count_matches(given) for keys in guarded]) == 0:
            error = Unauthorized(
                "The status page needs a gateway key: as 'Authorization: Bearer KEY', or as the password in a browser."
            )
            error.added_headers = (_CHALLENGE,)
            raise error
    elif not _is_local(environ):
        raise Forbidden(
            "Without gateway_api_keys, the status page is shown on the gateway's own machine only. Open it there as"
            " http://127.0.0.1:PORT/status, through 'ssh -L PORT:127.0.0.1:PORT HOST', or set gateway_api_keys."
        )


def _read_key(authorization: str) -> bytes:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _is_local(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request comes from this machine, not by way of a proxy, and was meant for it.

    The last keeps out web pages whose own name was pointed at 127.0.0.1 (DNS rebinding).
    """
    is_proxied = any(name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIX) for name in environ)
    if is_proxied or not _is_loopback(environ.get("REMOTE_ADDR", "")):
        return False
    try:
        host = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _is_loopback(host)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
