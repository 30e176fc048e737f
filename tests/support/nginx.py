"""nginx with the site that is shipped, in front of a gateway; only ports and paths are others.

The listening socket is made here and inherited, so that tests don't race for a port.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.certificates import Certificates, make_certificates
from tests.support.processes import READY_S, ROOT

SITE = ROOT / "conf" / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian's package nginx)")

_MAIN = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx; `ca` is the certificate to trust."""

    url: str
    ca: str
    log_path: Path

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


@contextlib.contextmanager
def run_nginx(folder: Path, gateway_url: str) -> Iterator[Nginx]:
    """Run nginx in front of `gateway_url` for the length of a `with` block."""
    assert NGINX is not None
    certificates = make_certificates(folder)
    with socket.create_server(("127.0.0.1", 0), backlog=511) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        (folder / "site.conf").write_text(_to_site(address, urlsplit(gateway_url).netloc, certificates))
        # Only root's workers would be another user's, who may not look into the folder.
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, user=user))
        log_path = folder / "nginx.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [NGINX, "-p", str(folder), "-e", str(log_path), "-c", str(folder / "nginx.conf")],
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
            )
    try:
        running = Nginx(f"https://{address}", str(certificates.ca), log_path)
        _wait_until_ready(running, process)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)


def _to_site(address: str, gateway: str, certificates: Certificates) -> str:
    text = SITE.read_text()
    for shipped, here in (
        ("listen 443 ssl;", f"listen {address} ssl;"),
        ("server 127.0.0.1:8000;", f"server {gateway};"),
        ("/etc/nginx/ssl/gateway.pem", str(certificates.server)),
        ("/etc/nginx/ssl/gateway.key", str(certificates.server_key)),
    ):
        assert text.count(shipped) == 1, f"{shipped} is not in {SITE} once"
        text = text.replace(shipped, here)
    return text


def _wait_until_ready(nginx: Nginx, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{nginx.url}/healthz", verify=nginx.ca, timeout=2)
            return
        time.sleep(0.02)
    raise AssertionError(f"nginx did not get ready:\n{nginx.log_path.read_text()}")
