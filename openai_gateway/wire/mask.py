"""Takes the gateway's own keys out of what an upstream says, and hides where a redirect leads.

An answer is relayed as it came, with two exceptions. An upstream that echoes the key (in an error, mostly) must not
give it to a client: it is masked in reason and headers of any answer, and in the body of any but a success, as far as
that was read, be it compressed or escaped as JSON may be. And a redirect to another host would have clients send their
own key there: its `location` is left out.

See also: upstream.attempt (where it is applied), config.redact (what the gateway shows itself).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

from openai_gateway.wire.body import decode_content
from openai_gateway.wire.head import Head, Header

_MASK: Final = "[key masked by openai_gateway]"
_LEAST_LENGTH: Final = 8
# A call that was sent with the last key may be answered when the next one is in use.
_MOST_KEYS: Final = 2


class KeyMask:
    """Knows the secrets of one server: configured header values, and the keys in use."""

    def __init__(self, configured: Sequence[str]) -> None:
        self._configured = _list_secrets(value for value in configured if len(value) >= _LEAST_LENGTH)
        self._keys: tuple[str, ...] = ()
        self._secrets = self._configured

    def learn(self, key: str) -> None:
        """Mask this key from now on, too, and the one before it."""
        if key:
            self._keys = (key, *self._keys)[:_MOST_KEYS]
            self._secrets = (*_list_secrets(self._keys), *self._configured)

    def hide(self, text: str) -> str:
        """Return a text without the keys."""
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return text

    def apply(self, head: Head, body: bytes, *, is_whole: bool) -> tuple[Head, bytes] | None:
        """Return what goes to the client in the place of an answer's head and body; None: they may go as they are.

        `body` is all of it if `is_whole`, else what has been read.
        """
        if head.status < 300:
            for secret in self._secrets:
                if secret in head.text:
                    break
            else:
                return None
        headers = [(name, self.hide(value)) for name, value in head.headers]
        if 300 <= head.status < 400:
            headers = [header for header in headers if not _leads_away(header)]
        masked = self._mask_body(head, body, headers, is_whole=is_whole) if head.status >= 300 else None
        head = head.rewrite(headers, reason=self.hide(head.reason), has_length=masked is None)
        return head, body if masked is None else masked

    def _mask_body(self, head: Head, body: bytes, headers: list[Header], *, is_whole: bool) -> bytes | None:
        """Return the body masked, None if it needn't be; a compressed one goes on plain, and `headers` say so."""
        encoding = head.known.get("content-encoding", "identity").strip().lower()
        plain = body if encoding == "identity" or not is_whole else decode_content(body, encoding)
        if plain is None:
            return None
        masked = plain
        for secret in self._secrets:
            if b"\\" in masked:
                masked = _make_pattern(secret).sub(_MASK.encode(), masked)
            else:
                masked = masked.replace(secret.encode(), _MASK.encode())
        if masked == plain:
            return None
        if encoding != "identity":
            headers[:] = [header for header in headers if header[0].lower() != "content-encoding"]
        return masked


def _list_secrets(values: Iterable[str]) -> tuple[str, ...]:
    """Return values as they are and, where that differs, as a URL has them."""
    return tuple(dict.fromkeys(secret for value in values for secret in (value, quote(value, safe=""))))


def _make_pattern(secret: str) -> re.Pattern[bytes]:
    """Return what finds a secret in JSON, however its characters are escaped there (`\\/`, `\\u003d`)."""
    return re.compile(b"".join([rb"(?:\\?%b|\\u00(?i:%02x))" % (re.escape(c.encode()), ord(c)) for c in secret]))


def _leads_away(header: Header) -> bool:
    """Tell whether a header leads a client to another host than the gateway's."""
    name, value = header
    # A browser takes backslashes for slashes.
    path = value.strip().replace("\\", "/")
    return name.lower() == "location" and (path[:2] == "//" or path[:1] != "/")
