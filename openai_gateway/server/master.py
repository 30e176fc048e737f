"""Keeps the last good config of a gunicorn master, which its workers inherit: a bad new one can't stop the service.

Without a master that reads it (no `gunicorn_settings`), each worker reads the config itself.
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


def current() -> GatewayConfig:
    """Return the config that the master has read, else read it now. Raises ConfigError."""
    return _last_good or load_config()
