"""One attempt of a call: sent, and its answer read as far as it must be before anything is relayed.

An answer that nobody can use before its end is read to its end here, so that one that breaks off can be tried again
unnoticed; a stream is handed on as soon as its head is in, and can't be. See also: relay (whether there is another
attempt).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from openai_gateway.config import ServerConfig
from openai_gateway.config.key_file import UpstreamKey
from openai_gateway.errors import (
    Cancelled,
    OutOfDescriptors,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from openai_gateway.limits.breaker import Breaker
from openai_gateway.transport.errors import NoDescriptor, NotHttp, PeerError, TimedOut, Unreachable
from openai_gateway.transport.pool import ConnectionTerms
from openai_gateway.transport.proxy import parse_proxy
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.session import PeerRequest, PeerSession
from openai_gateway.transport.tls import make_context
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.body import decode_content
from openai_gateway.wire.call import Call
from openai_gateway.wire.headers import OF_CLIENT
from openai_gateway.wire.mask import KeyMask
from openai_gateway.wire.retries import HOPELESS, UNANSWERED, Outcome, is_final, read_error_code
from openai_gateway.wire.sse import is_event_stream

READ_AT_ONCE_BYTES: Final = 1024 * 1024


class Sender:
    """Makes the attempts of one server's calls over its session; `key_files` has the file of the key, if there is one.

    The breaker hears of each attempt that a call makes, and is asked before it.
    """

    def __init__(self, server: ServerConfig) -> None:
        self.breaker = Breaker(server.breaker_cooldown_s)
        self._most_attempts = server.max_retries + 1
        self._session = _open_session(server)
        self._key = UpstreamKey(server.openai_api_key, server.openai_api_key_file, on_change=self.breaker.reset)
        self.key_files = [self._key.file] if self._key.file is not None else []
        self._configured = {name.lower(): value.reveal() for name, value in server.openai_default_headers.items()}
        self._mask = KeyMask(list(self._configured.values()))
        self.hide = self._mask.hide
        url = urlsplit(server.openai_base_url)
        self._host = url.netloc
        self._base = f"{url.scheme}://{url.netloc}{url.path}"
        self._query = url.query
        self._own: Mapping[str, str] = {}
        self._key_in_own: str | None = None
        if self._key.file is None:
            self._take_key(self._key.reveal())

    def _own_headers(self) -> Mapping[str, str]:
        """Return the headers that win over the client's: the key, and those configured. They change with the key."""
        if self._key.file is not None and (key := self._key.reveal()) != self._key_in_own:
            self._take_key(key)
        return self._own

    def _take_key(self, key: str) -> None:
        self._key_in_own = key
        self._mask.learn(key)
        self._own = {"host": self._host, "authorization": f"Bearer {key}", **self._configured}

    def reveal_key(self) -> str | None:
        """Return the key as it is now."""
        return self._key.reveal()

    def attempt(self, progress: Progress, watch: CallWatch) -> tuple[RawAnswer | None, UpstreamError | None, Outcome]:
        """Make one attempt of a call: the answer, or the failure, and what decides about another one.

        Raises UpstreamError if the breaker lets none be made; Cancelled if the client left.
        """
        if self.breaker.outcome is not None:
            self.ask_breaker()
        progress.attempts += 1
        progress.last_attempt = monotonic()
        call = progress.call
        request = self.make_request(call, watch)
        # Another send over a new connection counts as an attempt, too.
        sends_left = self._most_attempts + 1 - progress.attempts + progress.retries.count("429")
        request.most_sends = max(1, min(2, sends_left))
        outcome, refused, is_answered = UNANSWERED, None, False
        try:
            raw = self.send(call, request)
            is_answered = True
            if raw.head.status >= 400:
                outcome = read_outcome(raw)
                if is_final(outcome):
                    refused, is_answered = (outcome if self.blames_key(call, request) else None), False
            return raw, None, outcome
        except UpstreamError as failure:
            return None, failure, HOPELESS if failure.is_final else outcome
        finally:
            progress.sends = request.sends
            progress.attempts += request.sends == 2
            if refused is not None or self.breaker.refusals:
                self.breaker.settle(refused, is_answered=is_answered)

    def ask_breaker(self) -> None:
        """Raise UpstreamError if the breaker lets no attempt be made; one that may be made has to settle it."""
        refusal = self.breaker.refusal()
        # The breaker judged the key of the last attempt; one that was swapped in since gets its chance.
        if refusal is not None and self._key.reveal() == self._key_in_own:
            raise refusal

    def make_request(self, call: Call, watch: CallWatch) -> PeerRequest:
        """Return the request of an attempt that starts now, with the key that is in use now."""
        url = self._base + call.target
        if self._query:
            url += ("&" if "?" in call.target else "?") + self._query
        own = self._own if self._key.file is None else self._own_headers()
        return PeerRequest(call.method, url, call.headers.with_own(own), call.body, watch)

    def blames_key(self, call: Call, request: PeerRequest) -> bool:
        """Tell whether a refusal of a request says something of the key in use, and not of an older one or the client.

        A client's own organization, say, may be one that the key isn't in.
        """
        is_of_client = any(name in call.headers and name not in self._configured for name in OF_CLIENT)
        return not is_of_client and request.headers is call.headers.with_own(self._own_headers())

    def send(self, call: Call, request: PeerRequest, *, is_upgrade: bool = False) -> RawAnswer:
        """Return what came of one attempt. Raises UpstreamError, and Cancelled if the client left.

        `is_upgrade`: the call asks for another protocol; if the upstream agrees (101), the connection is the caller's.
        """
        watch = request.watch
        raw: RawAnswer | None = None
        try:
            raw = self._session.upgrade(request) if is_upgrade else self._session.exchange(request)
            status = raw.head.status
            if not raw.is_whole and (status >= 300 or (not call.is_streamed and _is_read_ahead(raw.head.known))):
                raw.read_ahead(READ_AT_ONCE_BYTES, watch)
        except BaseException as error:
            if raw is not None:
                raw.close()
            reason = error.reason if isinstance(error, Cancelled) else error
            if isinstance(reason, PeerError):
                raise to_upstream_error(reason) from None
            raise
        finally:
            watch.disarm()
        masked = self._mask.apply(raw.head, raw.body, is_whole=raw.is_whole)
        if masked is not None:
            raw.head, raw.body = masked
        return raw


