"""One attempt of a call: sent, and its answer read as far as it must be before anything is relayed.

An answer that nobody can use before its end is read to its end here, so that one that breaks off can be tried again
unnoticed; a stream is handed on as soon as its head is in, and can't be. Whether there is another attempt is `relay`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from openai_gateway.config import ServerConfig
from openai_gateway.errors import (
    Cancelled,
    OutOfDescriptors,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from openai_gateway.transport.answer import RawAnswer
from openai_gateway.transport.errors import NoDescriptor, PeerError, TimedOut, Unreachable
from openai_gateway.transport.session import PeerRequest, PeerSession
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.key import UpstreamKey
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.retries import Outcome, to_error_code
from openai_gateway.wire.sse import is_event_stream

READ_AT_ONCE_BYTES: Final = 1024 * 1024
_MASK: Final = "[key masked by openai_gateway]"


class Sender:
    """Makes the attempts of one server's calls over its session."""

    def __init__(self, server: ServerConfig, on_new_key: Callable[[], None]) -> None:
        self._session = PeerSession(server.openai_base_url, server.ssl_ca_file)
        self._key = UpstreamKey(server, on_new_key)
        self._configured = {name.lower(): value.reveal() for name, value in server.openai_default_headers.items()}
        self._configured_secrets = [value for value in self._configured.values() if len(value) >= 8]
        url = urlsplit(server.openai_base_url)
        self._host = url.netloc
        self._base = f"{url.scheme}://{url.netloc}{url.path}"
        self._query = url.query
        self._own: Mapping[str, str] = {}
        self._key_in_own: str | None = None

    def own_headers(self) -> Mapping[str, str]:
        """Return the headers that win over the client's: the key, and those configured. They change with the key."""
        key = self._key.reveal()
        if key != self._key_in_own:
            self._key_in_own = key
            self._own = {"host": self._host, "authorization": f"Bearer {key}", **self._configured}
        return self._own

    def has_new_key(self) -> bool:
        """Tell whether the key is another one than that of the last attempt."""
        return self._key.reveal() != self._key_in_own

    def send(self, call: Call, watch: CallWatch) -> RawAnswer:
        """Return what came of one attempt. Raises UpstreamError, and Cancelled if the client left."""
        url = self._base + call.target
        if self._query:
            url += ("&" if "?" in call.target else "?") + self._query
        headers = call.headers.with_own(self.own_headers())
        raw: RawAnswer | None = None
        try:
            raw = self._session.exchange(PeerRequest(call.method, url, headers, call.body, watch))
            if not raw.is_whole and (raw.head.status >= 400 or _is_read_ahead(raw.head.known)):
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
        self._mask(raw)
        return raw

    def _mask(self, raw: RawAnswer) -> None:
        """Take our keys out of headers, and of an error's body, that echo them: the one change of what they say."""
        head = raw.head
        if head.status < 400 and not any(secret in head.text for secret in self._secrets()):
            return
        if head.status >= 400:
            for secret in self._secrets():
                raw.body = raw.body.replace(secret.encode(), _MASK.encode())
        headers = [(name, self.hide(value)) for name, value in head.headers]
        raw.head = Head(head.status, self.hide(head.reason), headers)

    def hide(self, text: str) -> str:
        """Return a text without our keys."""
        for secret in self._secrets():
            text = text.replace(secret, _MASK)
        return text

    def _secrets(self) -> list[str]:
        return [value for value in (self._key.reveal(), *self._configured_secrets) if value]


def to_outcome(raw: RawAnswer) -> Outcome:
    """Return what decides about another attempt."""
    headers = {name.lower(): value for name, value in raw.head.headers}
    return Outcome(raw.head.status, headers, to_error_code(raw.body) if raw.head.status == 429 else None)


def to_upstream_error(error: PeerError) -> UpstreamError:
    """Return the error that a client gets for what went wrong with the upstream."""
    if isinstance(error, TimedOut):
        return UpstreamTimeout(f"The upstream {error}.")
    if isinstance(error, NoDescriptor):
        return OutOfDescriptors(f"The upstream {error}.", retry_after_s=1)
    if isinstance(error, Unreachable):
        return UpstreamUnreachable(f"The upstream {error}.")
    return UpstreamProtocolError(f"The upstream {error}.")


def _is_read_ahead(known: Mapping[str, str]) -> bool:
    """Tell whether nobody reads an answer before its end: it is JSON, or of known length and no stream of events."""
    content_type = known.get("content-type", "")
    if is_event_stream(content_type):
        return False
    return "content-length" in known or ("json" in content_type and "ndjson" not in content_type)
