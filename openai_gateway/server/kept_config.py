"""The last good config, which gunicorn's master reads and keeps for its workers.

Without a master that reads it (plain `gunicorn -k gevent`), each worker reads it itself. See also: settings (the hooks
that call it), wsgi.
"""

from __future__ import annotations

from openai_gateway.config import ConfigError, GatewayConfig, load_config

_last_good: GatewayConfig | None = None


def read() -> ConfigError | None:
    """Read the config and keep it; return what is wrong with it, if so, and keep the one before."""
    global _last_good
    try:
        _last_good = load_config()
    except ConfigError as error:
        return error
    return None


def keep(config: GatewayConfig) -> None:
    """Keep a config that was just read by a command that becomes the master."""
    global _last_good
    _last_good = config


def is_read() -> bool:
    """Tell whether there is a config already."""
    return _last_good is not None


def current() -> GatewayConfig:
    """Return the config that the master has read, else read it now. Raises ConfigError."""
    return _last_good or load_config()
