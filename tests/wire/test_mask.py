"""Keys are taken out of what an upstream echoes, and redirects lead nowhere else."""

from __future__ import annotations

import gzip
import json
from urllib.parse import quote

import pytest

from openai_gateway.wire.head import Head, Header
from openai_gateway.wire.mask import KeyMask

KEY = "sk-a/b+c=d&e<f"
MASKED = "[key masked by openai_gateway]"


@pytest.fixture
def mask() -> KeyMask:
    mask = KeyMask(["short", "configured-secret"])
    mask.learn(KEY)
    return mask


def _answer(status: int, body: bytes = b"", *headers: Header, reason: str = "R") -> tuple[Head, bytes]:
    return Head(status, reason, [("content-length", str(len(body))), *headers]), body


def _apply(mask: KeyMask, head: Head, body: bytes) -> tuple[Head, bytes]:
    return mask.apply(head, body, is_whole=True) or (head, body)


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        json.dumps(KEY)[1:-1],
        KEY.replace("/", "\\/"),
        KEY.replace("=", "\\u003d").replace("+", "\\u002B").replace("&", "\\u0026").replace("<", "\\u003C"),
        "".join(f"\\u{ord(character):04x}" for character in KEY),
        quote(KEY, safe=""),
        "configured-secret",
    ],
    ids=[
        "plain",
        "as json.dumps has it",
        "slashes",
        "as Go has it",
        "every character",
        "in a URL",
        "a configured header",
    ],
)
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("status", [302, 401])
def test_key_in_an_error_is_masked_however_it_is_written(
    echo: str, is_packed: bool, status: int, mask: KeyMask
) -> None:
    body = f'{{"error": {{"message": "key {echo} is wrong, short"}}}}'.encode()
    headers = [("Content-Encoding", "gzip")] if is_packed else []
    head, masked = _apply(mask, *_answer(status, gzip.compress(body) if is_packed else body, *headers))
    assert masked.decode() == f'{{"error": {{"message": "key {MASKED} is wrong, short"}}}}'
    assert "content-encoding" not in head.known
    assert "content-length" not in head.known


def test_what_holds_no_key_passes_as_it_came(mask: KeyMask) -> None:
    for came in (_answer(200, KEY.encode()), _answer(400, b"\\u00"), _answer(500, b"x", ("content-encoding", "br"))):
        head, body = _apply(mask, *came)
        assert (head.known, body, list(head.headers)) == (came[0].known, came[1], list(came[0].headers))


def test_key_in_reason_and_headers_is_masked(mask: KeyMask) -> None:
    head, body = _apply(mask, *_answer(200, b"{}", ("x-echo", f"a {KEY}"), reason=KEY))
    assert (head.reason, head.headers[1], body) == (MASKED, ("x-echo", f"a {MASKED}"), b"{}")
    assert head.known["content-length"] == "2"


def test_key_before_the_last_is_masked_too(mask: KeyMask) -> None:
    mask.learn("sk-new-key")
    _, body = _apply(mask, *_answer(401, f"{KEY} sk-new-key".encode()))
    assert body.decode() == f"{MASKED} {MASKED}"


@pytest.mark.parametrize(
    ("location", "passes"),
    [
        ("/v1/elsewhere?x=1", True),
        ("https://evil.example/v1", False),
        ("//evil.example/v1", False),
        (" /\\evil.example", False),
        ("\\\\evil.example", False),
        ("evil:80", False),
    ],
)
@pytest.mark.parametrize("status", [301, 307, 308])
def test_location_of_another_host_is_left_out(status: int, location: str, passes: bool, mask: KeyMask) -> None:
    head, _ = _apply(mask, *_answer(status, b"", ("Location", location), ("x", "y")))
    assert [name for name, _ in head.passing] == (["Location", "x"] if passes else ["x"])


def test_location_of_what_was_created_is_no_redirect(mask: KeyMask) -> None:
    head, _ = _apply(mask, *_answer(201, b"", ("location", "https://upstream.example/v1/items/1")))
    assert head.passing == [("location", "https://upstream.example/v1/items/1")]
