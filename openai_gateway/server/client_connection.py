"""One connection of a client: its requests are read, given to the app and answered, one after another.

States: idle (waiting for a request's first byte), reading a head, serving (the app reads the body and writes the
answer), draining (what nobody read of a body), closing (see lingering). All but serving are bounded in time here; that
is the app's, which watches client and clock itself. A stop ends idle connections; all others end with their answer.

Made after gunicorn's AsyncWorker.handle and handle_request: `tests/server/test_gunicorn_source.py` tells when those
change. See also: plain, request_heads (what a head says), bodies, writer.
"""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import ssl
from collections.abc import Mapping
from datetime import datetime
from time import monotonic
from typing import Any, Final, Protocol

import gevent
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.wsgi import create

from openai_gateway.server.bodies import LengthBody, Unreader
from openai_gateway.server.lingering import linger, silences
from openai_gateway.server.plain import PlainRequest, read_plain
from openai_gateway.server.refusals import describe_refusal, make_refusal
from openai_gateway.server.request_heads import CheckedRequest, gather_head, may_be_drained
from openai_gateway.server.waits import Wait, Waits
from openai_gateway.server.writer import RelayWriter, TlsWriter, send_in_time
from openai_gateway.transport.connection import wait_for
from openai_gateway.wire.headers import UNDERSCORED

HEAD_S: Final = 20.0
# A client that waits for no answer may have sent many requests at once: it has to wait after each answer of the
# gateway's own. Relayed answers wait for an upstream; and before anything is received others have their turn.
PIPELINED_S: Final = 0.1
# A head and most bodies in one read.
_READ_BYTES: Final = 16 * 1024
_LEFT: Final = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH}

idle = Waits(75.0)
heads = Waits(HEAD_S)


class Owner(Protocol):
    """What a connection needs of its worker; `nr` counts requests, as gunicorn has it."""

    cfg: Any
    log: Any
    wsgi: Any
    alive: bool
    nr: int
    max_requests: int
    reads_plain: bool
    keeps_alive: bool
    limit_request_line: int

    def retire(self) -> None:
        """Make room for a new worker."""


