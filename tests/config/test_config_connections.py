"""What says how the upstream is connected to: proxies, certificates, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openai_gateway.config import ServerConfig
from tests.config.folder import Folder, to_server
from tests.support.certificates import make_certificates


def _write(folder: Folder, **settings: Any) -> None:
    folder.write(folder.default, {"policy_model": to_server(**settings)})


def _complain(folder: Folder, **settings: Any) -> str:
    _write(folder, **settings)
    return folder.complaint()


def _load(folder: Folder, **settings: Any) -> ServerConfig:
    _write(folder, **settings)
    return folder.server()


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        pytest.param("upstream_proxy", "https://user:secret@proxy:3128", "is wanted (value not shown)", id="https"),
        pytest.param("upstream_proxy", "proxy:3128", "is wanted (value not shown)", id="no scheme"),
        pytest.param("upstream_proxy", "http://proxy/path", "is wanted (value not shown)", id="a path"),
        pytest.param("upstream_proxy", "http://proxy:port", "is wanted (value not shown)", id="a port that is none"),
        pytest.param("upstream_proxy", 3128, "is wanted (value not shown)", id="a number"),
        pytest.param("ssl_key_file", "a.txt", "needs ssl_cert_file", id="a key without a certificate"),
        pytest.param("ssl_cert_file", "a.txt", "is no certificate", id="a certificate that is none"),
        pytest.param("ssl_cert_file", "away.pem", "can't be used", id="a file that is away"),
        pytest.param("connection_max_age_s", 0, "connection_max_age_s", id="no age at all"),
    ],
)
def test_unfit_value_is_complained_of(key: str, value: Any, complaint: str, folder: Folder) -> None:
    folder.write("a.txt", "text")
    problem = _complain(folder, **{key: value})
    assert complaint in problem
    assert "secret" not in problem


def test_certificate_and_key_go_together(folder: Folder, tmp_path: Path) -> None:
    found = make_certificates(tmp_path)
    server = _load(folder, ssl_cert_file=str(found.server), ssl_key_file=str(found.server_key))
    assert (server.ssl_cert_file, server.ssl_key_file) == (str(found.server), str(found.server_key))
    assert "no key without password" in _complain(folder, ssl_cert_file=str(found.server))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"https_proxy": "http://user:secret@proxy:3128"}, "http://user:secret@proxy:3128"),
        ({"https_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"all_proxy": "http://all:1"}, "http://all:1"),
        ({"http_proxy": "http://other:1"}, None),
        ({"https_proxy": "http://proxy:1", "no_proxy": "upstream.example"}, None),
    ],
    ids=["none", "a password", "no scheme", "all", "for http only", "bypassed"],
)
def test_proxy_of_the_environment_is_taken_only_if_told(
    environ: dict[str, str], expected: str | None, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert _load(folder).upstream_proxy is None
    found = _load(folder, upstream_proxy="environment").upstream_proxy
    assert (found.reveal() if found is not None else None) == expected
    assert "secret" not in repr(found)


def test_proxy_of_the_environment_that_is_none_is_complained_of(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:secret@proxy:1080")
    problem = _complain(folder, upstream_proxy="environment")
    assert "https_proxy" in problem
    assert "secret" not in problem
