"""A connection whose bytes go through TLS: the same waiting, the same calls as a plain one.

An `ssl.SSLSocket` would do its own reading and waiting on the socket. Here TLS works on two buffers in memory instead
(`ssl.MemoryBIO`): what the socket receives is put into `_incoming`, what TLS wants sent is taken from `_outgoing`, and
the socket is read, written and waited for by `connection`, so that pump, pool and exchange know no difference. A TLS
buffer keeps the greatest size that it ever had, so little is put into it at a time; what all of it decrypts to is
gathered in one place for all connections, as nothing waits meanwhile: one piece for the client, and no memory of a
connection's own.

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


# The most that one read can give; what is put into a buffer of TLS's at a time, encrypted or to be.
_RECORD_BYTES: Final = 16384
_TAKE_BYTES: Final = 2 * _RECORD_BYTES
_PIECE_BYTES: Final = 4 * _RECORD_BYTES
_taken: Final = memoryview(bytearray(_TAKE_BYTES))
# With room for the rest of a record that began earlier, and for the take that went beyond.
_decrypted: Final = memoryview(bytearray(RECEIVE_BYTES + _TAKE_BYTES + _RECORD_BYTES))


class TlsConnection(Connection):
    """A connection whose bytes go through TLS; same waiting, same calls."""

    __slots__ = ("_broken", "_callback", "_early", "_ended", "_incoming", "_outgoing", "_sending", "_tls")

    def __init__(self, sock: _socket.socket, context: ssl.SSLContext, hostname: str, session: Any) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname, session=session)
        self._ended = False
        self._sending = False
        self._early: bytes | None = None
        # The socket's error, which it tells once, if there were bytes to give out first.
        self._broken: OSError | None = None
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
            self._early = self._gather(b"", 0, 0) or None

    def receive(self, most_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """Return decrypted bytes; see Connection. An end without TLS's close is an end all the same."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        if self._ended:
            return b""
        try:
            raw = self._sock.recv(_TAKE_BYTES)
        except BlockingIOError:
            return None
        if raw:
            self._incoming.write(raw)
        elif self._broken is not None:
            raise self._broken
        else:
            self._note_end()
        try:
            piece = self._tls.read(_RECORD_BYTES) or self._end()
            # Most often that was all: asking once more to be told so would cost as much as the bytes.
            if self._incoming.pending or len(raw) == _TAKE_BYTES:
                piece = self._gather(piece, len(raw), most_bytes)
        except ssl.SSLWantReadError:
            piece = b""
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            piece = self._end()
        if self._outgoing.pending and not self._sending:
            self._flush()
        return piece or (b"" if self._ended else None)

    def find_receiver(self) -> Callable[[int], bytes | None]:
        """See Connection."""
        return self.receive

    def _gather(self, first: bytes, taken: int, most_bytes: int) -> bytes:
        """Return all that can be decrypted, after what was in the first record.

        What is left would make no socket readable again. The socket is read on as long as it gives all that it is
        asked for, and it is `most_bytes` in about.
        """
        length = len(first)
        _decrypted[:length] = first
        while True:
            length = self._decrypt(length)
            if taken < _TAKE_BYTES or length >= most_bytes or self._ended:
                break
            try:
                taken = self._sock.recv_into(_taken)
            except BlockingIOError:
                break
            except OSError as error:
                self._broken = error
                break
            self._incoming.write(_taken[:taken])
        return bytes(_decrypted[:length])

    def _decrypt(self, length: int) -> int:
        """Put what can be decrypted behind the `length` bytes that were before; return where it ends."""
        read: Any = self._tls.read
        try:
            while self._incoming.pending and not self._ended:
                length += read(_RECORD_BYTES, _decrypted[length:]) or len(self._end())
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._end()
        return length

    def _end(self) -> bytes:
        self._ended = True
        # The socket won't become readable once more for it.
        self._announce()
        return b""

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
