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
from typing import Any, Final

import gevent
from certifi import where as default_ca_file

from openai_gateway.transport.connection import RECEIVE_BYTES, Connection


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


# The most that one read can give.
_RECORD_BYTES: Final = 16384


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
                return

    def receive(self) -> bytes | None:
        """Return decrypted bytes; see Connection. An end without TLS's close is an end all the same."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        plain = b""
        # What is there already came with the end of the handshake: everything else was read when it came.
        if self._incoming.pending:
            plain = self._read_all()
        while not plain:
            if self._ended:
                return b""
            try:
                raw = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return None
            self._take(raw)
            plain = self._read_all()
        if self._ended:
            self._announce()
        return plain

    def _read_all(self) -> bytes:
        """Return all that can be decrypted: what is left behind would not make the socket readable again."""
        tls, incoming = self._tls, self._incoming
        pieces = []
        try:
            while piece := tls.read(_RECORD_BYTES):
                pieces.append(piece)
                # Asking once more to be told that there is nothing costs as much as the bytes.
                if not incoming.pending and not self._ended:
                    break
            else:
                self._ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        if self._outgoing.pending and not self._sending:
            self._flush()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def wait_readable(self) -> None:
        """See Connection; returns at once if there is something to `receive` already."""
        if self._early is None and not self._ended:
            super().wait_readable()

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

    def _to_wire(self, data: bytes) -> bytes:
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._outgoing.read()

    def send(self, data: bytes) -> bool:
        """Encrypt and send all of `data`; see Connection."""
        wire = self._to_wire(data)
        self._sending = True
        try:
            return super().send(wire)
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
            return super().is_stale() and self.receive() is not None
        except OSError:
            return True

    def _flush(self) -> None:
        # Handshake records and the like are small: they fit the socket's buffer or the connection is no good.
        pending = self._outgoing.read()
        if pending and self._sock.send(pending) < len(pending):
            raise ConnectionResetError(errno.ECONNRESET, "a TLS record could not be sent")

    def _await_record(self) -> None:
        self.wait_readable()
        raw = super().receive()
        if raw is not None:
            self._take(raw)

    def _take(self, raw: bytes) -> None:
        if raw:
            self._incoming.write(raw)
        else:
            self._ended = True
            self._incoming.write_eof()
