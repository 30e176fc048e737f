"""A TLS connection to a peer, over a socket pair: what is read when, when it is stale, and what it holds afterwards."""

from __future__ import annotations

import _socket
import resource
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openai_gateway.transport.tls import TlsConnection, make_context
from tests.support.certificates import make_certificates

PAGE_BYTES = resource.getpagesize()


class Peer:
    """The other end: what it has encrypted is held until it is sent, in whichever pieces."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                self._incoming.write(self.sock.recv(65536))
            else:
                # Not sent yet.
                self.tickets = self._outgoing.read()
                return

    def encrypt(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()

    def say_goodbye(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    def drain(self, length: int) -> None:
        """Receive until so many bytes have been decrypted."""
        while length > 0:
            self._incoming.write(self.sock.recv(65536))
            try:
                while length > 0:
                    length -= len(self.tls.read(65536))
            except ssl.SSLWantReadError:
                pass


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[TlsConnection, Peer]]:
    certificates = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    near, far = socket.socketpair()
    near.setblocking(False)
    link = TlsConnection(
        _socket.socket(near.family, near.type, 0, near.detach()),
        make_context(str(certificates.ca)),
        "127.0.0.1",
        None,
    )
    peer = Peer(far, context)
    thread = threading.Thread(target=peer.shake_hands)
    thread.start()
    link.shake_hands()
    thread.join(10)
    yield link, peer
    link.close()
    far.close()


def test_part_of_a_record_is_nothing_yet(pair: tuple[TlsConnection, Peer]) -> None:
    link, peer = pair
    peer.sock.sendall(peer.tickets)
    wire = peer.encrypt(b"first") + peer.encrypt(b"second")
    assert link.receive() is None
    peer.sock.sendall(wire[:10])
    assert link.receive() is None
    peer.sock.sendall(wire[10:-1])
    assert link.receive() == b"first"
    peer.sock.sendall(wire[-1:])
    assert link.receive() == b"second"
    peer.sock.sendall(peer.encrypt(b"x" * 40_000) + peer.say_goodbye())
    received = b""
    while piece := link.receive():
        received += piece
    assert received == b"x" * 40_000
    assert piece == b""


def test_records_that_are_in_come_as_one_piece(pair: tuple[TlsConnection, Peer]) -> None:
    link, peer = pair
    records = [bytes([number]) * 1500 for number in range(60)]
    wire = peer.tickets + b"".join(map(peer.encrypt, records))
    peer.sock.sendall(wire[:-1])
    assert link.receive() == b"".join(records[:-1])
    peer.sock.sendall(wire[-1:])
    assert link.receive() == records[-1]
    assert link.receive() is None


def test_reset_is_told_after_all_that_came_before_it(pair: tuple[TlsConnection, Peer]) -> None:
    """Also if the socket tells it while it is read on: it tells an error only once, and then an end."""
    link, peer = pair
    peer.sock.sendall(peer.tickets)
    assert link.receive() is None
    assert link.send(b"never read, so that closing resets the connection")
    # Two records that are as long as what a socket is asked for at a time.
    pieces = [letter * (16_384 - 22) for letter in (b"a", b"b")]
    wire = b"".join(map(peer.encrypt, pieces))
    assert len(wire) == 32_768
    peer.sock.sendall(wire)
    peer.sock.close()
    assert link.receive() == b"".join(pieces)
    with pytest.raises(ConnectionResetError):
        link.receive()


@pytest.mark.parametrize("is_told", [True, False], ids=["with a goodbye", "without a goodbye"])
def test_late_tickets_make_no_connection_stale_but_its_end_does(
    pair: tuple[TlsConnection, Peer], *, is_told: bool
) -> None:
    link, peer = pair
    assert not link.is_stale()
    peer.sock.sendall(peer.tickets)
    assert not link.is_stale()
    if is_told:
        peer.sock.sendall(peer.say_goodbye())
    peer.sock.close()
    assert link.is_stale()


def test_goodbye_that_came_with_an_answer_makes_its_connection_stale(pair: tuple[TlsConnection, Peer]) -> None:
    """Though the peer leaves the socket open, as one does that waits for the other's goodbye."""
    link, peer = pair
    peer.sock.sendall(peer.tickets + peer.encrypt(b"answer") + peer.say_goodbye())
    assert link.receive() == b"answer"
    assert link.is_stale()


def test_tickets_that_come_together_with_the_end_do_not_hide_it(pair: tuple[TlsConnection, Peer]) -> None:
    link, peer = pair
    peer.sock.sendall(peer.tickets)
    peer.sock.close()
    assert link.is_stale()


def test_connection_keeps_no_memory_for_a_large_body_that_it_has_sent(pair: tuple[TlsConnection, Peer]) -> None:
    link, peer = pair
    length = 48 * 1024 * 1024
    before = _resident_bytes()
    thread = threading.Thread(target=peer.drain, args=(length,))
    thread.start()
    assert link.send(bytes(length))
    thread.join(60)
    assert not thread.is_alive()
    assert _resident_bytes() - before < length / 2


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
