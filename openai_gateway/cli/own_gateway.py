"""The gateway that a command starts for itself from the config, on a port and with a key that nobody else knows.

See also: servers (how gunicorn is run), choosing (which config).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from openai_gateway.cli.choosing import load, make_environ
from openai_gateway.cli.servers import run_server
from openai_gateway.config import ServerConfig
from openai_gateway.config.load import SERVER_VARIABLE

_KEYS_FILE: Final = "gateway_api_keys_file"


class OwnGateway:
    """A gateway that serves `server`; `unused` are keys of the command line that do nothing. Raises ConfigError."""

    def __init__(self, paths: Sequence[str], overrides: Sequence[str], server: str | None) -> None:
        self._environ = make_environ(paths, overrides)
        if server is not None:
            self._environ[SERVER_VARIABLE] = server
        config = load(self._environ)
        self.server: ServerConfig = config.servers[config.default_server]
        self.unused = config.unused
        self._names = list(config.servers)

    @contextlib.contextmanager
    def run(self) -> Iterator[tuple[str, str]]:
        """Serve for the length of a `with` block and give the base URL and a key. Raises NotReady."""
        key = secrets.token_urlsafe(24)
        # Other users of this machine must not spend the upstream key.
        locks = [
            override
            for name in self._names
            for override in (
                f"{make_override_key(name, 'gateway_api_keys')}=[{key}]",
                f"{make_override_key(name, _KEYS_FILE)}=null",
            )
        ]
        environ = make_environ((), locks, self._environ)
        with run_server("openai_gateway.wsgi:app", environ, is_apart=True) as url:
            yield f"{url}/v1", key


def make_override_key(server: str, key: str) -> str:
    """Return an override's part before the `=`, for one key of a server."""
    return f"++{server}.responses_api_models.openai_model.{key}"


def find_server_url(base_url: str, server: str | None) -> str:
    """Return the base URL of one of a running gateway's servers, None being the one at plain `/v1`."""
    plain = base_url.rstrip("/")
    return plain if server is None else f"{plain.removesuffix('/v1')}/{server}/v1"
