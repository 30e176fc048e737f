"""Mixed calls over real sockets: a gateway of two workers, an upstream that counts and misbehaves, clients that leave.

What is compared in the end: the charges in the file that the workers share, and what the upstream read. See also:
mixed_calls (the command).
"""

from __future__ import annotations

import json
import random
import socket
import struct
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import gevent
import requests
from gevent import socket as gevent_socket
from gevent.pool import Pool
from gevent.server import StreamServer

from tests.support.ledgers import Accounts, read_ledger
from tests.support.processes import Gunicorn, run_gateway

CLIENTS: Final = 160
CAP: Final = 96
# What the gateway takes an answer to be whose call gives no bound.
_OUTPUT_TOKENS: Final = 1024
_KEY: Final = "gw-key-team"
_STALL_S: Final = 3.0
_RESET: Final = struct.pack("ii", 1, 0)
_SAID: Final = (
    b"x-ratelimit-limit-requests: 600000\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: 1s\r\n"
    b"x-ratelimit-limit-tokens: 600000000\r\nx-ratelimit-remaining-tokens: 500000000\r\n"
    b"x-ratelimit-reset-tokens: 1s\r\n"
)
_REFUSAL: Final = b'{"error": {"message": "Rate limit reached.", "type": "requests", "code": "rate_limit_exceeded"}}'
_ANSWER: Final = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "model": "the-model",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
).encode()
_EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"ok"}}]}\n\n'
)
# What the upstream does, and how often of a thousand times.
_KINDS: Final = {
    "answer": 830,
    "429, nothing left": 4,
    "429": 26,
    "500": 30,
    "reset before the answer": 40,
    "reset within the answer": 30,
    "stall before the answer": 20,
    "stall within the answer": 20,
}
# What clients do: they leave before or within their request, or a moment after it, or stay.
_PHASES: Final = {"head": 20, "body": 20, "after": 260, "stays": 700}


class CountingUpstream:
    """Counts each request that it has read whole. Each answer tells what remains, so that refusals stay charged."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.tokens = 0.0
        self._server = StreamServer(("127.0.0.1", 0), self._talk, backlog=4096)
        self._server.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """End all that goes on."""
        self._server.stop(timeout=1)

    def _talk(self, sock: Any, _: Any) -> None:
        file = sock.makefile("rb")
        try:
            while self._answer_one(sock, file):
                pass
        except OSError:
            pass  # The gateway has closed it.
        finally:
            file.close()
            sock.close()

    def _answer_one(self, sock: Any, file: Any) -> bool:
        line = file.readline()
        length = 0
        while (header := file.readline().strip()) != b"":
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = file.read(length)
        if not line or len(body) < length:
            return False
        if not line.startswith(b"POST"):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            return True
        asked = json.loads(body)
        tokens = length / 4 + asked.get("max_tokens", _OUTPUT_TOKENS)
        kind = self._draw.choices(list(_KINDS), list(_KINDS.values()))[0]
        self.kinds[kind] += 1
        self.tokens += tokens
        return self._act(sock, kind, is_streamed=asked.get("stream", False))

    def _act(self, sock: Any, kind: str, *, is_streamed: bool) -> bool:
        if kind == "reset before the answer":
            return _reset(sock)
        gevent.sleep(_STALL_S if kind == "stall before the answer" else self._draw.expovariate(100))
        if kind.startswith("429"):
            said = _SAID % (0 if kind == "429, nothing left" else 500_000)
            sock.sendall(_to_head(b"429 No", b"application/json", len(_REFUSAL), said) + _REFUSAL)
        elif kind == "500":
            sock.sendall(_to_head(b"500 No", b"application/json", 2, b"retry-after-ms: 20\r\n") + b"{}")
        else:
            body = 3 * _EVENT + b"data: [DONE]\n\n" if is_streamed else _ANSWER
            content_type = b"text/event-stream" if is_streamed else b"application/json"
            half = len(body) // 2
            sock.sendall(_to_head(b"200 OK", content_type, len(body), _SAID % 500_000) + body[:half])
            if kind == "reset within the answer":
                return _reset(sock)
            gevent.sleep(_STALL_S if kind == "stall within the answer" else self._draw.expovariate(1000))
            sock.sendall(body[half:])
        return True


def _to_head(status: bytes, content_type: bytes, length: int, said: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n" % (status, content_type, said, length)


def _reset(sock: Any) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return False


class Clients:
    """Make calls, and count what became of them: a status, where they left, or how a connection ended."""

    def __init__(self, url: str, seed: int) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._draw = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def run(self, calls: int) -> None:
        """Make so many calls, as many at once as there are clients."""
        pool, each = Pool(CLIENTS), calls // CLIENTS
        for number in range(CLIENTS):
            pool.spawn(self._call_repeatedly, each + (number < calls % CLIENTS))
        pool.join()

    def _call_repeatedly(self, calls: int) -> None:
        sock: Any = None
        for _ in range(calls):
            sock = sock or gevent_socket.create_connection(self._address)
            try:
                outcome = self._call(sock)
            except OSError as error:
                outcome = f"broken: {type(error).__name__}"
            self.outcomes[outcome] += 1
            if not outcome.isdigit():
                sock.close()
                sock = None

    def _call(self, sock: Any) -> str:
        draw = self._draw
        asked: dict[str, Any] = {
            "model": "policy_model",
            "messages": [{"role": "user", "content": "x" * draw.randrange(400)}],
            "stream": draw.random() < 0.4,
        }
        if draw.random() < 0.7:
            asked["max_tokens"] = draw.randrange(1, 300)
        body = json.dumps(asked).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % (_KEY.encode(), len(body))
        )
        phase = draw.choices(list(_PHASES), list(_PHASES.values()))[0]
        if phase in ("head", "body"):
            sent = head + body
            sock.sendall(sent[: draw.randrange(len(head)) if phase == "head" else draw.randrange(len(head), len(sent))])
            return f"left within the {phase}"
        sock.sendall(head + body)
        if phase == "stays":
            return _read_answer(sock)
        with gevent.Timeout(draw.expovariate(40), False):
            return _read_answer(sock)
        return "left while waiting"


def _read_answer(sock: Any) -> str:
    """Read a whole answer; return its status."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(sock)
    head, _, rest = received.partition(b"\r\n\r\n")
    known = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if b"content-length" in known:
        while len(rest) < int(known[b"content-length"]):
            rest += _receive(sock)
    elif known.get(b"transfer-encoding") == b"chunked":
        while not rest.endswith(b"0\r\n\r\n"):
            rest += _receive(sock)
    if known.get(b"connection") == b"close":
        return f"{head[9:12].decode()}, closed"
    return head[9:12].decode()


