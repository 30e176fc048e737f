"""A connection whose bytes go through TLS: the same waiting, the same calls as a plain one.

An `ssl.SSLSocket` would do its own reading and waiting on the socket. Here TLS works on two buffers in memory instead
(`ssl.MemoryBIO`): what the socket receives is put into `_incoming`, what TLS wants sent is taken from `_outgoing`, and
the socket is read, written and waited for by `connection`, so that pump, pool and exchange know no difference.

States: shaking hands -> open -> ended (`_ended`: the peer said goodbye, or the socket is at its end; bytes that were
received before are still given out). Three things are other than with plain bytes. A readable socket may hold half a
record, or a session ticket: `receive` gives None then. A record may hold more than one `receive` asks for, and the
socket doesn't become readable again for it: so all of it is read, always. And `send` may find, while it waits, that the
peer has answered early: those bytes are kept in `_early`, for the next `receive`.

See also: connection, pool (sessions for resumption).
"""

from __future__ import annotations

import _socket
import errno
import ssl
from collections.abc import Callable
from typing import Any, Final

import gevent
from certifi import where as default_ca_file

from openai_gateway.transport.connection import RECEIVE_BYTES, Connection, wait_for


def make_context(
    ca_file: str | None, cert_file: str | None = None, key_file: str | None = None, *, is_strict: bool = False
) -> ssl.SSLContext:
    """Return a context that verifies the peer, and shows a certificate if there is one.

    `is_strict` keeps certificates to the letter of RFC 5280, which Python 3.13 does by default and older ones don't;
    private CAs often leave out what it asks for, such as key identifiers.
    """
    context = ssl.create_default_context(cafile=ca_file or default_ca_file())
    if is_strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    else:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if cert_file is not None:
        # A key with a password is an error; without one given, OpenSSL would ask for it on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    return context


# The most that one read can give, and what is encrypted at a time.
_RECORD_BYTES: Final = 16384
_PIECE_BYTES: Final = 4 * _RECORD_BYTES


class TlsConnection(Connection):
    """A connection whose bytes go through TLS; same waiting, same calls."""

    __slots__ = ("_callback", "_early", "_ended", "_incoming", "_outgoing", "_sending", "_tls")

    def __init__(self, sock: _socket.socket, context: ssl.SSLContext, hostname: str, session: Any) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname, session=session)
        self._ended = False
        self._sending = False
        self._early: bytes | None = None
        self._callback: Any = None

    @property
    def session(self) -> Any:
        """The TLS session, for resumption by a later connection to the same upstream."""
        return self._tls.session

    def shake_hands(self) -> None:
        """Do the TLS handshake. Raises ssl.SSLError, OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._await_record()
            else:
                self._flush()
                break
        if self._incoming.pending:
            # It came with the end of the handshake: everything later is read when it comes.
            self._early = self._read_all() or None

    def receive(self, most_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """Return decrypted bytes; see Connection. An end without TLS's close is an end all the same."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        if self._ended:
            return b""
        try:
            raw = self._sock.recv(most_bytes)
        except BlockingIOError:
            return None
        if raw:
            self._incoming.write(raw)
        else:
            self._note_end()
        return self._read_all()

    def find_receiver(self) -> Callable[[int], bytes | None]:
        """See Connection."""
        return self.receive

    def _read_all(self) -> bytes | None:
        """Return all that can be decrypted, as `receive` does: what is left makes no socket readable again."""
        read, incoming = self._tls.read, self._incoming
        pieces = []
        try:
            while piece := read(_RECORD_BYTES):
                # Asking once more to be told that there is nothing costs as much as the bytes.
                if not incoming.pending and not self._ended:
                    break
                pieces.append(piece)
            else:
                self._ended = True
        except ssl.SSLWantReadError:
            piece = b""
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            piece, self._ended = b"", True
        if self._outgoing.pending and not self._sending:
            self._flush()
        if pieces:
            piece = b"".join([*pieces, piece])
        if not self._ended:
            return piece or None
        if piece:
            # The socket won't become readable once more for the end.
            self._announce()
        return piece

    def wait_readable(self) -> None:
        """See Connection; returns at once if there is something to `receive` already."""
        if self._early is None and not self._ended:
            wait_for(self._readable)

    def on_readable(self, callback: Any) -> None:
        """See Connection; an end that TLS told of comes too, though the socket has nothing more to read."""
        self._callback = callback
        super().on_readable(callback)
        self._announce()

    def off_readable(self) -> None:
        """See Connection."""
        self._callback = None
        super().off_readable()

    def _announce(self) -> None:
        if self._callback is not None and (self._ended or self._early is not None):
            gevent.get_hub().loop.run_callback(self._call_back)

    def _call_back(self) -> None:
        if self._callback is not None:
            self._callback()

    def _to_wire(self, data: bytes | memoryview) -> bytes:
        written = self._tls.write(data)
        while written < len(data):
            written += self._tls.write(memoryview(data)[written:])
        return self._outgoing.read()

    def send(self, data: bytes) -> bool:
        """Encrypt and send all of `data`; see Connection."""
        if len(data) <= _PIECE_BYTES:
            return super().send(self._to_wire(data))
        # The buffer that TLS writes to keeps its greatest size for as long as the connection lives.
        rest = memoryview(data)
        while rest:
            if not super().send(self._to_wire(rest[:_PIECE_BYTES])):
                return False
            rest = rest[_PIECE_BYTES:]
        return True

    def _send_rest(self, rest: memoryview) -> bool:
        self._sending = True
        try:
            return super()._send_rest(rest)
        finally:
            self._sending = False

    def send_through(self, data: bytes) -> None:
        """See Connection; what the reading side has to send waits until this is out."""
        self._sending = True
        try:
            super().send_through(data)
        finally:
            self._sending = False

    def _is_readable(self) -> bool:
        # Readable may mean no more than a session ticket: only plain bytes are an answer.
        self._early = self.receive()
        return self._early is not None

    def is_stale(self) -> bool:
        """See Connection; TLS 1.3 tickets that came late are taken in and don't count."""
        try:
            while not self._ended and super().is_stale():
                if self.receive() is not None:
                    return True
        except OSError:
            return True
        return self._ended

    def _flush(self) -> None:
        # Handshake records and the like are small: they fit the socket's buffer or the connection is no good.
        pending = self._outgoing.read()
        if pending and self._sock.send(pending) < len(pending):
            raise ConnectionResetError(errno.ECONNRESET, "a TLS record could not be sent")

    def _await_record(self) -> None:
        self.wait_readable()
        raw = super().receive()
        if raw:
            self._incoming.write(raw)
        elif raw is not None:
            self._note_end()

    def _note_end(self) -> None:
        self._ended = True
        self._incoming.write_eof()
