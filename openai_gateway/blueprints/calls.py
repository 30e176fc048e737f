"""Relays one request of a client: the way of a request, written out once for every endpoint.

Endpoints differ in an `Endpoint` value; which URL is which is in `responses` and `chat`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import flask
import msgspec

from openai_gateway.accounting.totals import ServerState
from openai_gateway.blueprints.intake import GatewayKeys, give_up_body, read_body, to_request_id
from openai_gateway.blueprints.reply import DroppedResponse, RelayedResponse
from openai_gateway.errors import BodyTimeout, Cancelled, ClientGone, GatewayError
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.relay import Relay
from openai_gateway.wire import envelope, headers
from openai_gateway.wire.call import Call
from openai_gateway.wire.rate_limits import RateLimit, read_rate_limits

_MOST_HEADS: Final = 256


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How the calls of one endpoint are treated.

    `schema` None passes a body untouched. `takes_defaults`: the configured defaults are merged into the body.
    `is_free`: a call costs nothing, and its answer reports no usage.
    """

    api: str
    schema: envelope.ModelEnvelope | None = None
    takes_defaults: bool = False
    is_free: bool = False


class CallServer:
    """Serves the calls to one configured server: what it adds to bodies, and the relay they go through."""

    def __init__(self, relay: Relay) -> None:
        self._server = server = relay.server
        self.relay = relay
        self.keys = GatewayKeys(server.gateway_api_keys, server.gateway_api_keys_file)
        self._limits: dict[str, RateLimit] = {}
        self._limits_at = 0.0
        # Upstream headers by the client's head; a client's calls differ in little but the length of their bodies.
        self._headers: dict[bytes, headers.RequestHeaders] = {}
        self._own_headers: Mapping[str, str] = {}
        self._is_captured = server.model_call_capture_dir is not None
        self._model = msgspec.Raw(msgspec.json.encode(server.openai_model))
        self._defaults = {
            "responses": envelope.to_raw({**server.extra_body, **server.extra_body_responses}),
            "chat": envelope.to_raw({**server.extra_body, **server.extra_body_chat}),
        }

    def state(self) -> ServerState:
        """Return how this server is now, in this worker; the rate limits are those of the last answer that had any."""
        said = self.relay.last_head.headers if self.relay.last_head is not None else ()
        limits = read_rate_limits({name.lower(): value for name, value in said})
        if limits:
            self._limits, self._limits_at = limits, self.relay.answered_at
        slots = self.relay.slots
        return ServerState(
            model=self._server.openai_model,
            base_url=urlsplit(self._server.openai_base_url)._replace(query="").geturl(),
            in_flight=slots.in_flight,
            queued=slots.queued,
            cap=slots.cap,
            is_breaker_open=self.relay.breaker.is_open,
            rate_limits=self._limits,
            limits_at=self._limits_at,
        )

    def probe(self, seconds: float) -> int | str:
        """Ask the upstream for its models, past cap and retries; return the status, or the code of what went wrong."""
        watch = CallWatch()
        watch.bound(seconds)
        sender = self.relay.sender
        try:
            beginning = sender.send(Call("models", "GET", "/models", sender.own_headers(), None), watch)
        except Cancelled:
            return "upstream_timeout"
        except GatewayError as error:
            return error.code
        finally:
            watch.stop()
        if beginning.raw is not None:
            beginning.raw.close()
        return beginning.head.status

    def serve(self, environ: dict[str, Any], endpoint: Endpoint) -> flask.Response:
        """Relay one request, whose path starts with `/v1`, and return the response. Raises GatewayError."""
        watch = CallWatch()
        try:
            call = self._to_call(environ, endpoint, watch)
            client = environ.get("gunicorn.socket")
            if client is not None and self._server.cancel_on_disconnect and not call.background:
                watch.watch_client(client.fileno())
            watch.bound(self._server.total_timeout_s)
            return RelayedResponse(self.relay.send(call, watch))
        except ClientGone:
            return DroppedResponse()
        except BaseException:
            watch.stop()
            raise

    def _to_call(self, environ: dict[str, Any], endpoint: Endpoint, watch: CallWatch) -> Call:
        """Return the call to make; a request that gives none is recorded. Raises GatewayError, ClientGone."""
        request_id = to_request_id()
        started = monotonic()
        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"].removeprefix("/v1")
        query = environ.get("QUERY_STRING")
        body: bytes | None = None
        received: bytes | None = None
        rollout_id = environ.get("openai_gateway.rollout_id")
        values: Mapping[str, msgspec.Raw] = {}
        try:
            self.keys.authenticate(environ)
            if method == "POST":
                body = self._read_body(environ, watch)
                if endpoint.schema is not None:
                    received = body if rollout_id is not None and self._is_captured else None
                    values, body = self._rewrite(body, endpoint)
        except (GatewayError, ClientGone) as error:
            watch.stop()
            refused = Call(
                endpoint.api, method, path, headers.RequestHeaders(), None, rollout_id=rollout_id, request_id=request_id
            )
            self.relay.refuse(refused, error, started)
            raise
        return Call(
            api=endpoint.api,
            method=method,
            target=f"{path}?{query}" if query else path,
            headers=self._to_headers(environ, has_body=bool(body)),
            body=body,
            background=envelope.is_true(values.get("background")),
            rollout_id=rollout_id,
            request_id=request_id,
            is_metered=endpoint.schema is not None and not endpoint.is_free,
            received=received,
        )

    def _to_headers(self, environ: dict[str, Any], *, has_body: bool) -> headers.RequestHeaders:
        own = self.relay.sender.own_headers()
        head = environ.get(headers.CLIENT_HEAD)
        if head is None or not has_body:
            return headers.to_upstream(environ, own, has_body=has_body)
        if own is not self._own_headers or len(self._headers) > _MOST_HEADS:
            self._own_headers = own
            self._headers.clear()
        made = self._headers.get(head)
        if made is None:
            made = self._headers[head] = headers.to_upstream(environ, own, has_body=True)
        return made

    def _read_body(self, environ: dict[str, Any], watch: CallWatch) -> bytes:
        if type(environ["wsgi.input"]) is io.BytesIO:
            # It came with the head: there is nothing to wait for.
            return read_body(environ, self._server.max_body_bytes)
        client_s = self._server.client_timeout_s
        watch.arm(client_s, lambda: BodyTimeout(f"The request body did not arrive within {client_s:g} s."))
        try:
            return read_body(environ, self._server.max_body_bytes)
        except Cancelled as cancelled:
            give_up_body(environ)
            raise cancelled.reason from None
        finally:
            watch.disarm()

    def _rewrite(self, body: bytes, endpoint: Endpoint) -> tuple[envelope.Values, bytes]:
        assert endpoint.schema is not None
        values = envelope.parse(body, endpoint.schema)
        if self._server.drop_input_reasoning_items and endpoint.api == "responses":
            envelope.drop_reasoning_items(values)
        defaults = self._defaults[endpoint.api] if endpoint.takes_defaults else {}
        return values, envelope.rewrite(values, self._model, defaults)
