"""Relays one request of a client: the way of a request, written out once for every endpoint.

Endpoints differ in an `Endpoint` value. See also: responses and chat (which URL is which), intake, reply,
upstream.relay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import flask
import msgspec

from openai_gateway.accounting.budgets import RUN_BUDGET, Budgets
from openai_gateway.accounting.totals import ServerState
from openai_gateway.blueprints.budgeted import BudgetDoor
from openai_gateway.blueprints.cross_origin import CrossOrigin
from openai_gateway.blueprints.intake import GatewayKeys, make_request_id, read_body
from openai_gateway.blueprints.kept_probe import KeptProbe
from openai_gateway.blueprints.recorded import RecordedRelay
from openai_gateway.blueprints.reply import DroppedResponse, RelayedResponse
from openai_gateway.blueprints.websocket import WebSocketServer
from openai_gateway.config import ServerConfig
from openai_gateway.config.clients import ClientsFile
from openai_gateway.config.key_file import KeyFile
from openai_gateway.errors import Cancelled, ClientGone, GatewayError
from openai_gateway.recordings.recordings import REPLAY, Recordings
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.relay import Relay
from openai_gateway.wire import envelope, headers
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call

_MOST_HEADS: Final = 256
# In the query of a GET: the stored response is asked for as a stream.
_STREAM: Final = "stream=true"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How the calls of one endpoint are treated.

    `schema` None passes a body untouched. `takes_defaults`: the configured defaults are merged into the body.
    `is_free`: a call costs nothing, and its answer reports no usage.
    """

    api: Api
    schema: envelope.ModelEnvelope | None = None
    takes_defaults: bool = False
    is_free: bool = False


