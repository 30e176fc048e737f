"""Which of a client's headers pass to the upstream (WIRE: hop-by-hop never, cookies never, the key replaced).

Names go out in lower case: a WSGI environ doesn't keep their spelling. See also: head (the headers of answers),
blueprints.calls (who asks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from openai_gateway.errors import InvalidRequest

# The environ's key for the head as it came, without Content-Length. Only there if the whole environ was made of it.
CLIENT_HEAD: Final = "openai_gateway.head"
# The environ's key for headers with an underscore in their names, as (name, value): no client can set it by a header.
UNDERSCORED: Final = "openai_gateway.underscored"
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_TO_UPSTREAM: Final = HOP_BY_HOP | {
    "host",
    "content-length",
    "content-type",
    "expect",
    # Credentials for this gateway, however a client sends them; those for the upstream are the config's.
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
    "cookie",
    "forwarded",
    "accept-encoding",
    # The body goes on decoded, and the page that asked is the gateway's to judge.
    "content-encoding",
    "origin",
}
# With these a client names an account of its own: its limits and refusals are not those of the gateway's account.
OF_ACCOUNT: Final = ("openai-organization", "openai-project")
# A wrong value of these has that client's call refused. Such a refusal says nothing of other clients' calls.
OF_CLIENT: Final = (*OF_ACCOUNT, "openai-beta")
_MAX_CACHED_NAMES: Final = 1024

_to_upstream_names: dict[str, str] = {}


class RequestHeaders(dict[str, str]):
    """The headers of upstream requests; not changed once they are made, for several calls may share them."""

    __slots__ = ("_lines", "_own", "_with_own")
    _lines: str
    _own: Mapping[str, str]
    _with_own: RequestHeaders

    def with_own(self, own: Mapping[str, str]) -> RequestHeaders:
        """Return these headers with the gateway's own, which win; the same object as long as `own` is the same one."""
        try:
            if self._own is own:
                return self._with_own
        except AttributeError:
            pass
        self._own, self._with_own = own, RequestHeaders({**self, **own})
        return self._with_own

    def to_lines(self) -> str:
        """Return them as they go over the wire. Raises InvalidRequest if a value would break out of its line."""
        try:
            return self._lines
        except AttributeError:
            lines = "".join([f"{name}: {value}\r\n" for name, value in self.items()])
        if lines.count("\n") != len(self) or lines.count("\r") != len(self):
            raise InvalidRequest("A header holds a line break.")
        self._lines = lines
        return lines


def select_for_upstream(environ: Mapping[str, Any], *, has_body: bool) -> RequestHeaders:
    """Return the client's headers that go upstream, by their lower-case names.

    `accept-encoding` goes as the client sent it, none means `identity`, so that the answer needs no decoding.
    """
    headers = RequestHeaders({"accept-encoding": environ.get("HTTP_ACCEPT_ENCODING") or "identity"})
    if has_body:
        headers["content-type"] = environ.get("CONTENT_TYPE") or "application/json"
    nominated = read_nominated(environ.get("HTTP_CONNECTION", ""))
    for key, value in environ.items():
        if key[:5] == "HTTP_":
            name = _to_upstream_names.get(key)
            if name is None:
                name = _learn_to_upstream(key)
            if name and name not in nominated:
                headers[name] = value
    for name, value in environ.get(UNDERSCORED, ()):
        # An upstream may take the one for the other, so what may not pass by its usual name doesn't by this one, nor
        # what matters to the gateway.
        usual = name.replace("_", "-")
        if may_pass_upstream(usual) and usual not in nominated and not usual.startswith("openai-"):
            headers[name] = value
    return headers


def read_nominated(connection: str) -> frozenset[str]:
    """Return the names that a Connection header declares hop-by-hop (RFC 9110 7.6.1)."""
    if connection.lower() in ("", "keep-alive", "close"):
        return frozenset()
    return frozenset(option.strip().lower() for option in connection.split(","))


def _learn_to_upstream(key: str) -> str:
    name = key[5:].replace("_", "-").lower()
    return _remember(_to_upstream_names, key, name if may_pass_upstream(name) else "")


def may_pass_upstream(name: str) -> bool:
    """Tell whether a client's header of this lower-case name goes upstream."""
    return name not in _NOT_TO_UPSTREAM and not name.startswith(("x-forwarded-", "x-gateway-"))


def _remember(names: dict[str, str], key: str, name: str) -> str:
    # Bounded: a client chooses its header names.
    if len(names) < _MAX_CACHED_NAMES:
        names[key] = name
    return name
