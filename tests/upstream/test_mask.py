"""Keys are taken out of what an upstream echoes, and redirects lead nowhere else."""

from __future__ import annotations

import gzip
import json

import pytest

from openai_gateway.transport.answer import RawAnswer, to_mocked_answer
from openai_gateway.upstream.mask import KeyMask
from openai_gateway.wire.head import Head

KEY = "sk-a/b+c=d&e<f"
MASKED = "[key masked by openai_gateway]"


@pytest.fixture
def mask() -> KeyMask:
    mask = KeyMask(["short", "configured-secret"])
    mask.learn(KEY)
    return mask


def _answer(status: int, body: bytes = b"", *headers: tuple[str, str], reason: str = "R") -> RawAnswer:
    return to_mocked_answer(Head(status, reason, [("content-length", str(len(body))), *headers]), body)


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        json.dumps(KEY)[1:-1],
        KEY.replace("/", "\\/"),
        KEY.replace("=", "\\u003d").replace("+", "\\u002B").replace("&", "\\u0026").replace("<", "\\u003C"),
        "".join(f"\\u{ord(character):04x}" for character in KEY),
        "configured-secret",
    ],
    ids=["plain", "as json.dumps has it", "slashes", "as Go has it", "every character", "a configured header"],
)
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("status", [302, 401])
def test_key_in_an_error_is_masked_however_it_is_written(
    echo: str, is_packed: bool, status: int, mask: KeyMask
) -> None:
    body = f'{{"error": {{"message": "key {echo} is wrong, short"}}}}'.encode()
    headers = [("Content-Encoding", "gzip")] if is_packed else []
    raw = _answer(status, gzip.compress(body) if is_packed else body, *headers)
    mask.apply(raw)
    assert raw.body.decode() == f'{{"error": {{"message": "key {MASKED} is wrong, short"}}}}'
    assert "content-encoding" not in raw.head.known
    assert "content-length" not in raw.head.known


def test_what_holds_no_key_passes_as_it_came(mask: KeyMask) -> None:
    for raw in (_answer(200, KEY.encode()), _answer(400, b"\\u00"), _answer(500, b"x", ("content-encoding", "br"))):
        before = (raw.head.known, raw.body, list(raw.head.headers))
        mask.apply(raw)
        assert (raw.head.known, raw.body, list(raw.head.headers)) == before


def test_key_in_reason_and_headers_is_masked(mask: KeyMask) -> None:
    raw = _answer(200, b"{}", ("x-echo", f"a {KEY}"), reason=KEY)
    mask.apply(raw)
    assert (raw.head.reason, raw.head.headers[1], raw.body) == (MASKED, ("x-echo", f"a {MASKED}"), b"{}")
    assert raw.head.known["content-length"] == "2"


def test_key_before_the_last_is_masked_too(mask: KeyMask) -> None:
    mask.learn("sk-new-key")
    raw = _answer(401, f"{KEY} sk-new-key".encode())
    mask.apply(raw)
    assert raw.body.decode() == f"{MASKED} {MASKED}"


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
    raw = _answer(status, b"", ("Location", location), ("x", "y"))
    mask.apply(raw)
    assert [name for name, _ in raw.head.passing] == (["Location", "x"] if passes else ["x"])


def test_location_of_what_was_created_is_no_redirect(mask: KeyMask) -> None:
    raw = _answer(201, b"", ("location", "https://upstream.example/v1/items/1"))
    mask.apply(raw)
    assert raw.head.passing == [("location", "https://upstream.example/v1/items/1")]
