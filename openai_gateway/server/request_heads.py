"""The heads of requests that aren't plain, read by gunicorn's own parser once they are whole.

gunicorn looks through all of a head for every piece that comes. Here the pieces are gathered first, each looked at once
and within bounds, and its parser is given the whole head, or what makes it refuse one. See also: plain.
"""

from __future__ import annotations

import re
from typing import Any, Final

import gevent
from gunicorn.config import Config
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders, NoMoreData, UnsupportedTransferCoding
from gunicorn.http.message import Request

from openai_gateway.server.bodies import ChunkedBody, LengthBody, Unreader

# Four times what nginx takes: long bearer tokens and all headers of the SDKs fit in many times over.
MAX_HEAD_BYTES: Final = 64 * 1024
# Of a body that nobody has read, so much is read and thrown away; of more, the connection is closed.
MAX_LEFT_BYTES: Final = 64 * 1024
_END: Final = b"\r\n\r\n"
_NO_START: Final = re.compile(rb"[^\r\n\x21-\x7e]")
_COMPRESSED: Final = re.compile("compress|deflate|gzip", re.IGNORECASE)
_BARE_FEED: Final = re.compile(rb"(?<!\r)\n")


class CheckedRequest(Request):  # type: ignore[misc]
    """A request as gunicorn reads it, but for names with an underscore, which a WSGI environ can't tell from others.

    They are kept apart in `underscored`, in lower case, for the upstream only. No peer is trusted to set anything that
    gunicorn would take from a header (`SCRIPT_NAME`, the scheme).
    """

    body: Any
    unreader: Any
    _expected_100_continue: bool

    def __init__(self, cfg: Config, unreader: Unreader, peer_addr: Any, number: int) -> None:
        self.underscored: list[tuple[str, str]] = []
        super().__init__(cfg, unreader, peer_addr, number)

    def _peer_trusted_for_forwarded(self) -> tuple[dict[str, str], list[str]]:
        return {}, []

    def _apply_header_policy(
        self, name: str, value: str, *rest: Any, from_trailer: bool = False
    ) -> tuple[str, str] | None:
        if "_" in name and self.cfg.header_map == "drop":
            if not from_trailer:
                self.underscored.append((name.lower(), value))
            return None
        kept: tuple[str, str] | None = super()._apply_header_policy(name, value, *rest, from_trailer=from_trailer)
        return kept

    def set_body_reader(self) -> None:
        """Choose how the body is read. Raises what gunicorn raises if its length can't be told."""
        super().set_body_reader()
        for name, value in self.headers:
            # gunicorn takes these, too, and leaves it to the app to undo them.
            if name == "TRANSFER-ENCODING" and _COMPRESSED.search(value):
                raise UnsupportedTransferCoding(value)
        sock, reader = self.unreader.sock, self.body.reader
        # gunicorn would answer it before anybody has looked at the request.
        expects_continue, self._expected_100_continue = self._expected_100_continue, False
        if isinstance(reader, ChunkedReader):
            self.body = ChunkedBody(reader, sock, expects_continue=expects_continue)
            return
        received = self.unreader.take_buffered()
        self.body = LengthBody(sock, received[: reader.length], reader.length, expects_continue=expects_continue)
        self.unreader.unread(received[reader.length :])

    def should_close(self) -> bool:
        """Tell whether the connection must be closed after this request."""
        # `close` among other options, or in a second header, is gunicorn's to overlook.
        asked = ",".join(value for name, value in self.headers if name == "CONNECTION").lower()
        if "close" in [option.strip() for option in asked.split(",")]:
            return True
        return bool(super().should_close()) or not may_be_drained(self.body.count_left())


def may_be_drained(left: int | None) -> bool:
    """Tell whether so much of a body, None for nobody knows, is little enough to be read and thrown away."""
    return left is not None and left <= MAX_LEFT_BYTES


def gather_head(unreader: Unreader, received: bytes, limit_request_line: int) -> None:
    """Read on from `received` until the head is whole, and give it back to `unreader`.

    Ends early with what gunicorn's parser refuses at sight: a bare line feed, a request line that is too long. Raises
    NoMoreData if the client leaves, LimitRequestHeaders if the head is too long, InvalidRequestLine if it isn't HTTP.
    """
    if _NO_START.match(received):
        # TLS, mostly, whose client would wait for as long as a head may take.
        raise InvalidRequestLine("not HTTP")
    head = bytearray(received)
    # Of what was looked at, the last three bytes may begin what the next piece completes.
    looked_at = 0
    while head.find(_END, looked_at) < 0 and not _is_refused(head, looked_at, limit_request_line):
        if len(head) > MAX_HEAD_BYTES:
            raise LimitRequestHeaders("the head is too long")
        looked_at = max(0, len(head) - 3)
        piece = unreader.chunk()
        if not piece:
            raise NoMoreData(b"")
        head += piece
        gevent.sleep(0)
    unreader.unread(bytes(head))


def _is_refused(head: bytearray, start: int, limit_request_line: int) -> bool:
    if _BARE_FEED.search(head, start):
        return True
    # An empty line may come first.
    return len(head) - 4 > limit_request_line > 0 and head.find(b"\r\n", 2, limit_request_line + 4) < 0
