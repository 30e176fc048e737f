"""What `limits_url` may be: the URL of a Redis or Valkey, which may hold a password, so it is never shown.

What is said to it is `limits.redis_link`'s.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any, Final
from urllib.parse import urlsplit

from marshmallow import ValidationError

from openai_gateway.config.checks import Check
from openai_gateway.config.secret import Secret

_WANTED: Final = "a URL such as redis://user:password@host:6379/0 (rediss:// with TLS) is wanted (value not shown)"
_INSTALL: Final = "needs the package redis, which is not installed: pip install 'openai_gateway[redis]'"
_DATABASE = re.compile(r"/?\d*")


class RedisUrl(Check):
    """The URL of a Redis."""

    kind = "string"

    def convert(self, value: Any) -> Secret:
        """Return it, hidden."""
        if not _is_redis_url(value):
            raise ValidationError(_WANTED)
        if importlib.util.find_spec("redis") is None:
            raise ValidationError(_INSTALL)
        return Secret(value)


def _is_redis_url(value: Any) -> bool:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        return False
    try:
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError:
        return False
    is_bare = bool(_DATABASE.fullmatch(url.path)) and not url.query and not url.fragment
    return url.scheme in ("redis", "rediss") and bool(host) and port != 0 and is_bare
