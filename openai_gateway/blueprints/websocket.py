"""The handshake of the Responses API's WebSocket mode: the upstream is asked first, and what it says decides.

An upstream that has none is known for a while, and clients are told 426 at once, on which they go over to plain HTTP.
See also: websocket.tunnel (what passes over the connection then).
"""

from __future__ import annotations

import base64
import binascii
import errno
import secrets
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

import flask

from openai_gateway.errors import Cancelled, InvalidRequest, UpgradeRefused, UpstreamProtocolError
from openai_gateway.server import draining
from openai_gateway.server.writer import send_in_time
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.relay import Relay
from openai_gateway.websocket.sockets import Socket, open_socket
from openai_gateway.websocket.tunnel import Tunnel
from openai_gateway.websocket.turns import Turns
from openai_gateway.wire import frames, headers
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Header

_VERSION: Final = "13"
# How long it is remembered that an upstream has no WebSockets. That isn't concluded from a 400, nor if the client sent
# a query: what was wrong may have been that client's own.
_TRUSTED_S: Final = 300.0
_NOT_PASSED: Final = ("sec-websocket-accept",)
_KEY_AS_PROTOCOL: Final = "openai-insecure-api-key."
_PLAIN: Final = "send the call as a POST"


def is_handshake(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request asks for a WebSocket."""
    return str(environ.get("HTTP_UPGRADE")).lower() == "websocket" and environ["REQUEST_METHOD"] == "GET"


class WebSocketServer:
    """Opens the WebSockets of one server; `make_call` makes a create's text a call of the environ's client."""

    def __init__(self, relay: Relay, max_body_bytes: int, *, is_on: bool) -> None:
        self._relay = relay
        self._max_body_bytes = max_body_bytes
        self._is_on = is_on
        self._has_none_until = 0.0

    def serve(self, environ: Mapping[str, Any], make_call: Callable[[bytes | None], Call]) -> flask.Response:
        """Carry a WebSocket to its end, or return the answer that the upstream refuses it with.

        Raises GatewayError or ClientGone if there is to be none; ConnectionResetError, on which the server closes the
        connection, once it is over.
        """
        client = environ.get("gunicorn.socket")
        if not self._is_on or client is None:
            raise UpgradeRefused(f"The WebSocket mode of the Responses API is not served here; {_PLAIN}.")
        key = _check(environ)
        if monotonic() < self._has_none_until:
            raise _make_refusal()
        our_key = base64.b64encode(secrets.token_bytes(16)).decode()
        socket = self._ask(environ, our_key)
        raw = socket.raw
        if raw.head.status != 101:
            return self._refuse(raw, is_common=not environ.get("QUERY_STRING"))
        said = {name.lower(): value for name, value in raw.head.headers}
        if said.get("sec-websocket-accept") != frames.compute_accept(our_key) or "sec-websocket-extensions" in said:
            raw.close()
            raise UpstreamProtocolError("The upstream answered the WebSocket handshake wrongly.")
        tunnel = Tunnel(
            raw.connection,
            raw.received,
            client,
            self._relay.timeouts,
            lambda tunnel: Turns(socket, self._relay.timeouts, make_call, tunnel.send, tunnel.tell),
            self._max_body_bytes,
        )
        passing = [header for header in raw.head.passing if header[0].lower() not in _NOT_PASSED]
        try:
            send_in_time(client, _make_acceptance(key, passing))
        except BaseException:
            raw.close()
            raise
        tunnel.run(lambda: draining.is_on)
        raise ConnectionResetError(errno.ECONNRESET, "the WebSocket is over")

    def _ask(self, environ: Mapping[str, Any], our_key: str) -> Socket:
        query = environ.get("QUERY_STRING")
        given = headers.select_for_upstream(environ, has_body=False)
        own = {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": _VERSION,
            "sec-websocket-key": our_key,
        }
        asked = {name: value for name, value in given.items() if name != "sec-websocket-extensions"}
        protocols = _drop_keys(asked.pop("sec-websocket-protocol", ""))
        if protocols:
            asked["sec-websocket-protocol"] = protocols
        call = Call(
            api=Api.RESPONSES,
            method="GET",
            target=f"/responses?{query}" if query else "/responses",
            headers=headers.RequestHeaders({**asked, **own}),
            body=None,
        )
        watch = CallWatch(self._relay.timeouts)
        try:
            watch.begin(environ["gunicorn.socket"].fileno())
            return open_socket(self._relay, call, watch)
        except Cancelled as cancelled:
            raise cancelled.reason from None
        finally:
            watch.stop()

    def _refuse(self, raw: RawAnswer, *, is_common: bool) -> flask.Response:
        """Return the upstream's own answer, unless it means that there are no WebSockets; to all, if `is_common`."""
        raw.close()
        if raw.head.status in frames.HAVE_NO_WEBSOCKETS:
            if is_common and raw.head.status != 400:
                self._has_none_until = monotonic() + _TRUSTED_S
            raise _make_refusal()
        return flask.Response(raw.body, raw.head.status, headers=raw.head.passing)


def _check(environ: Mapping[str, Any]) -> str:
    """Return a handshake's key. Raises GatewayError (RFC 6455 4.2.1)."""
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != _VERSION:
        refusal = UpgradeRefused(f"WebSocket version {_VERSION} is served, no other.")
        refusal.added_headers = (("sec-websocket-version", _VERSION),)
        raise refusal
    key = str(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")).strip()
    try:
        is_right = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        is_right = False
    connection = str(environ.get("HTTP_CONNECTION", "")).lower()
    if not is_right or "upgrade" not in [option.strip() for option in connection.split(",")]:
        raise InvalidRequest("The WebSocket handshake is malformed.", code="invalid_handshake")
    return key


def _drop_keys(protocols: str) -> str:
    """Return subprotocols without those as which a browser's client names a key: it is meant for this gateway."""
    return ", ".join(each for each in map(str.strip, protocols.split(",")) if not each.startswith(_KEY_AS_PROTOCOL))


def _make_refusal() -> UpgradeRefused:
    return UpgradeRefused(f"The upstream has no WebSocket mode of the Responses API; {_PLAIN}.")


def _make_acceptance(key: str, passing: list[Header]) -> bytes:
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {frames.compute_accept(key)}")
    lines += [f"{name}: {value}" for name, value in passing]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