def _receive(sock: Any) -> bytes:
    received: bytes = sock.recv(65536)
    if not received:
        raise ConnectionAbortedError
    return received


class Found(Accounts):
    """What clients and upstream saw: also how the upstream answered."""

    kinds: Counter[str]


def run(calls: int, seed: int) -> Found:
    """Make so many calls through a gateway of two workers."""
    upstream = CountingUpstream(seed)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _run(Path(folder), upstream, calls, seed)
    finally:
        upstream.stop()


def _run(folder: Path, upstream: CountingUpstream, calls: int, seed: int) -> Found:
    (folder / "prices.yaml").write_text("models: {the-model: {input: 1.0, output: 10.0}}\n")
    (folder / "clients.yaml").write_text(json.dumps({"team": {"key": _KEY, "budget_usd": 1e6, "per": "day"}}))
    settings = {
        "max_concurrent_requests_total": CAP,
        "price_file": str(folder / "prices.yaml"),
        "usage_log": str(folder / "usage.jsonl"),
        "clients_file": str(folder / "clients.yaml"),
        "first_byte_timeout_s": 1,
        "idle_timeout_s": 1,
        "queue_timeout_s": 5,
        "max_retries": 2,
        "retry_ratio": 1,
    }
    environ = {"TMPDIR": str(folder)}
    with run_gateway(folder, upstream.url, settings, "--workers", "2", environ=environ) as gateway:
        clients = Clients(gateway.url, seed)
        clients.run(calls)
        held = _wait_until_free(gateway)
        requests_charged, tokens_charged, permits = read_ledger(folder, upstream.url)
    return Found(
        clients.outcomes,
        {**held, "permits": float(permits)},
        {"requests": requests_charged, "tokens": tokens_charged},
        {"requests": float(upstream.kinds.total()), "tokens": upstream.tokens},
        upstream.kinds,
    )


def _wait_until_free(gateway: Gunicorn) -> dict[str, float]:
    """Return what is held when all clients are gone, after some seconds at most."""
    names = ("calls_in_flight{", "calls_queued{", "client_reserved_usd{", "client_calls_in_flight{")
    for _ in range(100):
        gevent.sleep(0.2)
        with requests.get(f"{gateway.url}/metrics", timeout=60) as found:
            held = {
                line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
                for line in found.text.splitlines()
                if any(line.startswith(f"openai_gateway_{name}") for name in names)
            }
        if not any(held.values()):
            break
    return held
