"""One HTTP call to an endpoint over http.client, timed, a stream event by event; and what a failed call means.

No proxy, netrc or redirect comes in between, as in the gateway itself.

See also: remedies (what to do about an error answer), probes and bench_load (which calls are made).
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from certifi import where as default_ca_file

from openai_gateway.config.redact import mask_url
from openai_gateway.remedies import Remedy, find_remedy
from openai_gateway.wire.api import Api
from openai_gateway.wire.retries import read_retry_after_s
from openai_gateway.wire.sse import is_event_stream
from openai_gateway.wire.usage import read_stream

# A chunk with the reason, one with the usage.
_LAST_EVENTS: Final = 2
_MOST_BYTES: Final = 4 * 1024 * 1024
_DELTAS: Final = (b'"content":', b'"reasoning_content":', b'"reasoning":', b'"tool_calls":')
_SHOWN_CHARS: Final = 200
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_OTHER_NAME: Final = "openai_base_url must have the name that the certificate is for"
# By OpenSSL's X509_V_ERR codes.
_CERTIFICATE_CURES: Final = {
    10: "the certificate has expired: renew it on the upstream, or check this machine's clock",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}


class BrokenAnswer(Exception):
    """An answer that is too long, or not over in time."""


# What a call may raise.
CALL_ERRORS: Final = (OSError, http.client.HTTPException, BrokenAnswer)


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered, read to its end; times are seconds since the request was begun.

    `token_s` is when the first event with a delta was in, None if there was none; `events` are a stream's data.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float
    token_s: float | None = None
    events: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def is_stream(self) -> bool:
        """Tell whether it is a stream of events."""
        return is_event_stream(self.headers.get("content-type", ""))

    def is_complete(self, api: Api) -> bool:
        """Tell whether a stream came to an end: with the API's last event, or at least with a reason to finish."""
        return self._has_last_event(api) or (api is Api.CHAT and self._has_finish_reason())

    def lacks_done(self, api: Api) -> bool:
        """Tell whether a chat stream came to an end without the `[DONE]` that OpenAI sends."""
        return api is Api.CHAT and not self._has_last_event(api)

    def _has_last_event(self, api: Api) -> bool:
        return any(end in event for event in self.events[-2:] for end in api.ends)

    def _has_finish_reason(self) -> bool:
        tail = b"".join(b"data:" + event + b"\n" for event in self.events[-_LAST_EVENTS:])
        return read_stream(tail).finish_reason is not None

    @property
    def value(self) -> Any:
        """What the body's JSON says, None if it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def fields(self) -> dict[str, Any]:
        """The body's JSON object, an empty one for anything else."""
        value = self.value
        return value if isinstance(value, dict) else {}


class ProbeClient:
    """What serves an API below a base URL, which may have a query of its own."""

    def __init__(self, base_url: str, headers: Mapping[str, str], *, timeout_s: float, ca_file: str | None) -> None:
        url = urlsplit(base_url)
        self.is_tls = url.scheme == "https"
        self.host = url.hostname or ""
        self.port = url.port or (443 if self.is_tls else 80)
        self.timeout_s = timeout_s
        self.tls = ssl.create_default_context(cafile=ca_file or default_ca_file()) if self.is_tls else None
        self._path, self._query = url.path.rstrip("/"), url.query
        self._headers = {"accept-encoding": "identity", "content-type": "application/json", **headers}

    def make_connection(self) -> http.client.HTTPConnection:
        """Return a connection, not yet opened."""
        if self.tls is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self.tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)

    def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        over: http.client.HTTPConnection | None = None,
        added_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Reply:
        """Return the answer to a POST of `body`, to a GET without one; over a new connection unless one is given.

        Raises OSError, http.client.HTTPException, BrokenAnswer.
        """
        connection = over or self.make_connection()
        target = self._path + path + (f"?{self._query}" if self._query else "")
        data = None if body is None else json.dumps(body).encode()
        started = perf_counter()
        try:
            connection.request("GET" if data is None else "POST", target, data, {**self._headers, **added_headers})
            return self._read(connection.getresponse(), started)
        except BaseException:
            connection.close()
            raise
        finally:
            if over is None:
                connection.close()

    def _read(self, response: http.client.HTTPResponse, started: float) -> Reply:
        headers = {name.lower(): value for name, value in response.getheaders()}
        if not is_event_stream(headers.get("content-type", "")):
            body = response.read(_MOST_BYTES)
            if response.length or len(body) == _MOST_BYTES:
                raise BrokenAnswer("the answer is too long, or broke off")
            return Reply(response.status, headers, body, perf_counter() - started)
        events, length, token_s = [], 0, None
        while line := response.readline():
            length += len(line)
            if line.startswith(b"data:"):
                events.append(line[5:].strip())
                if token_s is None and _has_delta(line):
                    token_s = perf_counter() - started
            if length > _MOST_BYTES or perf_counter() - started > self.timeout_s:
                raise BrokenAnswer("the stream does not end")
        return Reply(response.status, headers, b"", perf_counter() - started, token_s, tuple(events))


