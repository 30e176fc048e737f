"""What gunicorn's master does for its workers: it keeps the last good config, and raises the limit of open files.

Without a master that reads the config (no `gunicorn_settings`), each worker reads it itself. See also: settings (the
hooks that call it), wsgi.
"""

from __future__ import annotations

import resource
from typing import Final

from openai_gateway.config import ConfigError, GatewayConfig, load_config

# Where the system sets no limit.
_ENOUGH_FILES: Final = 65_536
_last_good: GatewayConfig | None = None


def read_config() -> ConfigError | None:
    """Read the config and keep it; return what is wrong with it, if so, and keep the one before."""
    global _last_good
    try:
        _last_good = load_config()
    except ConfigError as error:
        return error
    return None


def keep_config(config: GatewayConfig) -> None:
    """Keep a config that was just read by a command that becomes the master."""
    global _last_good
    _last_good = config


def has_config() -> bool:
    """Tell whether there is a config already."""
    return _last_good is not None


def current() -> GatewayConfig:
    """Return the config that the master has read, else read it now. Raises ConfigError."""
    return _last_good or load_config()


def raise_file_limit() -> None:
    """Allow this process, and those it starts, as many open files as it may have: each call holds two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else max(soft, _ENOUGH_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
