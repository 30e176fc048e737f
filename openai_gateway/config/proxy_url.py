"""What `upstream_proxy` may be: an HTTP proxy's URL, or `environment` for what `https_proxy` and its kin say.

A URL may hold a password, so it is never shown. See also: redis_url (the other URL with a password), transport.proxy
(what is said to a proxy).
"""

from __future__ import annotations

import re
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

from marshmallow import ValidationError

from openai_gateway.config.checks import Check
from openai_gateway.config.secret import Secret

_NO_PATH = re.compile("/?")
ENVIRONMENT: Final = "environment"
_WANTED: Final = "a proxy such as http://user:password@host:3128, or 'environment', is wanted (value not shown)"


class ProxyUrl(Check):
    """The URL of an HTTP proxy, or `environment`."""

    kind = "string"

    def convert(self, value: Any) -> Secret:
        """Return it, hidden."""
        if value != ENVIRONMENT and not _is_proxy_url(value):
            raise ValidationError(_WANTED)
        return Secret(value)


def find_environment_proxy(base_url: str) -> Secret | None:
    """Return the proxy that the environment names for a base URL, None if it names none or `no_proxy` names the host.

    Raises ValidationError if that isn't an HTTP proxy.
    """
    url = urlsplit(base_url)
    proxies = urllib.request.getproxies_environment()
    found = proxies.get(url.scheme) or proxies.get("all")
    is_bypassed = urllib.request.proxy_bypass_environment(url.netloc, proxies)  # type: ignore[attr-defined]
    if found is None or is_bypassed:
        return None
    if "://" not in found:
        found = f"http://{found}"
    if not _is_proxy_url(found):
        raise ValidationError(f"says 'environment', but what {url.scheme}_proxy names is no http:// proxy (not shown)")
    return Secret(found)


def is_url_of_host(value: Any, schemes: tuple[str, ...], path: re.Pattern[str]) -> bool:
    """Tell whether a value is a URL of a host, with nothing behind it but a path such as this."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        return False
    try:
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError:
        return False
    is_bare = bool(path.fullmatch(url.path)) and not url.query and not url.fragment
    return url.scheme in schemes and bool(host) and port != 0 and is_bare


def _is_proxy_url(value: Any) -> bool:
    return is_url_of_host(value, ("http",), _NO_PATH)