def _has_delta(line: bytes) -> bool:
    """Tell whether an event brings some of the answer: Responses name it so, chat's first chunk has an empty one."""
    if b'.delta"' in line:
        return True
    for start in _DELTAS:
        at = line.find(start)
        if at >= 0 and line[at + len(start) :].lstrip()[:2] not in (b'""', b"nu", b"[]"):
            return True
    return False


class ErrorReply:
    """What an error answer says, and its remedy; as a string it is one line."""

    def __init__(self, reply: Reply) -> None:
        body = reply.fields
        error = body.get("error", body)
        form: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
        code = form.get("code")
        self.status = reply.status
        self.param = to_line(form.get("param") or "")
        self.code = to_line(code or form.get("type") or "")
        message = form.get("message") or form.get("detail") or http.client.responses.get(reply.status, "")
        self.message = to_line(message)
        self.location = to_line(mask_url(reply.headers.get("location", "")))
        self.remedy: Remedy = find_remedy(reply.status, to_line(code) if code else None, self.message)
        wait_s = read_retry_after_s(reply.headers, 0) if reply.headers.get("retry-after", "0").isdigit() else None
        self.wait = f" {wait_s:g} s" if wait_s else ""

    @property
    def is_redirect(self) -> bool:
        """Tell whether it leads elsewhere."""
        return self.status < 400

    def __str__(self) -> str:
        said = f"{self.message}, {self.location}" if self.location else self.message
        # Some backends repeat the status as the code.
        code = "" if self.code == str(self.status) else f" {self.code}"
        return f"{self.status}{code.rstrip()}: {said}"


def to_line(text: Any) -> str:
    """Return what an endpoint said as one short line, without characters that would steer a terminal."""
    line = "".join(character for character in " ".join(str(text).split()) if character.isprintable())
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."


def explain_error(
    error: Exception, host: str, port: int, *, is_connected: bool = False, url_name: str = "openai_base_url"
) -> tuple[str, str]:
    """Return what an exception says, and what to do about it; `url_name` is how the person gave the URL."""
    if isinstance(error, socket.gaierror):
        return f"{host} has no address ({error.strerror})", _with_proxy(
            f"check the host's name in {url_name}, this machine's DNS, and the VPN if it needs one"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        usual = "if the upstream's CA is your own, name its file in ssl_ca_file; verification is never turned off"
        return f"certificate refused: {error.verify_message}", _CERTIFICATE_CURES.get(error.verify_code, usual)
    if isinstance(error, ssl.SSLError):
        why = (error.reason or "handshake failed").lower().replace("_", " ")
        return f"no TLS: {why}", "the port may speak plain HTTP: check http:// or https:// and the port of the URL"
    if isinstance(error, TimeoutError) and is_connected:
        return "connected, but no answer in time", "look at the upstream's load and log, or give it longer"
    if isinstance(error, TimeoutError):
        return "no connection in time", _with_proxy(f"check the host, and that firewalls let {host}:{port} through")
    if isinstance(error, ConnectionRefusedError):
        return "connection refused", f"nothing listens at {host}:{port}: start it, or mend {url_name}"
    if isinstance(error, http.client.HTTPException | BrokenAnswer | ConnectionError):
        what = str(error) if isinstance(error, BrokenAnswer) else "no complete HTTP answer"
        return f"{what} ({type(error).__name__})", "check http:// or https:// and the port; else look at its log"
    number = getattr(error, "errno", None) or 0
    said = os.strerror(number) if number in errno.errorcode else str(error)
    return said, _with_proxy(f"check that {host}:{port} can be reached from this machine")


def _with_proxy(cure: str) -> str:
    named = next((name for name in _PROXIES if os.environ.get(name)), None)
    return f"{cure}; ${named} is set, but proxies are not used" if named else cure


def find_endpoint_path(base_url: str) -> str:
    """Return the API's path that a base URL wrongly ends in, `""` if none."""
    paths = ("/chat/completions", "/responses", "/completions", "/models")
    return next((path for path in paths if base_url.partition("?")[0].endswith(path)), "")
