"""The key that the gateway holds for its upstream: configured, or in a file that may change.

The value leaves here only as a header of an upstream request.
"""

from __future__ import annotations

from collections.abc import Callable

from openai_gateway.config import Secret, ServerConfig
from openai_gateway.config.key_file import open_upstream_keys


class UpstreamKey:
    """The configured key, or the first one in the key file; `on_change` is called when another has come into use."""

    def __init__(self, server: ServerConfig, on_change: Callable[[], None]) -> None:
        self._secret = server.openai_api_key or Secret("")
        self.file = open_upstream_keys(server.openai_api_key_file) if server.openai_api_key_file else None
        if self.file is not None:
            self.file.on_change = on_change

    def reveal(self) -> str:
        """Return the key itself."""
        if self.file is None:
            return self._secret.reveal()
        keys = self.file.read()
        return keys[0] if keys else ""
