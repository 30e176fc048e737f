"""Where `collect` sends its calls: a running gateway, or one that is started for as long as it runs.

With what its calls are thought to cost, and with what it asks beyond the rows. See also: collection (who sends),
own_gateway (the one that is started), collect.estimate (costs).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import click

from openai_gateway.cli.exits import CalledWrongly, CommandFailed
from openai_gateway.cli.own_gateway import OwnGateway, find_server_url, make_override_key
from openai_gateway.collect.client import Gateway
from openai_gateway.collect.estimate import Estimator
from openai_gateway.collect.failures import Failure
from openai_gateway.collect.params import read_max_output_tokens, read_text
from openai_gateway.collect.questions import CHAT, RESPONSES
from openai_gateway.config.price_files import BadPrices, find_usual_file, read_prices
from openai_gateway.config.prices import PriceTable

KEY_VARIABLE: Final = "OPENAI_GATEWAY_API_KEY"


@dataclass(frozen=True)
class Target:
    """A running gateway or one to be started; `extra_body` is what the config adds to each API's calls, if known.

    `added_headers` go with each call to one that is started.
    """

    running: Gateway | None
    own: OwnGateway | None
    estimator: Estimator
    extra_body: Mapping[str, Mapping[str, Any]] | None = None
    added_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def cap(self) -> int | None:
        """How many calls at a time the gateway makes, None if that is not known."""
        return self.own.server.max_concurrent_requests if self.own is not None else None

    @contextlib.contextmanager
    def open(self) -> Iterator[Gateway]:
        """Give the gateway, started if need be. Raises NotReady."""
        if self.own is None:
            assert self.running is not None
            yield self.running
            return
        click.echo("Starting the gateway ...", err=True)
        # Closed first: a server that is ended waits for the connections of its clients.
        with self.own.run() as (url, key), contextlib.closing(Gateway(url, key, self.added_headers)) as gateway:
            gateway.is_own = True
            _greet(gateway)
            yield gateway


def find_running_gateway(base_url: str, server: str | None, price_file: Path | None) -> Target:
    """Return a gateway that runs already. Raises CalledWrongly, CommandFailed."""
    url = find_server_url(base_url, server)
    if not _is_base_url(url):
        raise click.UsageError("--base-url must look like http://127.0.0.1:8000/v1")
    gateway = Gateway(url, os.environ.get(KEY_VARIABLE, "").strip() or None)
    return Target(gateway, None, Estimator(read_price_table(price_file), _greet(gateway, server), {}))


def prepare_own_gateway(own: OwnGateway, price_file: Path | None, added_headers: Mapping[str, str]) -> Target:
    """Return the gateway that is to be started. Raises CalledWrongly."""
    server = own.server
    extra_body = {
        RESPONSES: {**server.extra_body, **server.extra_body_responses},
        CHAT: {**server.extra_body, **server.extra_body_chat},
    }
    prices = server.prices if price_file is None else read_price_table(price_file)
    bounds = {api: read_max_output_tokens(body) for api, body in extra_body.items()}
    tiers = {api: read_text(body.get("service_tier")) for api, body in extra_body.items()}
    return Target(None, own, Estimator(prices, server.openai_model, bounds, tiers), extra_body, added_headers)


def configure_own_gateway(
    configs: Sequence[str],
    overrides: Sequence[str],
    server: str | None,
    timeout_s: float | None,
    recordings: Path | None,
) -> OwnGateway:
    """Return the gateway that a config makes, with another bound on the wait for an answer, or a folder of kept ones.

    Either is None where the config's own holds.
    """
    own = OwnGateway(configs, overrides, server)
    given: dict[str, object] = {}
    if timeout_s is not None:
        given["first_byte_timeout_s"] = timeout_s
    if recordings is not None:
        given["recordings"] = "reuse"
        given["recordings_dir"] = str(recordings.absolute())
    if not given:
        return own
    keys = [f"{make_override_key(own.server.name, key)}={json.dumps(value)}" for key, value in given.items()]
    return OwnGateway(configs, [*overrides, *keys], server)


def make_recorded_headers(output: Path, *, is_redo: bool) -> dict[str, str]:
    """Return the headers of a run with recordings.

    All runs of an output, and its parts, are one run for the gateway: a repeat that is asked for later isn't handed
    the answer that another repeat has had. What is to be asked again is not to come from the recordings.
    """
    return {
        "x-gateway-run": quote(str(output.absolute())),
        **({"cache-control": "no-cache"} if is_redo else {}),
    }


def _greet(gateway: Gateway, server: str | None = None) -> str | None:
    """Return the gateway's model, None if it has not exactly one; `server` has to be there if it is given."""
    found = gateway.greet()
    if isinstance(found, Failure):
        raise CommandFailed(f"{found.message}; {found.what_to_do}")
    if not gateway.knows_rollouts:
        if server is not None:
            raise CommandFailed(f"no gateway with a server {server!r} is there: see --base-url, --server")
        click.echo("note: no openai_gateway answers there; calls go out without rollout ids", err=True)
    return found[0] if len(found) == 1 else None


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        return False


def read_price_table(path: Path | None) -> PriceTable:
    """Return the prices of a file, else of the usual one. Raises CalledWrongly."""
    path = path or find_usual_file(Path())
    try:
        return read_prices(path)
    except BadPrices as error:
        raise CalledWrongly(f"{path} {error}") from None
