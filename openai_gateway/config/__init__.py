"""The config: read, merged, checked, frozen. `load_config` is all that others need.

Nothing here talks to a network.
"""

from __future__ import annotations

from openai_gateway.config.complaints import ConfigError
from openai_gateway.config.keys import GatewayConfig, ServerConfig
from openai_gateway.config.load import load_config
from openai_gateway.config.secret import Secret

__all__ = ["ConfigError", "GatewayConfig", "Secret", "ServerConfig", "load_config"]
