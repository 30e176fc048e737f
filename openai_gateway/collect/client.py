"""Talks to the gateway: one call at a time posted and its whole answer read, each under its rollout's id.

Retries against the upstream are the gateway's; here only a gateway that did not take the call is asked again. See
also: run (who calls), away (whom a gateway that is away holds up), wait_reasons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import time
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, urlsplit

import gevent
import msgspec
from gevent.event import Event

from openai_gateway.collect.failures import Failure, make_broken_failure, make_failure, make_unreachable_failure
from openai_gateway.collect.questions import PATHS, RESPONSES
from openai_gateway.collect.wait_reasons import WaitReasons, read_wait_reasons
from openai_gateway.errors import Cancelled
from openai_gateway.transport.errors import PeerError, Unreachable
from openai_gateway.transport.pool import ConnectionTerms
from openai_gateway.transport.session import PeerRequest, PeerSession
from openai_gateway.transport.tls import make_context
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.wire.cache_control import make_hit_status
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.retries import Outcome, choose_wait_s, read_error_code

# The gateway bounds each call; an end that the network swallowed is noticed by TCP's keepalive.
_TIMEOUTS: Final = Timeouts(connect_s=10.0)
_KEEPALIVE_S: Final = 60.0
_MOST_TRIES: Final = 10
_NOT_TAKEN: Final = ("gateway_queue_full", "gateway_queue_timeout", "gateway_draining")
_PROBE: Final = "collect"
_UNJITTERED: Final = 0.0
_UNDER_WAY: Final = ("queued", "in_progress")
_FIRST_POLL_S: Final = 0.5
_POLL_GROWTH: Final = 1.5
_LONGEST_POLL_S: Final = 15.0
_CANCEL_S: Final = 10.0


class GatewayAnswer(msgspec.Struct, frozen=True):
    """An answer as it came; `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def attempts(self) -> int | None:
        """How many attempts the gateway made, None if it doesn't say."""
        return _read_int(self.headers.get("x-gateway-attempts", ""))

    @property
    def retries(self) -> list[str]:
        """Why all attempts but the last failed."""
        return [reason for reason in self.headers.get("x-gateway-retries", "").split(",") if reason]

    @property
    def is_replayed(self) -> bool:
        """Tell whether the gateway had the answer, so that it costs nothing."""
        status = self.headers.get("cache-status", "")
        return status in (make_hit_status(is_joined=False), make_hit_status(is_joined=True))

    @property
    def waited_s(self) -> float:
        """How long the call waited at the gateway for its last attempt."""
        wait_ms = _read_int(self.headers.get("x-gateway-wait-ms") or self.headers.get("x-gateway-queue-ms", ""))
        return (wait_ms or 0) / 1000


class _Started(msgspec.Struct):
    id: str
    status: str


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Gateway:
    """The gateway at a base URL such as `http://127.0.0.1:8000/v1`; `added_headers` go with every request."""

    def __init__(
        self, base_url: str, key: str | None = None, added_headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._base_url = base_url.rstrip("/")
        url = urlsplit(self._base_url)
        self._origin = f"{url.scheme}://{url.netloc}"
        self._root = self._rest = ""
        self._headers = RequestHeaders(
            {
                "host": url.netloc.rpartition("@")[2],
                "accept-encoding": "identity",
                "content-type": "application/json",
                **({"authorization": f"Bearer {key}"} if key else {}),
                **added_headers,
            }
        )
        tls = make_context(os.environ.get("SSL_CERT_FILE")) if url.scheme == "https" else None
        self._session = PeerSession(base_url, tls, ConnectionTerms(keepalive_s=_KEEPALIVE_S))
        self.knows_rollouts = False
        # Whether it serves nobody else.
        self.is_own = False

    def greet(self) -> list[str] | Failure:
        """Return the models there are, or why there is no talking to the gateway; learn whether it knows rollouts.

        It does if it answers under `/ng-rollout/<id>` put before the last parts of the URL's path, `/v1` or
        `/<server>/v1`; anything else is called at the plain URL.
        """
        for root, rest in _list_cuts(urlsplit(self._base_url).path):
            self._root, self._rest = root, rest
            found = self._send("GET", self._make_url(_PROBE, "/models"), None)
            if isinstance(found, Failure):
                return found
            if (models := _read_models(found)) is not None:
                self.knows_rollouts = True
                return models
        found = self._send("GET", f"{self._base_url}/models", None)
        if isinstance(found, GatewayAnswer) and found.status in (401, 403):
            return make_failure(found.status, found.body)
        return found if isinstance(found, Failure) else _read_models(found) or []

    def post(
        self, api: str, body: bytes, rollout_id: str, give_up: Event
    ) -> tuple[GatewayAnswer | Failure | None, int]:
        """Return what came of a call, None if the gateway did not take it before `give_up` was set.

        And how often it was sent before without an answer: its gateway ended, so the upstream may have worked on it.
        """
        url = self._make_call_url(PATHS[api], rollout_id)
        tries = unanswered = 0
        while True:
            request = PeerRequest("POST", url, self._headers, body, CallWatch(_TIMEOUTS))
            found = self._exchange(request)
            is_unanswered = isinstance(found, Failure) and found.is_general
            unanswered += request.sends if is_unanswered else request.sends - 1
            wait_s = _choose_wait_s(found, tries)
            if wait_s is None:
                return found, unanswered
            tries += 1
            if give_up.wait(wait_s):
                return None, unanswered

    def wait_for_response(self, started: GatewayAnswer | Failure, rollout_id: str) -> GatewayAnswer | Failure:
        """Return the answer of a call that was started with `background: true`: polled for until it is over.

        Ending the greenlet that waits cancels the response at the upstream, which would go on and charge for it.
        """
        found, polls, misses = started, 0, 0
        while isinstance(found, GatewayAnswer) and (response := _read_started(found)) is not None:
            path = f"{PATHS[RESPONSES]}/{quote(response.id, safe='')}"
            try:
                gevent.sleep(min(_FIRST_POLL_S * _POLL_GROWTH**polls, _LONGEST_POLL_S))
                polled = self._send("GET", self._make_call_url(path, rollout_id), None)
            except gevent.GreenletExit:
                gevent.with_timeout(_CANCEL_S, self._cancel, f"{path}/cancel", rollout_id, timeout_value=None)
                raise
            polls += 1
            is_answered = isinstance(polled, GatewayAnswer) and polled.status == 200
            misses = 0 if is_answered else misses + 1
            if is_answered or misses >= _MOST_TRIES or (isinstance(polled, GatewayAnswer) and polled.status == 404):
                found = polled
        return found

    def _cancel(self, path: str, rollout_id: str) -> None:
        self._send("POST", self._make_call_url(path, rollout_id), b"{}")

    def read_waits(self) -> WaitReasons:
        """Return what calls wait for now; nothing if that is unknown."""
        found = self._send("GET", f"{self._origin}{self._root}/readyz", None)
        return read_wait_reasons(found.body) if isinstance(found, GatewayAnswer) else WaitReasons()

    def close_queue(self) -> None:
        """Have the gateway send nothing any more that waits there; one that serves others, too, is left alone."""
        if self.is_own:
            self._send("DELETE", f"{self._origin}/queue", None)

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def _make_call_url(self, path: str, rollout_id: str) -> str:
        return self._make_url(rollout_id, path) if self.knows_rollouts else self._base_url + path

    def _make_url(self, rollout_id: str, path: str) -> str:
        return f"{self._origin}{self._root}/ng-rollout/{rollout_id}{self._rest}{path}"

    def _send(self, method: str, url: str, body: bytes | None) -> GatewayAnswer | Failure:
        return self._exchange(PeerRequest(method, url, self._headers, body, CallWatch(_TIMEOUTS)))

    def _exchange(self, request: PeerRequest) -> GatewayAnswer | Failure:
        raw = None
        try:
            raw = self._session.exchange(request)
            pieces = []
            while piece := raw.read():
                pieces.append(piece)
            headers = {name.lower(): value for name, value in raw.head.headers}
            return GatewayAnswer(raw.head.status, headers, b"".join(pieces))
        except Unreachable as error:
            return make_unreachable_failure(f"no answer from {self._origin}: it {error}")
        except PeerError:
            return make_broken_failure(None if raw is None else raw.head.status, "the gateway broke off its answer")
        except Cancelled:
            return make_unreachable_failure(f"no connection to {self._origin} within {_TIMEOUTS.connect_s:g} s")
        finally:
            request.watch.stop()
            if raw is not None:
                raw.close()


def _list_cuts(path: str) -> list[tuple[str, str]]:
    """Return the ways to cut a path in two, to put a prefix between: `/a/v1` before `/a/v1`, then before `/v1`."""
    parts = path.split("/")[1:]
    return [
        ("".join(f"/{part}" for part in parts[:at]), "".join(f"/{part}" for part in parts[at:]))
        for at in range(max(0, len(parts) - 2), len(parts))
    ]


def _read_started(answer: GatewayAnswer) -> _Started | None:
    """Return what an answer says of a response that is not over yet, None if it is, or if this is none."""
    try:
        started = msgspec.json.decode(answer.body, type=_Started)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return started if answer.status == 200 and started.status in _UNDER_WAY else None


def is_under_way(found: GatewayAnswer | Failure) -> bool:
    """Tell whether an answer is a response that was started in the background."""
    return isinstance(found, GatewayAnswer) and _read_started(found) is not None


def _read_int(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _read_models(answer: GatewayAnswer) -> list[str] | None:
    if answer.status != 200:
        return None
    try:
        return [model.id for model in msgspec.json.decode(answer.body, type=_Models).data]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _choose_wait_s(found: GatewayAnswer | Failure, tries: int) -> float | None:
    """Return how long to wait before a call is asked for again that the gateway did not take; None: don't."""
    if tries + 1 >= _MOST_TRIES:
        return None
    if isinstance(found, Failure):
        return choose_wait_s(Outcome(None, {}), tries, time(), lambda: _UNJITTERED) if found.is_general else None
    if found.status not in (429, 503) or read_error_code(found.body) not in _NOT_TAKEN:
        return None
    return choose_wait_s(Outcome(found.status, found.headers), tries, time(), lambda: _UNJITTERED)