def _open_session(server: ServerConfig) -> PeerSession:
    tls = None
    if server.openai_base_url.startswith("https:"):
        tls = make_context(server.ssl_ca_file, server.ssl_cert_file, server.ssl_key_file, is_strict=server.ssl_strict)
    proxy = parse_proxy(server.upstream_proxy.reveal()) if server.upstream_proxy is not None else None
    terms = ConnectionTerms(proxy, server.connection_max_age_s, server.tcp_keepalive_s)
    return PeerSession(server.openai_base_url, tls, terms)


def read_outcome(raw: RawAnswer) -> Outcome:
    """Return what decides about another attempt."""
    head = raw.head
    headers = {name.lower(): value for name, value in head.headers}
    if head.status not in (401, 429):
        return Outcome(head.status, headers)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    body = raw.body if encoding == "identity" else decode_content(raw.body, encoding)
    return Outcome(head.status, headers, read_error_code(body or b""))


def to_upstream_error(error: PeerError) -> UpstreamError:
    """Return the error that a client gets for what went wrong with the upstream."""
    if isinstance(error, TimedOut):
        return UpstreamTimeout(f"The upstream {error}.")
    if isinstance(error, NoDescriptor):
        return OutOfDescriptors(f"The upstream {error}.", retry_after_s=1)
    if isinstance(error, Unreachable):
        return UpstreamUnreachable(f"The upstream {error}.")
    failure = UpstreamProtocolError(f"The upstream {error}.")
    failure.is_final = isinstance(error, NotHttp)
    return failure


def _is_read_ahead(known: Mapping[str, str]) -> bool:
    """Tell whether nobody reads an answer before its end: it is JSON, or of known length and no stream of events."""
    content_type = known.get("content-type", "")
    if is_event_stream(content_type):
        return False
    return "content-length" in known or ("json" in content_type and "ndjson" not in content_type)
