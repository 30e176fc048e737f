"""The writer by itself: what it counts is what gunicorn's log shows."""

from __future__ import annotations

from types import SimpleNamespace

from openai_gateway.server.writer import RelayWriter


class _Socket:
    def __init__(self) -> None:
        self.got = b""
        self._sock = self

    def send(self, data: bytes) -> int:
        self.got += data
        return len(data)


def _writer(sock: _Socket) -> RelayWriter:
    request = SimpleNamespace(version=(1, 1), method="POST", should_close=lambda: False)
    return RelayWriter(request, sock, SimpleNamespace(protocol="http", is_ssl=False))


def test_body_written_in_pieces_goes_out_whole_and_is_counted_once() -> None:
    sock = _Socket()
    writer = _writer(sock)
    write = writer.start_response("200 OK", [("Content-Length", "6")])
    for piece in (b"ab", b"cd", b"ef"):
        write(piece)
    writer.close()
    assert sock.got.endswith(b"\r\n\r\nabcdef")
    assert writer.sent == 6


def test_chunks_that_go_past_it_are_counted() -> None:
    sock = _Socket()
    writer = _writer(sock)
    writer.start_response("200 OK", [])
    writer.offer(b"ab", is_last=False)
    send = writer.find_chunk_sender()
    assert send is not None
    send(b"2\r\ncd\r\n")
    writer.count_sent(2)
    writer.close()
    assert sock.got.endswith(b"\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")
    assert writer.sent == 4


def test_chunks_may_be_sent_after_a_head_by_itself() -> None:
    sock = _Socket()
    writer = _writer(sock)
    writer.start_response("200 OK", [])
    send = writer.find_chunk_sender()
    assert send is not None
    send(writer.to_frame(b"", is_last=False) + b"2\r\nab\r\n")
    writer.count_sent(2)
    writer.offer(b"cd", is_last=False)
    writer.close()
    assert sock.got.endswith(b"\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")
    assert sock.got.count(b"HTTP/1.1 200 OK") == 1
    assert writer.sent == 4


def test_body_of_known_length_takes_no_chunks() -> None:
    writer = _writer(_Socket())
    writer.start_response("200 OK", [("content-length", "4")])
    writer.offer(b"ab", is_last=False)
    assert writer.find_chunk_sender() is None
