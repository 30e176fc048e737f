"""A test CA and a certificate for localhost, made for the length of a test run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files."""

    ca: Path
    server: Path
    server_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make a CA and a certificate that it signed for `localhost` and 127.0.0.1."""
    found = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(str(found.ca))
    found.server.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(found.server_key))
    return found
