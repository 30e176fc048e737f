"""gunicorn's gevent worker with a connection's loop of its own, in which every request goes the same way.

gunicorn imports this module in its master, before anything is patched, and not anew at SIGHUP: nothing is opened
here. See also: client_connection (what one connection goes through), adoption (how a process finds its worker).
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from types import MethodType
from typing import Any, Final

import gevent
from gunicorn.config import PostRequest, PreRequest
from gunicorn.http.message import MAX_REQUEST_LINE
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import is_http2_negotiated
from gunicorn.util import close
from gunicorn.workers.ggevent import GeventWorker

from openai_gateway.server import client_connection, draining, open_files, plugins
from openai_gateway.server.balance import Balance
from openai_gateway.server.lingering import silences
from openai_gateway.server.listener import Listener, handshakes
from openai_gateway.server.master import ask_for_another, tell_of_end
from openai_gateway.server.plain import MAX_HEAD_BYTES, MAX_HEADERS
from openai_gateway.server.successors import Successors
from openai_gateway.server.waits import tick_forever
from openai_gateway.server.writer import sends
from openai_gateway.transport.watch import call_in_hub

# For settings that nobody has set: gunicorn's own defaults (2 s, 1,000) are meant for short requests.
KEEPALIVE_S: Final = 75
CONNECTIONS: Final = 10_000
# A request that is on its way when a stop comes gets through before idle connections are closed.
_IDLE_S: Final = 1.0
# Whoever has taken longer than that to send a head, or for a TLS handshake, when a stop comes isn't waited for.
_HEAD_S: Final = 1.0
_ON_ITS_WAY_S: Final = 0.5
_STAND_BY_S: Final = 0.5


class Worker(GeventWorker):  # type: ignore[misc]
    """Serves the gateway's app, or any other."""

    reads_plain = _leaves_all_to_gunicorn = _has_asked_for_another = _is_stopping = False
    keeps_alive = True
    limit_request_line = 0
    wsgi: Any
    on_stop: Callable[[], None] | None = None
    on_give_way: Callable[[], None] | None = None
    _balance: Balance | None = None
    _successors: Successors | None = None
    _connections = 0

    def patch(self) -> None:
        """Make the process gevent's, as gunicorn does; its first step."""
        with plugins.look_once():
            super().patch()

    def run(self) -> None:
        """Serve until told to stop and every call is over."""
        cfg = self.cfg
        open_files.raise_limit()
        client_connection.idle.seconds = float(_unless_default(cfg, "keepalive", KEEPALIVE_S))
        self.keeps_alive = client_connection.idle.seconds > 0
        self._base_environ = {**base_environ(cfg), "wsgi.errors": sys.stderr, "wsgi.multithread": True}
        self._environs: dict[Any, Mapping[str, Any]] = {}
        # Who spawned each greenlet: a look at ten frames and 700 bytes a connection, which nobody asks for.
        gevent.config.track_greenlet_tree = False
        self.worker_connections = _unless_default(cfg, "worker_connections", CONNECTIONS)
        self._leaves_all_to_gunicorn = cfg.protocol != "http" or cfg.http2_cleartext != "off"
        self.reads_plain = _may_read_plain(self)
        limit = cfg.limit_request_line
        self.limit_request_line = limit if 0 <= limit < MAX_REQUEST_LINE else MAX_REQUEST_LINE
        tick_forever(client_connection.idle, client_connection.heads, handshakes, silences, sends, self)
        if isinstance(call := self.wsgi.__call__, MethodType):
            # So it is called without a detour through C, whose stack is kept for each call that waits: 0.8 KB.
            self.wsgi = call
        super().run()
        if self._has_asked_for_another:
            tell_of_end(self)

    def server_class(self, listener: Any, *, spawn: Any, **named: Any) -> Listener:
        """Return what accepts a listener's connections; gunicorn calls this to make its server."""
        tls = {"ssl_context": named["ssl_context"]} if "ssl_context" in named else {}
        server = Listener(listener, handle=partial(self.handle, listener), spawn=spawn, **tls)
        server.count = self._count
        if self.cfg.workers > 1:
            server.is_for_another = self._has_more_than_another
        return server

    def balance(self, path: Path) -> None:
        """Share new connections evenly with the other workers that have this file."""
        try:
            self._balance = Balance(path, self.age)
        except OSError as error:
            self.log.warning("connections may be spread unevenly over the workers: %s: %s", path, error.strerror)

    def _has_more_than_another(self) -> bool:
        return self._balance is not None and self._balance.has_more_than_another(self._connections)

    def _count(self, change: int) -> None:
        self._connections += change
        if self._balance is not None and self.alive:
            self._balance.publish(self._connections)

    def notify(self) -> None:
        """Tell the master that this worker lives, and the others how many connections it has."""
        super().notify()
        self._count(0)

    def tick(self, now: float) -> None:
        """Stop if others have taken this worker's place; make room if all connections are taken. Called from the hub.

        Room is made by ending one that no call runs on. First choice is the one that has been idle for longest, then
        one whose client is slow: in sending its head, in its TLS handshake, in taking its answer. One that was opened
        or used just now is spared, for its request may be on its way.
        """
        if self._successors is not None:
            self._stop_if_replaced()
        if self._connections >= self.worker_connections:
            kinds = (client_connection.idle, client_connection.heads, handshakes, sends)
            _ = any(kind.end_oldest(now, _ON_ITS_WAY_S) for kind in kinds) or silences.end_oldest(now, 0.0)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        if self._connections >= self.worker_connections:
            gevent.get_hub().loop.run_callback(self.tick, monotonic())
        try:
            if self._leaves_all_to_gunicorn:
                super().handle(listener, client, addr)
                return
            client.setblocking(1)
            if isinstance(client, ssl.SSLSocket):
                if not self.cfg.do_handshake_on_connect:
                    client.do_handshake()
                if is_http2_negotiated(client):
                    self.handle_http2(listener, client, addr)
                    return
            client_connection.ClientConnection(self, client, addr, self._make_environ(listener)).serve()
        except OSError as error:
            # The TLS handshake failed, or the client was gone before it began.
            self.log.debug("A connection did not come about: %s", error)
        finally:
            self._count(-1)
            close(client)

    def _make_environ(self, listener: Any) -> Mapping[str, Any]:
        """Return what the environs of a listener's plain requests have in common."""
        environ = self._environs.get(listener)
        if environ is None:
            name = listener.getsockname()
            is_tcp = isinstance(name, tuple)
            environ = self._environs[listener] = {
                **self._base_environ,
                "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
                "REQUEST_METHOD": "POST",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "SCRIPT_NAME": "",
                "SERVER_NAME": name[0] if is_tcp else name,
                "SERVER_PORT": str(name[1]) if is_tcp else "",
                "openai_gateway.listener": name,
            }
        return environ

    def retire(self) -> None:
        """Make room for a new worker, after `max_requests`."""
        if not self.alive or self._successors is not None:
            return
        self.log.info("Autorestarting worker after current request.")
        self._successors = self._find_successors()
        self._has_asked_for_another = ask_for_another(self)
        if not self._has_asked_for_another:
            self._successors = None
        elif self._successors is not None:
            self._successors.are_to_be_more = True
        self._stop_if_replaced()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop, on SIGTERM: at once, or when others have taken this worker's place."""
        if self._successors is None and self.alive:
            self._successors = self._find_successors()
        self._stop_if_replaced()

    def _find_successors(self) -> Successors | None:
        if self._balance is None:
            return None
        return Successors(self.ppid, self.sockets, self._balance, float(self.cfg.graceful_timeout))

    def _stop_if_replaced(self) -> None:
        if self._successors is None or not self._successors.are_awaited():
            self._successors = None
            self.stop()
        elif self.on_give_way is not None:
            # From the hub, for a signal may come in the midst of a decision.
            call_in_hub(0.0, self.on_give_way)
            self.on_give_way = None

    def stand_by(self, path: Path, why: str) -> None:
        """Take no connection while other workers do: gunicorn would end them all for one that can't start.

        Returns when there is no other, or no other any more. Raises SystemExit when told to stop.
        """
        # The place it may have among those that accept is given up: a stop waits for nobody who would take it.
        self._balance = None
        try:
            balance = Balance(path, self.age)
        except OSError:
            return
        if balance.has_others():
            self.log.error("%s\nThe workers of before serve on. Once this is mended, send SIGHUP again.", why)
        while balance.has_others():
            balance.stay_out()
            self.notify()
            gevent.sleep(_STAND_BY_S)
            if not self.alive:
                sys.exit(0)

    def stop(self) -> None:
        """Take no more connections, end those that no whole request has come on, and let calls in flight finish."""
        self.alive = False
        if self._is_stopping:
            return
        self._is_stopping = True
        if self._balance is not None:
            self._balance.leave()
        draining.start()
        call_in_hub(_IDLE_S, client_connection.idle.end_all)
        # A connection may still be accepted within that second.
        client_connection.idle.seconds = min(client_connection.idle.seconds, _IDLE_S)
        client_connection.heads.shorten(_HEAD_S)
        handshakes.shorten(_HEAD_S)
        if self.on_stop is not None:
            self.on_stop()


def _unless_default(cfg: Any, name: str, ours: int) -> int:
    setting = cfg.settings[name]
    value: int = setting.get()
    return ours if value == setting.default else value


def _may_read_plain(worker: Any) -> bool:
    """Tell whether no setting asks for something around each request, or for narrower bounds than a plain head's."""
    cfg = worker.cfg
    return not (
        cfg.proxy_protocol != "off"
        or cfg.pre_request is not PreRequest.default
        or cfg.post_request is not PostRequest.default
        or worker.log.access_log_enabled
        or "SCRIPT_NAME" in os.environ
        or 0 < cfg.limit_request_line < MAX_HEAD_BYTES
        or cfg.limit_request_field_size < MAX_HEAD_BYTES
        or cfg.limit_request_fields < MAX_HEADERS
    )
