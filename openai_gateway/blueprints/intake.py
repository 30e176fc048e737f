"""Takes a client's request in: who it is from, and its body, within bounds and JSON by its content type.

See also: wire.envelope (what the body says).
"""

from __future__ import annotations

import contextlib
import hmac
import io
import itertools
import secrets
from collections.abc import Sequence
from time import time
from typing import Any

import gevent

from openai_gateway.config import Secret
from openai_gateway.config.clients import Client, ClientsFile
from openai_gateway.config.key_file import KeyFile, open_client_keys
from openai_gateway.errors import (
    Cancelled,
    ClientGone,
    Forbidden,
    InvalidRequest,
    MalformedBody,
    RequestTooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from openai_gateway.transport.watch import REQUEST_BODY, CallWatch
from openai_gateway.wire.encodings import BadEncoding, decode, split_encodings

_process = ""
_numbers = itertools.count(1)


def make_request_id() -> str:
    """Return a new id for a request; no other process, and none before or after this one, gives the same."""
    global _process
    number = next(_numbers)
    if number == 1:
        # Not at import: a process forked later would share it.
        _process = secrets.token_hex(8)
    return f"gwreq_{_process}{number:08x}"


class GatewayKeys:
    """The keys that let a client in, as `Authorization: Bearer` or `api-key`; none configured lets everybody in."""

    def __init__(
        self, keys: Sequence[Secret], path: str | None, clients: ClientsFile | None = None, server: str = ""
    ) -> None:
        self._keys = tuple(key.reveal().encode() for key in keys)
        self._file = open_client_keys(path) if path is not None else None
        self._clients = clients
        self._server = server
        # Whether there are keys without a name, which open the status page, too; and whether a client needs one at all.
        self.are_for_operators = bool(self._keys) or self._file is not None
        self.are_required = self.are_for_operators or clients is not None

    def authenticate(self, environ: dict[str, Any]) -> Client | None:
        """Let the request in and return whom it is from, if its key has a name. Raises Unauthorized, Forbidden.

        Takes as long for a wrong key as for a right one.
        """
        if not self.are_required:
            return None
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        # Azure's clients have a header of their own.
        key = token.strip() if scheme.lower() == "bearer" else environ.get("HTTP_API_KEY", "")
        given = key.encode("latin-1", "replace")
        client = self._clients.read().find(given) if self._clients is not None and given else None
        if client is not None:
            self._check_client(client)
        elif self.count_matches(given) == 0:
            what = "Incorrect API key provided for this gateway" if given else "This gateway needs an API key"
            raise Unauthorized(f"{what}; send one as 'Authorization: Bearer KEY'.")
        return client

    @property
    def files(self) -> list[KeyFile]:
        """The files of keys without names."""
        return [self._file] if self._file is not None else []

    def find_client(self, name: str | None) -> Client | None:
        """Return the client of a name as the file has it now; None if it isn't there, or is no name."""
        return None if self._clients is None or name is None else self._clients.read().by_name.get(name)

    def _check_client(self, client: Client) -> None:
        if client.expires is not None and time() >= client.expires:
            raise Unauthorized(
                f"The API key of {client.name} has expired; ask whoever runs this gateway for a new one."
            )
        if not client.may_use(self._server):
            raise Forbidden(
                f"The client {client.name} may not use the server {self._server}.", code="server_not_allowed"
            )

    def count_matches(self, given: bytes) -> int:
        """Return how many of the keys are `given`; takes as long for a wrong one as for a right one."""
        keys = self._keys if self._file is None else (*self._keys, *(key.encode() for key in self._file.read()))
        return sum([hmac.compare_digest(given, key) for key in keys])


def read_body(environ: dict[str, Any], max_body_bytes: int, watch: CallWatch) -> bytes:
    """Return the request's whole body, decoded; `b""` if it has none; `watch` bounds each wait for the client.

    Raises RequestTooLarge before more than `max_body_bytes` are read or made, ClientGone if it ends too early.
    """
    if "HTTP_CONTENT_ENCODING" in environ:
        return _read_encoded(environ, max_body_bytes, watch)
    content_type = environ.get("CONTENT_TYPE", "")
    if content_type not in ("", "application/json"):
        _check_media_type(content_type)
    declared = environ.get("CONTENT_LENGTH")
    if not declared:
        return _read_undeclared(environ, max_body_bytes, watch)
    if not (declared.isascii() and declared.isdigit()):
        raise InvalidRequest("Content-Length is not a number.")
    length = int(declared)
    if length > max_body_bytes:
        raise _too_large(max_body_bytes)
    body = _read(environ["wsgi.input"], length, watch)
    if len(body) < length:
        raise ClientGone("the client left while it sent its body")
    return body


def _read_encoded(environ: dict[str, Any], max_body_bytes: int, watch: CallWatch) -> bytes:
    header = environ["HTTP_CONTENT_ENCODING"]
    names = split_encodings(header)
    if names is None:
        raise UnsupportedMediaType(
            f"A body with content encoding '{header[:40]}' is not taken; send it plain, or as gzip, deflate or zstd."
        )
    body = read_body({key: environ[key] for key in environ if key != "HTTP_CONTENT_ENCODING"}, max_body_bytes, watch)
    for name in reversed(names):
        body = _decode(body, name, max_body_bytes)
    return body


def _decode(body: bytes, encoding: str, max_body_bytes: int) -> bytes:
    pieces, length = [], 0
    try:
        for piece in decode(body, encoding):
            length += len(piece)
            if length > max_body_bytes:
                raise _too_large(max_body_bytes)
            pieces.append(piece)
            # A small compressed body may decode to a large one, so others get their turn after each piece.
            gevent.sleep(0)
    except BadEncoding:
        raise InvalidRequest(f"The request body is not in the {encoding} encoding that its header names.") from None
    return b"".join(pieces)


def _read_undeclared(environ: dict[str, Any], max_body_bytes: int, watch: CallWatch) -> bytes:
    # Without this promise of the server, a body of no declared length can't be told from a connection kept open.
    if not environ.get("wsgi.input_terminated"):
        return b""
    body = _read(environ["wsgi.input"], max_body_bytes + 1, watch)
    if len(body) > max_body_bytes:
        raise _too_large(max_body_bytes)
    return body


def _read(source: Any, length: int, watch: CallWatch) -> bytes:
    if type(source) is io.BytesIO:
        # It came with the head: there is nothing to wait for.
        return source.read(length)
    watch.arm(REQUEST_BODY)
    try:
        body: bytes = source.read(length)
    except OSError:
        raise ClientGone("the client left while it sent its body") from None
    except MalformedBody:
        raise InvalidRequest("The request body's chunks are malformed.") from None
    except Cancelled as cancelled:
        # Have gunicorn close the connection, for where the next request would start is unknown. What interrupts a read
        # is no Exception, so that gunicorn's Body doesn't note it itself.
        with contextlib.suppress(AttributeError):
            source.failed = True
        raise cancelled.reason from None
    finally:
        watch.disarm()
    return body


def _check_media_type(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"The content type is '{media_type[:80]}'; send the body as 'application/json'.")


def _too_large(max_body_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {max_body_bytes} bytes.")
