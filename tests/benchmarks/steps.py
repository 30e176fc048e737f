"""Micro-benchmarks of each step of one small chat call, apart from the sockets.

python tests/benchmarks/steps.py -o now.json
python -m pyperf compare_to tests/benchmarks/baseline.json now.json --table
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from time import monotonic
from types import SimpleNamespace
from typing import Any

import msgspec
import pyperf

from openai_gateway.blueprints.intake import read_body
from openai_gateway.config import ServerConfig
from openai_gateway.config.secret import Secret
from openai_gateway.server.plain import read_plain
from openai_gateway.server.writer import RelayWriter
from openai_gateway.transport.exchange import _make_head
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.pump import Pump
from openai_gateway.upstream.recorder import Recorder
from openai_gateway.wire import headers
from openai_gateway.wire.api import Api
from openai_gateway.wire.body import ChunkedDecoder, make_decoder
from openai_gateway.wire.call import Call
from openai_gateway.wire.envelope import ChatEnvelope, parse, rewrite
from openai_gateway.wire.head import parse_head
from openai_gateway.wire.tail import Tail

WORDS = "Please explain what this does, step by step, and be brief. "
MESSAGES = [{"role": "system", "content": WORDS * 3}, {"role": "user", "content": WORDS * 20 + "caf\u00e9"}]
BODY = json.dumps(
    {"model": "m", "messages": MESSAGES, "temperature": 0.7, "max_tokens": 512}, ensure_ascii=False
).encode()
LARGE = json.dumps({"model": "m", "messages": MESSAGES * 70}, ensure_ascii=False).encode()
ENVIRON: dict[str, Any] = {
    "REQUEST_METHOD": "POST",
    "PATH_INFO": "/v1/chat/completions",
    "CONTENT_TYPE": "application/json",
    "CONTENT_LENGTH": str(len(BODY)),
    "HTTP_HOST": "127.0.0.1:8000",
    "HTTP_AUTHORIZATION": "Bearer sk-client",
    "HTTP_ACCEPT": "application/json",
    "HTTP_ACCEPT_ENCODING": "gzip, deflate",
    "HTTP_CONNECTION": "keep-alive",
    "HTTP_USER_AGENT": "OpenAI/Python",
    "HTTP_X_STAINLESS_LANG": "python",
    "HTTP_X_STAINLESS_RETRY_COUNT": "0",
}
OWN = {"host": "upstream", "authorization": "Bearer sk-key"}
HEAD = b"\r\n".join(
    [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: 1100", b"x-request-id: req_1"]
    + [
        b"x-ratelimit-%b-%b: 1000" % (a, b)
        for a in (b"limit", b"remaining", b"reset")
        for b in (b"requests", b"tokens")
    ]
    + [b"openai-processing-ms: 12", b"openai-version: 2020-10-01", b"set-cookie: a=b", b"date: now", b"server: x"]
)
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"delta":{"content":" token"}}]}\n\n' * 2
SCHEMA = ChatEnvelope()
WATCH = CallWatch(Timeouts())
MODEL = msgspec.Raw(b'"the-model"')
SENT = headers.select_for_upstream(ENVIRON, has_body=True).with_own(OWN)
ANSWER_HEAD = parse_head(HEAD)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)

PLAIN_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer sk-client\r\n"
    b"Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: OpenAI/Python\r\nX-Stainless-Lang: python\r\nX-Stainless-Retry-Count: 0\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
)
RECORDER = Recorder(ServerConfig("policy_model", "http://u/v1", "the-model", Secret("sk")), [])
ANSWER = (
    b'{"id":"c","object":"chat.completion","model":"the-model","choices":[{"index":0,"finish_reason":"stop","message":'
    b'{"role":"assistant","content":"' + WORDS.encode() * 15 + b'"}}],"usage":{"prompt_tokens":300,'
    b'"completion_tokens":200,"total_tokens":500,"prompt_tokens_details":{"cached_tokens":0}}}'
)


def record() -> None:
    call = Call(Api.CHAT, "POST", "/chat/completions", SENT, BODY, request_id="gwreq_1", is_metered=True)
    tail = Tail(monotonic)
    tail.add(ANSWER)
    RECORDER.to_record(Progress(call, len(BODY), status=200, head=ANSWER_HEAD, outcome="completed", tail=tail))


def read() -> bytes:
    return read_body({**ENVIRON, "wsgi.input": io.BytesIO(BODY)}, 1 << 20, WATCH)


def answer_head() -> None:
    head = parse_head(HEAD)
    make_decoder(head, is_head_request=False)


def write_head() -> bytes:
    config = SimpleNamespace(protocol="http", is_ssl=False)
    request = SimpleNamespace(version=(1, 1), method="POST", should_close=lambda: False)
    writer = RelayWriter(request, None, config)
    writer.start_response("200 OK", parse_head(HEAD).passing)
    return writer.to_frame(b"{}", is_last=True)


def event_pump() -> Callable[[], None]:
    """Return what the hub calls for each event of a stream, over sockets that do nothing."""
    from_upstream: Any = SimpleNamespace(find_receiver=lambda: lambda most_bytes: CHUNK, off_readable=lambda: None)
    to_client = SimpleNamespace(_sock=SimpleNamespace(send=len))
    head = parse_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked")
    raw = RawAnswer(head, CHUNK, from_upstream, ConnectionPool("upstream", 80, None), ChunkedDecoder())
    request = SimpleNamespace(version=(1, 1), method="POST", should_close=lambda: False)
    writer = RelayWriter(request, to_client, SimpleNamespace(protocol="http", is_ssl=False))
    writer.start_response("200 OK", [])
    pump = Pump(raw, writer, Tail(monotonic), CallWatch(Timeouts(idle_s=600, client_s=60)))
    # As `run` leaves it once the head and a chunk of this size are out.
    writer.offer(raw.decoder.feed(CHUNK), is_last=False)
    pump._chunks, pump._send = raw.decoder, writer.find_chunk_sender()
    return pump._on_readable


def main() -> None:
    runner = pyperf.Runner()
    runner.bench_func("read a plain head", read_plain, PLAIN_HEAD + BODY)
    runner.bench_func("read the body", read)
    runner.bench_func("parse and check the envelope, 1.4 KB", parse, BODY, SCHEMA)
    runner.bench_func("parse and check the envelope, 100 KB", parse, LARGE, SCHEMA)
    runner.bench_func("rewrite the body", rewrite, parse(BODY, SCHEMA), MODEL, {})
    runner.bench_func(
        "headers to the upstream", lambda: headers.select_for_upstream(ENVIRON, has_body=True).with_own(OWN)
    )
    runner.bench_func("request head", _make_head, "POST", "/v1/chat/completions", SENT, BODY)
    runner.bench_func("parse the answer's head", answer_head)
    runner.bench_func("answer's head parsed, filtered and written", write_head)
    runner.bench_func("record of a call", record)
    runner.bench_func("one event decoded from its chunk", lambda: ChunkedDecoder().feed(CHUNK))
    runner.bench_func("one event from receiving to sending", event_pump())


if __name__ == "__main__":
    main()