class ClientConnection:
    """A client's connection from its first request to its end."""

    __slots__ = (
        "_addr",
        "_cfg",
        "_client",
        "_count",
        "_environ",
        "_is_secure",
        "_pause_s",
        "_proxy",
        "_read_event",
        "_remote_addr",
        "_rest",
        "_unreader",
        "_wait",
        "_worker",
        "_writer",
    )

    def __init__(self, worker: Owner, client: Any, addr: Any, environ: Mapping[str, Any]) -> None:
        self._worker = worker
        self._cfg = worker.cfg
        self._client = client
        self._addr = addr
        self._remote_addr = addr[0] if isinstance(addr, tuple) else addr
        # What is common to the environs of a listener's plain requests.
        self._environ = environ
        # Made by the first request that isn't plain.
        self._unreader: Unreader | None = None
        self._count = 0
        self._wait = Wait()
        self._proxy: dict[str, Any] | None = None
        # Stays started from one request to the next; whoever else reads has to find it stopped.
        self._read_event = client._read_event
        # What came after the last request.
        self._rest = b""
        self._pause_s = 0.0
        self._is_secure = isinstance(client, ssl.SSLSocket)
        self._writer = TlsWriter if self._is_secure else RelayWriter

    def serve(self) -> None:
        """Serve until one side has had enough; the caller closes the socket."""
        request: Any = None
        try:
            try:
                while True:
                    request = None
                    request = self._read_request()
                    if request is None or not self._answer(request):
                        break
                    if not self._worker.alive:
                        break
                    if not (type(request) is PlainRequest and request.is_whole) and not self._drain(request):
                        break
                    if self._rest:
                        gevent.sleep(self._pause_s)
            finally:
                self._read_event.stop()
        except Wait:
            pass
        except NoMoreData:
            self._worker.log.debug("Ignored premature client disconnection.")
        except ParseException as error:
            status, code, message = describe_refusal(error)
            self._worker.log.warning("a request from %s was refused: %d %s", self._peer(), status, code)
            self._refuse(status, code, message)
        except ssl.SSLError as error:
            self._worker.log.debug("Error processing SSL request: %s", error.reason)
        except OSError as error:
            if error.errno not in _LEFT:
                self._worker.log.exception("Socket error processing request.")
        except Exception:
            self._worker.log.exception("Error handling request %s", "" if request is None else request.method)
            self._refuse(500, "internal_error", "The gateway met an unexpected error.")
        if request is not None:
            self._linger(request)

    def _read_request(self) -> PlainRequest | CheckedRequest | None:
        """Return the next request; None if the client wants no more. Raises Wait, OSError, ParseException."""
        received, self._rest = self._rest, b""
        if not received:
            idle.start(self._wait, monotonic() + idle.seconds)
            try:
                # Asked at once, it has nothing yet, which costs more than a whole wait.
                if self._is_secure:
                    if not self._client.pending():
                        gevent.get_hub().wait(self._read_event)
                    received = self._client.recv(_READ_BYTES)
                else:
                    wait_for(self._read_event)
                    try:
                        received = self._client._sock.recv(_READ_BYTES)
                    except BlockingIOError:
                        self._read_event.stop()
                        received = self._client.recv(_READ_BYTES)
            except Wait:
                received = self._receive_at_last()
            finally:
                idle.stop(self._wait, None)
        self._count += 1
        read = read_plain(received) if self._worker.reads_plain else None
        if read is not None:
            environ, length, start = read
            end = start + length
            if len(received) >= end:
                self._rest = received[end:]
                return PlainRequest(environ, io.BytesIO(received[start:end]), is_whole=True)
        self._read_event.stop()
        if read is not None:
            return PlainRequest(environ, LengthBody(self._client, received[start:], length), is_whole=False)
        return self._read_checked(received) if received else None

    def _receive_at_last(self) -> bytes:
        """Return what has come although nobody waits any more: a worker that was held up ends waits too early.

        Raises Wait if nothing has.
        """
        with contextlib.suppress(OSError):
            if not self._is_secure:
                return bytes(self._client._sock.recv(_READ_BYTES))
        raise self._wait from None

    def _read_checked(self, received: bytes) -> CheckedRequest:
        if self._unreader is None:
            self._unreader = Unreader(self._client)
        heads.start(self._wait, monotonic() + heads.seconds)
        try:
            if self._cfg.proxy_protocol == "off" or self._count > 1:
                gather_head(self._unreader, received, self._worker.limit_request_line)
            else:
                # What comes before the head is gunicorn's to read.
                self._unreader.unread(received)
            return CheckedRequest(self._cfg, self._unreader, self._addr, self._count)
        finally:
            heads.stop(self._wait, None)

    def _answer(self, request: Any) -> bool:
        """Serve one request; tell whether the connection may go on."""
        worker = self._worker
        worker.nr += 1
        if worker.nr >= worker.max_requests:
            worker.retire()
        if type(request) is PlainRequest:
            return self._run(
                request.take_environ(self._environ, self._client, self._remote_addr),
                self._writer(request, self._client, self._cfg),
            )
        return self._answer_checked(request)

    def _answer_checked(self, request: CheckedRequest) -> bool:
        """Serve a request with all that a setting of gunicorn's may ask for around it."""
        worker, started = self._worker, datetime.now()
        environ: dict[str, Any] = {}
        response: Any = None
        if request.proxy_protocol_info:
            self._proxy = request.proxy_protocol_info
        else:
            request.proxy_protocol_info = self._proxy or {}
        try:
            self._cfg.pre_request(worker, request)
            name = self._environ["openai_gateway.listener"]
            response, environ = create(request, self._client, self._addr, name, self._cfg, response_class=self._writer)
            environ["wsgi.multithread"] = True
            if request.underscored:
                environ[UNDERSCORED] = request.underscored
            return self._run(environ, response)
        finally:
            if response is not None and response.status is not None:
                worker.log.access(response, request, environ, datetime.now() - started)
            try:
                self._cfg.post_request(worker, request, environ, response)
            except Exception:
                worker.log.exception("Exception in post_request hook")

    def _run(self, environ: dict[str, Any], response: RelayWriter) -> bool:
        if not self._worker.keeps_alive:
            response.force_close()
        try:
            body = self._worker.wsgi(environ, response.start_response)
            # A stream lasts, and needs nothing of its request.
            del environ
            try:
                for piece in body:
                    response.write(piece)
                if not response.is_ended:
                    response.close()
            finally:
                if hasattr(body, "close"):
                    body.close()
        except OSError:
            raise
        except Exception:
            if not response.headers_sent:
                raise
            # A second answer within the first would corrupt both.
            self._worker.log.exception("Error handling request")
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
            return False
        except (gevent.GreenletExit, SystemExit):
            return False
        self._pause_s = PIPELINED_S if response.is_own else 0.0
        return not response.must_close

    def _drain(self, request: Any) -> bool:
        """Read what is left of a request's body; tell whether the next request starts after it."""
        left = request.body.count_left()
        if not may_be_drained(left):
            return False
        if left:
            silences.start(self._wait, monotonic() + silences.seconds)
            try:
                request.body.read(left)
            finally:
                silences.stop(self._wait, None)
        if self._unreader is not None:
            self._rest = self._unreader.take_buffered()
        return True

    def _refuse(self, status: int, code: str, message: str) -> None:
        with contextlib.suppress(OSError, Wait):
            send_in_time(self._client, make_refusal(status, code, message))
            linger(self._client, self._wait, None)

    def _linger(self, request: Any) -> None:
        if type(request) is PlainRequest and request.is_whole:
            return
        left = request.body.count_left()
        if left != 0:
            linger(self._client, self._wait, left)

    def _peer(self) -> str:
        return str(self._addr[0]) if isinstance(self._addr, tuple) else "a local socket"
