"""What `limits_url` may be: the URL of a Redis or Valkey, which may hold a password, so it is never shown.

See also: proxy_url, limits.redis_link (what is said to it).
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any, Final

from marshmallow import ValidationError

from openai_gateway.config.checks import Check
from openai_gateway.config.proxy_url import is_url_of_host
from openai_gateway.config.secret import Secret

_WANTED: Final = "a URL such as redis://user:password@host:6379/0 (rediss:// with TLS) is wanted (value not shown)"
_INSTALL: Final = "needs the package redis, which is not installed: pip install 'openai_gateway[redis]'"
_DATABASE = re.compile(r"/?\d*")


class RedisUrl(Check):
    """The URL of a Redis."""

    kind = "string"

    def convert(self, value: Any) -> Secret:
        """Return it, hidden."""
        if not is_url_of_host(value, ("redis", "rediss"), _DATABASE):
            raise ValidationError(_WANTED)
        if importlib.util.find_spec("redis") is None:
            raise ValidationError(_INSTALL)
        return Secret(value)
