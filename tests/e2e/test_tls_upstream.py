"""A TLS upstream, which takes the same way as a plain one: streams, large bodies, reuse, early answers, cuts."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
import requests

from tests.support.certificates import make_certificates
from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import (
    LAST_CHUNK,
    PATHS,
    STREAM_HEAD,
    Conversation,
    ScriptedUpstream,
    answer_always,
    run_upstream,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, ScriptedUpstream]]:
    folder = tmp_path_factory.mktemp("tls")
    certificates = make_certificates(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    settings = {"ssl_ca_file": str(certificates.ca), "max_retries": 0}
    with run_upstream(answer_always, tls) as upstream, run_gateway(folder, upstream.url, settings) as gateway:
        yield gateway, upstream


def test_stream_arrives_event_by_event(secure: tuple[Gunicorn, ScriptedUpstream]) -> None:
    gateway, upstream = secure

    def stream(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD)
        for _ in range(5):
            talk.send(to_chunk(to_event("chat", "x")))
            time.sleep(0.1)
        talk.send(LAST_CHUNK)

    upstream.script = stream
    body = to_request_body("chat", stream=True)
    arrived = []
    with requests.post(gateway.url + PATHS["chat"], json=body, stream=True, timeout=60) as answer:
        while answer.raw.read1(65536):
            arrived.append(time.monotonic())
    assert len(arrived) == 5
    assert arrived[-1] - arrived[0] > 0.3


@pytest.mark.parametrize("chunk_bytes", [150, 3991, 16_000])
def test_stream_that_comes_flat_out_arrives_whole(secure: tuple[Gunicorn, ScriptedUpstream], chunk_bytes: int) -> None:
    """With borders of chunks within events, as behind nginx, and more at once than the gateway takes in."""
    gateway, upstream = secure
    whole = b"".join(b'data: {"n": %d, "text": "%b"}\n\n' % (number, b"x" * (number % 90)) for number in range(9000))
    wire = b"".join(to_chunk(whole[at : at + chunk_bytes]) for at in range(0, len(whole), chunk_bytes)) + LAST_CHUNK

    def stream(talk: Conversation) -> None:
        while talk.read_request() is not None:
            talk.send(STREAM_HEAD + wire)

    upstream.script = stream
    for _ in range(3):
        with requests.post(
            gateway.url + PATHS["chat"], json=to_request_body("chat", stream=True), timeout=60
        ) as answer:
            assert answer.content == whole


def test_large_body_arrives_whole_both_ways(secure: tuple[Gunicorn, ScriptedUpstream]) -> None:
    gateway, upstream = secure
    large = json.dumps({"x": "y" * 6_000_000}).encode()

    def answer(talk: Conversation) -> None:
        while talk.read_request() is not None:
            talk.send(to_answer(large))

    upstream.script = answer
    upstream.requests.clear()
    for _ in range(3):
        sent = {"input": "x" * 6_000_000}
        got = requests.post(gateway.url + PATHS["responses"], json=sent, timeout=60)
        assert got.content == large
        assert len(upstream.requests[-1].body) > 6_000_000


def test_connection_is_reused(secure: tuple[Gunicorn, ScriptedUpstream]) -> None:
    gateway, upstream = secure
    upstream.script = answer_always
    before = upstream.connections
    for _ in range(5):
        assert requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).ok
    assert upstream.connections - before <= 1


def test_answer_that_comes_before_the_body_is_read_is_relayed(secure: tuple[Gunicorn, ScriptedUpstream]) -> None:
    gateway, upstream = secure

    def answer_early(talk: Conversation) -> None:
        talk.read_head()
        talk.send(to_answer(b'{"error": {"message": "too large"}}', status="413 Content Too Large"))
        talk.wait_until_closed(2)

    upstream.script = answer_early
    sent = {"input": "x" * 8_000_000}
    assert requests.post(gateway.url + PATHS["responses"], json=sent, timeout=60).status_code == 413


def test_connection_cut_without_tls_goodbye_breaks_the_stream_with_an_error_event(
    secure: tuple[Gunicorn, ScriptedUpstream],
) -> None:
    gateway, upstream = secure

    def cut(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD + to_chunk(to_event("chat", "x")))
        time.sleep(0.1)
        socket.socket.shutdown(talk.sock, socket.SHUT_RDWR)

    upstream.script = cut
    body = to_request_body("chat", stream=True)
    answer = requests.post(gateway.url + PATHS["chat"], json=body, timeout=60)
    assert b'"code": "upstream_protocol_error"' in answer.content
    eventually(lambda: gateway.inspect()["in_flight"] == 0)


@pytest.mark.parametrize("is_apart", [False, True], ids=["with the last event", "after it"])
def test_tls_goodbye_ends_a_stream_though_the_connection_stays_open(
    is_apart: bool, secure: tuple[Gunicorn, ScriptedUpstream]
) -> None:
    gateway, upstream = secure
    event = to_event("chat", "x")

    def say_goodbye(talk: Conversation) -> None:
        talk.read_request()
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        time.sleep(0.1)
        talk.send(event)
        if is_apart:
            time.sleep(0.1)
        assert isinstance(talk.sock, ssl.SSLSocket)
        talk.sock.settimeout(3)
        with contextlib.suppress(OSError):
            talk.sock.unwrap()
        time.sleep(3)

    upstream.script = say_goodbye
    began = time.monotonic()
    answer = requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat", stream=True), timeout=60)
    assert answer.content == event
    assert time.monotonic() - began < 2
