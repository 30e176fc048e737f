"""What a base URL is: `http` or `https`, a host, perhaps a port, a path and a query, and nothing that leads astray.

The config's `openai_base_url` and the URLs given to `bench` and `collect` are all checked here.
See also: checks (the config's complaint), redact (how much of one may be shown).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, urlsplit

_EXAMPLE: Final = "a URL such as https://api.openai.com/v1 is wanted"


class BadBaseUrl(ValueError):
    """A text is no base URL; the message says what is wanted and never repeats the text.

    `may_be_shown` is False where the text may hold a key: with a user, a password or a query.
    """

    def __init__(self, message: str, *, may_be_shown: bool) -> None:
        super().__init__(message)
        self.may_be_shown = may_be_shown


def parse_base_url(text: object) -> SplitResult:
    """Return the parts of a base URL, its path without a slash at the end. Raises BadBaseUrl."""
    if not isinstance(text, str):
        raise BadBaseUrl(_EXAMPLE, may_be_shown=True)
    may_be_shown = "@" not in text and "?" not in text
    if not text.isascii() or not text.isprintable() or " " in text:
        raise BadBaseUrl(_EXAMPLE, may_be_shown=may_be_shown)
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise BadBaseUrl(f"{_EXAMPLE}; this one can't be parsed", may_be_shown=False) from None
    if url.username is not None or url.password is not None:
        raise BadBaseUrl(f"{_EXAMPLE}, without user or password (value not shown)", may_be_shown=False)
    if url.scheme not in ("http", "https") or not host or port == 0:
        raise BadBaseUrl(_EXAMPLE, may_be_shown=may_be_shown)
    if url.fragment:
        raise BadBaseUrl(f"{_EXAMPLE}, without '#'", may_be_shown=False)
    return url._replace(path=url.path.rstrip("/"))
