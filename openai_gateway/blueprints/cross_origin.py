"""Web pages of other origins (CORS): which may call, and the headers by which their browsers let them (Fetch, 3.2).

Without client keys no page of another origin may call: any site that a user visits could spend the upstream key. With
keys a page needs one as any client does, so by default all may; `cors_origins` narrows that. See also: intake (the
keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai_gateway.errors import Forbidden

# What a browser says of a request that a page of another origin makes, such as one that a user was lured to.
_FOREIGN: Final = ("cross-site", "same-site")
_METHODS: Final = "GET, POST, DELETE"
# Preflights are asked again after so long.
_MAX_AGE_S: Final = "600"
_ADDRESS: Final = re.compile(r"(?:localhost|[\d.]+|\[[\da-f:.]+\])(?::\d+)?", re.IGNORECASE)
Header = tuple[str, str]


class CrossOrigin:
    """What pages of other origins may do with one server; `origins` None is the default."""

    def __init__(self, origins: Sequence[str] | None, *, needs_key: bool) -> None:
        self._origins = None if origins is None else frozenset(origins)
        self._needs_key = needs_key

    def check(self, environ: Mapping[str, Any]) -> None:
        """Raise Forbidden for the request of a page that may not call."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            is_foreign = environ.get("HTTP_SEC_FETCH_SITE") in _FOREIGN
        else:
            is_foreign = not _is_own(origin, environ.get("HTTP_HOST", ""))
        if is_foreign and not self._may_call(origin):
            raise Forbidden(
                "A web page of this origin may not use this gateway; gateway_api_keys lets in those that have a key,"
                " and cors_origins says which.",
                code="cross_site_request",
            )

    def make_headers(self, environ: Mapping[str, Any]) -> list[Header]:
        """Return what an answer needs to be read by the page that asked; nothing if there is none, or it may not."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or not self._may_call(origin):
            return []
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", "*"),
            ("vary", "origin"),
        ]

    def make_preflight_headers(self, environ: Mapping[str, Any]) -> list[Header]:
        """Return the headers of the answer to a preflight; nothing if the page may not call."""
        headers = self.make_headers(environ)
        if headers:
            asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
            headers += [
                ("access-control-allow-methods", _METHODS),
                # `*` would not allow `authorization` (Fetch 4.9).
                ("access-control-allow-headers", asked or "authorization, content-type"),
                ("access-control-max-age", _MAX_AGE_S),
            ]
        return headers

    def _may_call(self, origin: str | None) -> bool:
        if not self._needs_key:
            return False
        return self._origins is None or "*" in self._origins or str(origin).lower() in self._origins


def is_preflight(environ: Mapping[str, Any]) -> bool:
    """Tell whether a browser asks whether a page may call."""
    return (
        environ["REQUEST_METHOD"] == "OPTIONS"
        and "HTTP_ORIGIN" in environ
        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    )


def _is_own(origin: str, host: str) -> bool:
    # Without the scheme, which a proxy may have changed. Addresses only: any site may have a name of its own lead here.
    return origin.partition("://")[2].lower() == host.lower() and _ADDRESS.fullmatch(host) is not None
