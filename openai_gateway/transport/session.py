"""The pooled requests.Session of one server, over our own connections; and every exception turned into ours.

`HTTPAdapter.send` itself is left alone, so that what mocks it (the `responses` library) works on top of this.
"""

from __future__ import annotations

import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from certifi import where as default_ca_file
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from openai_gateway.errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from openai_gateway.transport.exchange import Exchange, Timeouts
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.watch import CallWatch
from openai_gateway.wire.headers import RequestHeaders

_WATCHED: Final = urllib3.Timeout()  # the call's watch bounds every phase
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class RelayRequest(requests.PreparedRequest):
    """A prepared request built from values that need no preparing; carries the watch of its call."""

    hooks: Any = {}  # noqa: RUF012 (never written to)
    _cookies = None
    _body_position = None

    def __init__(self, method: str, url: str, headers: RequestHeaders, body: bytes | None, watch: CallWatch) -> None:
        self.method = method
        self.url = url
        self.headers = headers  # type: ignore[assignment]
        self.body = body
        self.watch = watch


class RelayResponse(requests.Response):
    """A response without the parts that a relay doesn't use: cookies, history, elapsed time."""

    history: Any = ()
    encoding = None
    _content: Any = False
    _content_consumed = False

    def __init__(self, request: requests.PreparedRequest, raw: Any) -> None:
        self.request = request
        self.url = request.url or ""
        self.raw = raw
        self.status_code = raw.status
        self.reason = raw.reason

    @property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The answer's headers, repeated ones merged; made only if asked for."""
        return CaseInsensitiveDict(self.raw.headers.items())


class RelayAdapter(HTTPAdapter):
    """Sends through our pool: overrides what `HTTPAdapter.send` calls."""

    def __init__(self, pool: ConnectionPool, timeouts: Timeouts, target_start: int) -> None:
        super().__init__()
        self._pool = pool
        self._timeouts = timeouts
        self._target_start = target_start

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return an object with the `urlopen` that `send` calls."""
        return Exchange(self._pool, self._timeouts, request.watch)

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: verification is the pool's TLS context, always on."""

    def request_url(self, request: Any, proxies: Any) -> str:
        """Return path and query; proxies of the environment are never used."""
        return str(request.url[self._target_start :])

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """Return the response; its body is still to be read."""
        return RelayResponse(req, resp)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


class RelaySession(requests.Session):
    """A session that sends and nothing else: no redirects, cookies, hooks, environment or netrc."""

    def __init__(self, base_url: str, timeouts: Timeouts, ca_file: str | None) -> None:
        super().__init__()
        self.trust_env = False
        url = urlsplit(base_url)
        origin = f"{url.scheme}://{url.netloc}"
        tls = ssl.create_default_context(cafile=ca_file or default_ca_file()) if url.scheme == "https" else None
        pool = ConnectionPool(url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme], tls)
        self._adapter = RelayAdapter(pool, timeouts, len(origin))
        self.adapters.clear()
        self.mount(origin, self._adapter)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a RelayRequest; its body is not read. Raises UpstreamError, Cancelled; of a mock, its exceptions."""
        return self._adapter.send(request, stream=True, timeout=_WATCHED)  # type: ignore[arg-type]


def to_upstream_error(error: BaseException) -> UpstreamError:
    """Return our error for what a requests transport other than ours raised, such as a mock's."""
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return UpstreamTimeout("The upstream did not answer in time.")
    if isinstance(error, requests.exceptions.ConnectionError | urllib3.exceptions.NewConnectionError):
        return UpstreamUnreachable("The upstream can't be reached.")
    return UpstreamProtocolError("The upstream broke off its answer.")
