"""One attempt of a call: sent, and its answer read as far as it must be before anything is relayed.

Whether there is another attempt is `relay`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from openai_gateway.config import ServerConfig
from openai_gateway.errors import Cancelled, GatewayError, UpstreamTimeout
from openai_gateway.transport.exchange import RawAnswer, Timeouts
from openai_gateway.transport.session import RelayRequest, RelaySession, to_upstream_error
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.key import UpstreamKey
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.retries import Outcome, to_error_code
from openai_gateway.wire.sse import is_event_stream

READ_AT_ONCE_BYTES: Final = 1024 * 1024
_MASK: Final = "[key masked by openai_gateway]"


class Beginning(msgspec.Struct, frozen=True):
    """An upstream's answer as far as it was read; `raw` gives the rest of the body, None if `body` is all of it."""

    head: Head
    body: bytes
    raw: Any

    def to_outcome(self) -> Outcome:
        """Return what decides about another attempt."""
        headers = {name.lower(): value for name, value in self.head.headers}
        return Outcome(self.head.status, headers, to_error_code(self.body) if self.head.status == 429 else None)


class Sender:
    """Makes the attempts of one server's calls over its session."""

    def __init__(self, server: ServerConfig, on_new_key: Callable[[], None]) -> None:
        timeouts = Timeouts(server.connect_timeout_s, server.first_byte_timeout_s, server.idle_timeout_s)
        self._idle_s = server.idle_timeout_s
        self._session = RelaySession(server.openai_base_url, timeouts, server.ssl_ca_file)
        self.key = UpstreamKey(server, on_new_key)
        self._configured = {name.lower(): value.reveal() for name, value in server.openai_default_headers.items()}
        self._configured_secrets = [value for value in self._configured.values() if len(value) >= 8]
        url = urlsplit(server.openai_base_url)
        self._host = url.netloc
        self._base = f"{url.scheme}://{url.netloc}{url.path}"
        self._query = url.query
        self._own = RequestHeaders()
        self._key_in_own: str | None = None

    def own_headers(self) -> RequestHeaders:
        """Return the headers that win over the client's: the key, and those configured. They change with the key."""
        key = self.key.reveal()
        if key != self._key_in_own:
            self._key_in_own = key
            self._own = RequestHeaders({"host": self._host, "authorization": f"Bearer {key}", **self._configured})
        return self._own

    def send(self, call: Call, watch: CallWatch) -> Beginning:
        """Return what came of one attempt. Raises UpstreamError, and Cancelled if the client left."""
        url = self._base + call.target
        if self._query:
            url += ("&" if "?" in call.target else "?") + self._query
        raw: Any = None
        try:
            raw = self._session.send(RelayRequest(call.method, url, call.headers, call.body, watch)).raw
            beginning = self._read(raw, watch)
        except BaseException as error:
            if raw is not None:
                raw.close()
            if isinstance(error, Cancelled) and isinstance(error.reason, UpstreamTimeout):
                raise error.reason from None
            if isinstance(error, GatewayError) or not isinstance(error, Exception):
                raise
            raise to_upstream_error(error) from None
        finally:
            watch.disarm()
        return self._mask(beginning)

    def _read(self, raw: Any, watch: CallWatch) -> Beginning:
        """Read an answer that is no stream to its end; it is relayed only then, so that one that breaks can be retried.

        One that turns out longer than READ_AT_ONCE_BYTES is left to be relayed as it comes.
        """
        head = raw.headers if isinstance(raw.headers, Head) else Head(raw.status, raw.reason or "", raw.headers.items())
        pieces: list[bytes] = []
        length = 0
        is_short = head.status >= 400 or _is_read_whole(head.known)
        if is_short and type(raw) is RawAnswer:
            body = raw.whole()
            if body is not None:
                return Beginning(head, body, None)
        if is_short:
            watch.arm(self._idle_s, self.to_idle_timeout)
        while is_short and length <= READ_AT_ONCE_BYTES:
            piece: bytes = raw.read1()
            if not piece:
                return Beginning(head, b"".join(pieces), None)
            watch.has_moved = True
            pieces.append(piece)
            length += len(piece)
        return Beginning(head, b"".join(pieces), raw)

    def _mask(self, beginning: Beginning) -> Beginning:
        """Take our keys out of headers, and of an error's body, that echo them: the one change of what they say."""
        head = beginning.head
        if head.status < 400 and not any(secret in head.text for secret in self._secrets()):
            return beginning
        body = beginning.body
        if head.status >= 400:
            for secret in self._secrets():
                body = body.replace(secret.encode(), _MASK.encode())
        headers = [(name, self.hide(value)) for name, value in head.headers]
        return Beginning(Head(head.status, self.hide(head.reason), headers), body, beginning.raw)

    def hide(self, text: str) -> str:
        """Return a text without our keys."""
        for secret in self._secrets():
            text = text.replace(secret, _MASK)
        return text

    def _secrets(self) -> list[str]:
        return [value for value in (self.key.reveal(), *self._configured_secrets) if value]

    def to_idle_timeout(self) -> GatewayError:
        """Return the error for an upstream that stopped sending."""
        return UpstreamTimeout(f"The upstream sent nothing for {self._idle_s:g} s.")


def _is_read_whole(known: Mapping[str, str]) -> bool:
    """Tell whether nobody reads an answer before its end: it is JSON, or of known length and no stream of events."""
    content_type = known.get("content-type", "")
    if is_event_stream(content_type):
        return False
    return "content-length" in known or ("json" in content_type and "ndjson" not in content_type)
