"""What an endpoint's failures mean, and what to do about each.

Texts name the config's keys; where a key's value came from is handed in.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

from openai_gateway.config.redact import mask_url
from openai_gateway.probe.calling import Answer, BrokenAnswer
from openai_gateway.probe.reading import to_line
from openai_gateway.wire.retries import FINAL_QUOTA_CODES, to_retry_after_s

_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_OTHER_NAME: Final = "openai_base_url must have the name that the certificate is for"
# By OpenSSL's X509_V_ERR codes.
_CERTIFICATE_CURES: Final = {
    10: "the certificate has expired: renew it on the upstream, or check this machine's clock",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
_NO_MODEL_CODES: Final = ("model_not_found", "DeploymentNotFound")
_NO_MODEL = re.compile(r"\bmodel\b.*(not exist|not found)", re.IGNORECASE)
_TO_CURES: Final[Mapping[str, str]] = {
    "key": "the key is wrong, revoked, or of another provider: set {key}",
    "forbidden": "the key may not do this: look at its permissions and project, and the provider's rules for regions",
    "quota": "the quota is used up: add credit or raise the limit at the provider; waiting and retrying don't help",
    "rate": "the rate limit is reached: check again {later}; for long runs set max_concurrent_requests, and "
    "max_retries: 100 with retry_budget_s: 3600",
    "model": "there is no such model for this key: set {model}",
    "url": "this path is not served: check the path of {url}",
    "redirect": "redirects are never followed, as the key would leak: set {url} to where it leads",
    "request": "a parameter is refused; those that the config adds are in extra_body, extra_body_responses and "
    "extra_body_chat",
    "trouble": "the upstream has trouble of its own: try again, and look at its status page or log",
}


class Meaning:
    """What an error answer is about: `kind`, and the code and message it carries."""

    def __init__(self, answer: Answer) -> None:
        body = answer.to_json()
        error = body.get("error", body)
        form: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
        self.status = answer.status
        self.param = to_line(form.get("param") or "")
        self.code = to_line(form.get("code") or form.get("type") or "")
        message = form.get("message") or form.get("detail") or http.client.responses.get(answer.status, "")
        self.message = to_line(message)
        self.location = to_line(mask_url(answer.headers.get("location", "")))
        self.kind = self._to_kind()
        wait_s = to_retry_after_s({**answer.headers}, 0) if answer.headers.get("retry-after", "0").isdigit() else None
        self.later = f"in {wait_s:g} s" if wait_s else "later"

    def __str__(self) -> str:
        """Return what came, on one line."""
        said = f"{self.message}, {self.location}" if self.location else self.message
        # Some backends repeat the status as the code.
        code = "" if self.code == str(self.status) else f" {self.code}"
        return f"{self.status}{code.rstrip()}: {said}"

    def _to_kind(self) -> str:
        if self.code in _NO_MODEL_CODES or (self.status == 404 and _NO_MODEL.search(self.message)):
            return "model"
        if self.status == 429:
            return "quota" if self.code in FINAL_QUOTA_CODES else "rate"
        by_status = {401: "key", 403: "forbidden", 404: "url", 405: "url", 501: "url"}
        if self.status in by_status:
            return by_status[self.status]
        return "redirect" if self.status < 400 else "request" if self.status < 500 else "trouble"

    def to_cure(self, origin_of: Callable[[str], str]) -> str:
        """Return what to do; `origin_of` tells where a key of the config has its value from."""
        names = {"key": "openai_api_key", "model": "openai_model", "url": "openai_base_url"}
        shown = {short: f"{name} (now from {origin_of(name)})" for short, name in names.items()}
        cure = _TO_CURES[self.kind].format(later=self.later, **shown)
        return f"{cure} ({self.param} is the one named)" if self.kind == "request" and self.param else cure


def to_failure(
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
