"""The requests.Session over our own connections to one peer; every exception becomes one of ours.

requests gives the form: a session, a prepared request, an adapter. `HTTPAdapter.send` itself is left alone, so that
what mocks it (the `responses` library) works on top of this; what it calls in turn is overridden, so that a request
goes through our pool and costs little more than the pool does.

See also: exchange (what is sent and read), pool.
"""

from __future__ import annotations

import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from openai_gateway.transport.errors import BadAnswer, PeerError, TimedOut, Unreachable
from openai_gateway.transport.exchange import Exchange
from openai_gateway.transport.pool import ConnectionPool, ConnectionTerms
from openai_gateway.transport.raw_answer import RawAnswer, make_mocked_answer
from openai_gateway.transport.watch import CallWatch
from openai_gateway.wire.head import Head
from openai_gateway.wire.headers import RequestHeaders

_WATCHED: Final = urllib3.Timeout()  # the call's watch bounds every phase
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class PeerRequest(requests.PreparedRequest):
    """A prepared request built from values that need no preparing; carries the watch of its call."""

    hooks: Any = {}  # noqa: RUF012 (never written to)
    _cookies = None
    _body_position = None
    most_sends = 2
    sends = 0

    def __init__(self, method: str, url: str, headers: RequestHeaders, body: bytes | None, watch: CallWatch) -> None:
        self.method = method
        self.url = url
        self.headers = headers  # type: ignore[assignment]
        self.body = body
        self.watch = watch


class PeerAdapter(HTTPAdapter):
    """Sends through our pool: overrides what `HTTPAdapter.send` calls."""

    def __init__(self, pool: ConnectionPool, target_start: int) -> None:
        super().__init__()
        self._pool = pool
        self._target_start = target_start

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return an object with the `urlopen` that `send` calls."""
        return Exchange(self._pool, request)

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: verification is the pool's TLS context, always on."""

    def request_url(self, request: Any, proxies: Any) -> str:
        """Return path and query; proxies of the environment are never used."""
        return str(request.url[self._target_start :])

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> Any:
        """Return our own answer as it is; of a mock's, what requests makes of it."""
        return resp if type(resp) is RawAnswer else super().build_response(req, resp)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


class PeerSession(requests.Session):
    """A session that sends and nothing else: no redirects, cookies, hooks, environment or netrc."""

    def __init__(self, base_url: str, tls: ssl.SSLContext | None, terms: ConnectionTerms) -> None:
        super().__init__()
        self.trust_env = False
        url = urlsplit(base_url)
        origin = f"{url.scheme}://{url.netloc}"
        port = url.port or _DEFAULT_PORTS[url.scheme]
        pool = ConnectionPool(url.hostname or "", port, tls if url.scheme == "https" else None, terms)
        self._pool = pool
        self._adapter = PeerAdapter(pool, len(origin))
        self.adapters.clear()
        self.mount(origin, self._adapter)

    def exchange(self, request: PeerRequest) -> RawAnswer:
        """Return the answer once its head is in. Raises PeerError, InvalidRequest; Cancelled by the request's watch."""
        try:
            answer: Any = self._adapter.send(request, stream=True, timeout=_WATCHED)  # type: ignore[arg-type]
            return answer if type(answer) is RawAnswer else _to_raw_answer(answer.raw)
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise _to_peer_error(error) from None

    def upgrade(self, request: PeerRequest) -> RawAnswer:
        """Ask for another protocol; see Exchange.upgrade. Not by requests, which knows of none."""
        exchange = Exchange(self._pool, request)
        return exchange.upgrade(self._adapter.request_url(request, None), request.headers)  # type: ignore[arg-type]


def _to_raw_answer(mocked: urllib3.BaseHTTPResponse) -> RawAnswer:
    head = Head(mocked.status, mocked.reason or "", list(mocked.headers.items()))
    return make_mocked_answer(head, mocked.read(decode_content=False))


def _to_peer_error(error: Exception) -> PeerError:
    """Return our error for what a mock raised: our own transport raises none of these."""
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return TimedOut("did not answer in time")
    if isinstance(error, requests.exceptions.ConnectionError | urllib3.exceptions.NewConnectionError):
        return Unreachable("can't be reached")
    return BadAnswer("broke off its answer")
