"""Makes the Flask app: the one place where objects are made and wired. GatewayConfig in, Flask app out.

Knows which URL prefix means which server. See also: blueprints (what a URL does), config (where the GatewayConfig
comes from), wsgi (who calls it).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import flask
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed
from werkzeug.routing import BaseConverter, Rule

from openai_gateway.accounting.aggregate import Aggregate
from openai_gateway.accounting.budgets import Budgets, derive_budgets_path
from openai_gateway.accounting.capture import Captures
from openai_gateway.accounting.capturing import ServerCapturer
from openai_gateway.accounting.log import CallLog, lost_lines
from openai_gateway.accounting.shared_files import make_folder_name
from openai_gateway.accounting.snapshot import Snapshots
from openai_gateway.accounting.standings import Standings
from openai_gateway.accounting.totals import ServerState
from openai_gateway.accounting.tracing import open_tracing
from openai_gateway.accounting.usage_log import UsageLog
from openai_gateway.blueprints import chat, conversations, models, operations, responses
from openai_gateway.blueprints.calls import CallServer, Endpoint
from openai_gateway.blueprints.cross_origin import Header, is_preflight
from openai_gateway.blueprints.reply import DroppedResponse, StartResponse, to_error_response, with_headers
from openai_gateway.blueprints.serving import FEED, SERVER_NAME, SERVERS, SNAPSHOTS
from openai_gateway.blueprints.websocket import is_handshake
from openai_gateway.config import GatewayConfig, ServerConfig
from openai_gateway.config.client_faults import find_looseness
from openai_gateway.config.clients import Clients, ClientsFile, open_clients
from openai_gateway.config.secret import Secret
from openai_gateway.errors import (
    ClientGone,
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    UnknownUrl,
    UpgradeRefused,
)
from openai_gateway.limits.redis_exchange import RedisExchange
from openai_gateway.limits.redis_link import RedisLink
from openai_gateway.page import status
from openai_gateway.page.feed import Feed
from openai_gateway.recordings.opening import open_recordings
from openai_gateway.upstream.recorder import Observer
from openai_gateway.upstream.relay import Relay
from openai_gateway.websocket.tunnel import count_open
from openai_gateway.wire import paths

_log = logging.getLogger("openai_gateway")
_SHORTCUTS: Final[dict[str, Endpoint]] = {
    "/v1/responses": responses.CREATE,
    "/v1/chat/completions": chat.CREATE,
}


_SERVED: Final = (
    "Served are /v1/responses, /v1/chat/completions, /v1/conversations and what is below them, and /v1/models."
    " A client's base URL looks like http://127.0.0.1:8000/v1."
)


class _ItemId(BaseConverter):
    """An id in a path; anything that could lead the upstream elsewhere is no id, so the URL is unknown."""

    regex = paths.ID_PATTERN


class _Rule(Rule):
    """A rule to find a view by; nothing here makes URLs of rules: to get ready for it would take 40 ms of a start."""

    def _compile_builder(self, append_unknown: bool = True) -> Any:
        return lambda *given: None


class GatewayApp(flask.Flask):
    """Takes the prefixes off a path, and serves the two POST paths without Flask's dispatch.

    The shortcut calls exactly what the views call; `has_shortcut` False sends everything through Flask, for the tests
    to run over both ways.
    """

    has_shortcut = True
    url_rule_class = _Rule

    def __init__(self, config: GatewayConfig) -> None:
        super().__init__("openai_gateway", static_folder=None)
        models = {name: server.openai_model for name, server in config.servers.items()}
        usage_logs = _open_usage_logs(config)
        captures = _open_captures(config)

        def count_lost() -> dict[str, int]:
            return {
                "usage_log": sum(log.lost for log in usage_logs.values()),
                "captures": sum(folder.lost for folder in captures.values()),
                "log": lost_lines.count,
            }

        aggregate = Aggregate(models, self._get_states, count_lost, count_open)
        self.snapshots = self.extensions[SNAPSHOTS] = Snapshots(aggregate, lambda: self.standings)
        self.extensions[FEED] = Feed(self.snapshots.snapshot)
        trace = open_tracing(models)
        shared = [aggregate.observe] if trace is None else [aggregate.observe, trace]
        recordings = open_recordings(config, Path(tempfile.gettempdir(), make_folder_name(os.getppid()), "joined"))
        clients = _open_clients(config)
        self.budgets = _open_budgets(config)
        self.standings = Standings(
            clients, self.budgets, lambda: [file for server in self._servers.values() for file in server.key_files]
        )
        self._servers = {
            name: CallServer(
                server,
                Relay(
                    server,
                    _make_observers(server, shared, usage_logs),
                    ServerCapturer(captures[server.model_call_capture_dir]) if server.model_call_capture_dir else None,
                ),
                recordings.get(name),
                clients.get(server.clients_file or ""),
                self.budgets,
            )
            for name, server in config.servers.items()
        }
        self._default_server = config.default_server
        self._urls = {name: server.limits_url for name, server in config.servers.items()}
        self.extensions[SERVERS] = self._servers

    @property
    def is_open_to_all(self) -> bool:
        """Tell whether a client needs no key for one of the servers."""
        return not all(server.keys.are_required for server in self._servers.values())

    def share_limits(self, workers: int) -> None:
        """Share the upstreams' limits with the host's other workers, and with other hosts; once, after the fork."""
        exchanges: dict[Secret, RedisExchange] = {}
        for name, server in self._servers.items():
            part, url = server.share_limits(workers), self._urls[name]
            if url is not None and url not in exchanges:
                exchanges[url] = RedisExchange(RedisLink(url))
            if url is not None and part is not None:
                exchanges[url].add(part)
        budgets = self.budgets.make_part()
        for exchange in exchanges.values():
            # Budgets are those of all servers: they have one place.
            if budgets is not None:
                exchange.add(budgets)
                budgets = None
            exchange.start()

    def wsgi_app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        path = environ["PATH_INFO"]
        name: str | None = None
        endpoint = _SHORTCUTS.get(path)
        if endpoint is None:
            environ["openai_gateway.rollout_id"], name, path = paths.split(path, self._servers)
            environ["PATH_INFO"] = path
            endpoint = _SHORTCUTS.get(path)
        environ[SERVER_NAME] = name = name or self._default_server
        if "HTTP_ORIGIN" in environ and path.startswith("/v1/"):
            cross_origin = self._servers[name].cross_origin
            if is_preflight(environ):
                return _answer_preflight(cross_origin.make_preflight_headers(environ))(environ, start_response)
            start_response = with_headers(start_response, environ, cross_origin.make_headers(environ))
        if endpoint is None or environ["REQUEST_METHOD"] != "POST" or not self.has_shortcut:
            if is_handshake(environ) and path.startswith("/v1/"):
                # werkzeug never matches a plain rule on one.
                return self._serve_websocket(environ, name)(environ, start_response)
            return super().wsgi_app(environ, start_response)
        try:
            response = self._servers[name].serve(environ, endpoint)
        except GatewayError as error:
            response = to_error_response(error)
        except Exception:
            response = _answer_internal_error()
        return response(environ, start_response)

    def _serve_websocket(self, environ: dict[str, Any], name: str) -> flask.Response:
        try:
            if environ["PATH_INFO"] != "/v1/responses":
                raise UpgradeRefused("There is a WebSocket mode of /v1/responses only; send the call as plain HTTP.")
            return self._servers[name].serve_websocket(environ)
        except GatewayError as error:
            return to_error_response(error)
        except ClientGone:
            return DroppedResponse()

    def _get_states(self) -> dict[str, ServerState]:
        for server in self._servers.values():
            # Whoever asks wants to know of every call that is over.
            server.settle_records()
        return {name: server.state() for name, server in self._servers.items()}


def _open_usage_logs(config: GatewayConfig) -> dict[str, UsageLog]:
    """Return one usage log for each file named, which several servers may share."""
    return {
        server.usage_log: UsageLog(server.usage_log, server.usage_log_max_bytes)
        for server in config.servers.values()
        if server.usage_log is not None
    }


def _open_clients(config: GatewayConfig) -> dict[str, ClientsFile]:
    """Return the clients files named, each of which several servers may share."""
    users: dict[str, list[ServerConfig]] = {}
    for server in config.servers.values():
        if server.clients_file is not None:
            users.setdefault(server.clients_file, []).append(server)
    return {
        path: open_clients(
            path,
            config.clients.get(path, Clients()),
            frozenset(config.servers),
            {server.name: list(find_looseness(server)) for server in servers},
        )
        for path, servers in users.items()
    }


def _open_budgets(config: GatewayConfig) -> Budgets:
    """Return the budgets, kept beside the usage log; without one, as long as this gateway lives."""
    logs = [server.usage_log for server in config.servers.values() if server.usage_log is not None]
    names = [
        name for clients in config.clients.values() for name, client in clients.by_name.items() if client.budget_usd
    ]
    if logs:
        budgets = Budgets(derive_budgets_path(logs[0]), logs, names)
        if names:
            budgets.open()
        return budgets
    return Budgets(str(Path(tempfile.gettempdir(), make_folder_name(os.getppid()), "budgets")))


def _open_captures(config: GatewayConfig) -> dict[str, Captures]:
    """Return what captures to each folder named."""
    folders = {server.model_call_capture_dir for server in config.servers.values()}
    return {folder: Captures(folder) for folder in folders if folder is not None}


def _make_observers(
    server: ServerConfig, shared: Sequence[Observer], usage_logs: Mapping[str, UsageLog]
) -> list[Observer]:
    observers = [*shared, CallLog(server).observe]
    if server.usage_log is not None:
        observers.append(usage_logs[server.usage_log].observe)
    return observers


def create_app(config: GatewayConfig) -> GatewayApp:
    """Return the app that serves a config; one for the life of a worker process."""
    for note in config.notes:
        _log.info(note)
    app = GatewayApp(config)
    app.url_map.merge_slashes = False
    app.url_map.converters["item_id"] = _ItemId
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    for module in (responses, chat, conversations, models, operations, status):
        app.register_blueprint(module.blueprint)
    app.register_error_handler(GatewayError, to_error_response)
    names = ", ".join(config.servers)
    app.register_error_handler(HTTPException, lambda error: _from_werkzeug(error, names))
    app.register_error_handler(Exception, lambda error: _answer_internal_error())
    return app


def _from_werkzeug(error: HTTPException, servers: str) -> flask.Response:
    request = flask.request
    if isinstance(error, WerkzeugMethodNotAllowed):
        allow = ", ".join(sorted(error.valid_methods or ()))
        return to_error_response(MethodNotAllowed(f"{request.method} is not allowed here; allowed: {allow}.", allow))
    if isinstance(error, NotFound):
        asked = request.environ.get("RAW_URI", request.path).partition("?")[0]
        told = f"{_SERVED} Servers: {servers}; a server's base URL has its name before /v1."
        return to_error_response(UnknownUrl(f"Unknown request URL: {request.method} {asked[:200]}. {told}"))
    return to_error_response(InvalidRequest(str(error.description)))


def _answer_preflight(headers: list[Header]) -> flask.Response:
    if headers:
        return flask.Response(status=204, headers=headers)
    return to_error_response(
        Forbidden("A web page of this origin may not use this gateway.", code="cross_site_request")
    )


def _answer_internal_error() -> flask.Response:
    _log.exception("a request ended in an unexpected error")
    return to_error_response(GatewayError("The gateway met an unexpected error."))