class CallServer:
    """Serves the calls to one configured server: what it adds to bodies, and the relay they go through."""

    def __init__(
        self,
        server: ServerConfig,
        relay: Relay,
        recordings: Recordings | None = None,
        clients: ClientsFile | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        self._door = BudgetDoor(budgets or Budgets(None), server)
        self.model = server.openai_model
        self.keys = GatewayKeys(server.gateway_api_keys, server.gateway_api_keys_file, clients, server.name)
        self.cross_origin = CrossOrigin(server.cors_origins, needs_key=self.keys.are_required)
        self.probe = KeptProbe(relay.probe).ask
        self._server = server
        self._relay = relay
        self._recorded = (
            RecordedRelay(relay, recordings, self._reserve, is_paced=server.replay_speed == "recorded")
            if recordings is not None
            else None
        )
        # Recordings hold answers to POSTs only. Without WebSockets, a client goes over to POSTs and finds them.
        self._websocket = WebSocketServer(
            relay, server.max_body_bytes, is_on=server.websocket and server.recordings != REPLAY
        )
        self._timeouts = relay.timeouts
        self.share_limits = relay.share_limits
        self.hand_limits_on = relay.hand_limits_on
        self.settle_records = relay.settle_records
        self.is_refusing = relay.is_refusing
        self.close_queue = relay.close_queue
        # Upstream headers by the client's head; a client's calls differ in little but the length of their bodies.
        self._headers: dict[bytes, headers.RequestHeaders] = {}
        self._is_captured = server.model_call_capture_dir is not None
        self._raw_model = msgspec.Raw(msgspec.json.encode(server.openai_model))
        self._defaults = {
            api: envelope.to_raw({**server.extra_body, **getattr(server, api.defaults_key)}) for api in Api
        }

    def state(self) -> ServerState:
        """Return how this server is now, in this worker."""
        now = self._relay.under_way()
        limits, limits_at = self._relay.rate_limits()
        warning = self._server.prices.describe_age()
        return ServerState(
            model=self.model,
            base_url=urlsplit(self._server.openai_base_url)._replace(query="").geturl(),
            **{name: getattr(now, name) for name in now.__struct_fields__},
            total_cap=self._server.max_concurrent_requests_total,
            is_breaker_open=self._relay.is_breaker_open,
            rate_limits=limits,
            limits_at=limits_at,
            notes=() if warning is None else (warning,),
        )

    @property
    def key_files(self) -> list[KeyFile]:
        """The files of keys: the clients', and the upstream's."""
        return [*self.keys.files, *self._relay.key_files]

    def serve(self, environ: dict[str, Any], endpoint: Endpoint) -> flask.Response:
        """Relay one request, whose path starts with `/v1`, and return the response. Raises GatewayError."""
        watch = CallWatch(self._timeouts)
        call: Call | None = None
        try:
            call, values = self._make_call(environ, endpoint, watch)
            client = None if call.outlives_client else environ.get("gunicorn.socket")
            watch.begin(None if client is None else client.fileno())
            if self._recorded is not None and endpoint.takes_defaults:
                # A kept answer takes nothing out of a budget.
                return RelayedResponse(self._recorded.send(call, values, environ, watch))
            if call.client is not None or RUN_BUDGET in environ:
                call = self._reserve(call, values, environ)
            return RelayedResponse(self._relay.send(call, watch))
        except ClientGone:
            watch.stop()
            return DroppedResponse()
        except BaseException:
            watch.stop()
            if call is not None and call.reservation is not None:
                # The record has settled it already, unless something unforeseen kept the call from being recorded.
                call.reservation.release()
            raise

    def _reserve(self, call: Call, values: Mapping[str, msgspec.Raw], environ: dict[str, Any]) -> Call:
        """Return the call with money set aside for it, if its client or run has a budget.

        Raises GatewayError if that leaves no room, ClientGone.
        """
        if not call.is_metered or (call.client is None and RUN_BUDGET not in environ):
            return call
        started = monotonic()
        try:
            client = self.keys.find_client(call.client)
            defaults = self._defaults[call.api]
            reservation = self._door.reserve(call, client, values, defaults, environ)
            return msgspec.structs.replace(call, reservation=reservation)
        except (GatewayError, Cancelled) as error:
            reason = error.reason if isinstance(error, Cancelled) else error
            if isinstance(reason, GatewayError | ClientGone):
                self._relay.refuse(call, reason, started)
            raise reason from None

    def serve_websocket(self, environ: dict[str, Any]) -> flask.Response:
        """Carry a WebSocket of the Responses API to its end, or return why there is none. Raises GatewayError."""
        self.cross_origin.check(environ)
        self.keys.authenticate(environ)
        given = headers.select_for_upstream(environ, has_body=False)
        endpoint = Endpoint(Api.RESPONSES, envelope.ResponsesEnvelope(), takes_defaults=True)
        rollout_id = environ.get("openai_gateway.rollout_id")

        def make_call(text: bytes | None) -> Call:
            made = Call(
                api=Api.RESPONSES,
                method="WEBSOCKET",
                target="/responses",
                headers=given,
                body=None,
                rollout_id=rollout_id,
                request_id=make_request_id(),
                is_metered=True,
                received=text if rollout_id is not None and self._is_captured else None,
            )
            started = monotonic()
            try:
                # Each time: a key that is taken out of the file ends with the next call, not with the connection.
                client = self.keys.authenticate(environ)
                if client is not None:
                    made = msgspec.structs.replace(made, client=client.name, share=client.share)
                # No text: the upstream has begun this response by itself.
                values, body = self._rewrite(text, endpoint) if text is not None else ({}, b"")
            except GatewayError as error:
                self._relay.refuse(made, error, started)
                raise
            made = msgspec.structs.replace(
                made,
                body=body,
                rollout_key=rollout_id or envelope.find_rollout_key(values, environ),
                output_tokens=envelope.read_output_tokens(values, Api.RESPONSES),
            )
            return self._reserve(made, values, environ)

        return self._websocket.serve(environ, make_call)

    def _make_call(
        self, environ: dict[str, Any], endpoint: Endpoint, watch: CallWatch
    ) -> tuple[Call, Mapping[str, msgspec.Raw]]:
        """Return the call to make, and its body's values; a request that gives none is recorded.

        Raises GatewayError, ClientGone.
        """
        request_id = make_request_id()
        started = monotonic()
        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"].removeprefix("/v1")
        query = environ.get("QUERY_STRING")
        body: bytes | None = None
        received: bytes | None = None
        rollout_id = environ.get("openai_gateway.rollout_id")
        values: Mapping[str, msgspec.Raw] = {}
        client: str | None = None
        share = 1.0
        try:
            if "HTTP_ORIGIN" in environ or "HTTP_SEC_FETCH_SITE" in environ:
                self.cross_origin.check(environ)
            if self.keys.are_required:
                found = self.keys.authenticate(environ)
                if found is not None:
                    client, share = found.name, found.share
            if method == "POST":
                body = read_body(environ, self._server.max_body_bytes, watch)
                if endpoint.schema is not None:
                    received = body if rollout_id is not None and self._is_captured else None
                    values, body = self._rewrite(body, endpoint)
        except (GatewayError, ClientGone) as error:
            watch.stop()
            empty = headers.RequestHeaders()
            refused = Call(
                endpoint.api, method, path, empty, None, rollout_id=rollout_id, request_id=request_id, client=client
            )
            self._relay.refuse(refused, error, started)
            raise
        kept = self._headers.get(environ.get(headers.CLIENT_HEAD, b"")) if body else None
        call = Call(
            api=endpoint.api,
            method=method,
            target=f"{path}?{query}" if query else path,
            headers=kept or self._make_headers(environ, has_body=bool(body)),
            body=body,
            outlives_client=not self._server.cancel_on_disconnect or envelope.is_true(values.get("background")),
            is_streamed=envelope.is_true(values.get("stream")) or (query is not None and _STREAM in query),
            rollout_id=rollout_id,
            request_id=request_id,
            is_metered=endpoint.schema is not None and not endpoint.is_free,
            received=received,
            client=client,
            share=share,
            rollout_key=rollout_id or envelope.find_rollout_key(values, environ),
            output_tokens=envelope.read_output_tokens(values, endpoint.api) if values else None,
        )
        return call, values

    def _make_headers(self, environ: dict[str, Any], *, has_body: bool) -> headers.RequestHeaders:
        """Return the headers to send; those of a call with a body are kept for further ones with the same head."""
        made = headers.select_for_upstream(environ, has_body=has_body)
        head = environ.get(headers.CLIENT_HEAD)
        if head is not None and has_body:
            if len(self._headers) >= _MOST_HEADS:
                self._headers.clear()
            self._headers[head] = made
        return made

    def _rewrite(self, body: bytes, endpoint: Endpoint) -> tuple[envelope.Values, bytes]:
        assert endpoint.schema is not None
        values = envelope.parse(body, endpoint.schema)
        if self._server.drop_input_reasoning_items and endpoint.api is Api.RESPONSES:
            envelope.drop_reasoning_items(values)
        defaults = self._defaults[endpoint.api] if endpoint.takes_defaults else {}
        return values, envelope.rewrite(values, self._raw_model, defaults)
