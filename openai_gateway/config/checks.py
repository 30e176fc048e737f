"""What a key's value may be: marshmallow fields that turn it into ours, or say what is wanted instead.

A complaint that ends in INPUT may show what was given, which `build` puts in, masked; without it nothing is shown.
See also: build (which puts in what was given, masked), path_checks (what names a file).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Final

from marshmallow import ValidationError, fields, missing

from openai_gateway.config.base_url import BadBaseUrl, parse_base_url
from openai_gateway.config.secret import Secret

INPUT: Final = "{input}"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"\$\{?[A-Za-z_][A-Za-z0-9_]*\}?|%[A-Za-z_]\w*%")
_MOST_SECONDS: Final = 1e9  # what a socket's timeout can hold


_ORIGIN: Final = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#,]+")


class Check(fields.Field, ABC):  # type: ignore[type-arg]
    """A value of one kind; `kind` is what documentation calls it. A key that isn't given is left out."""

    kind: ClassVar[str]

    def __init__(self, *, may_be_null: bool = False) -> None:
        super().__init__(allow_none=may_be_null)

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the value converted. Raises ValidationError; overridden for null, which the environment spells."""
        if value is missing or (self.allow_none and (value is None or value in ("null", "None"))):
            return value if value is missing else None
        return self.convert(value)

    @abstractmethod
    def convert(self, value: Any) -> Any:
        """Return a value that isn't null, converted. Raises ValidationError."""

    def locate(self, value: Any, cwd: Path) -> Any:
        """Return the value as it holds in the working folder. Raises ValidationError."""
        return value


def _to_number(value: Any) -> Any:
    """Return a number given as a string, as environment variables give it, as a number."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _kind(value: Any) -> str:
    names = {str: "such a string", dict: "a mapping", list: "a list", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def find_doubt(key: str) -> str | None:
    """Return why a string can't be a key although it could be sent as one; None if it can."""
    if key[0] in "'\"" or key[-1] in "'\"":
        return "begins or ends with a quote, which belongs to a shell or another file; write it without"
    if _VARIABLE.fullmatch(key):
        return "is the name of an environment variable, which nothing puts in here; write ${oc.env:NAME}"
    if key.endswith("...") or (key.startswith("<") and key.endswith(">")):
        return "stands for one in an example; put your own in"
    return None


class Integer(Check):
    """A whole number from `least` on."""

    kind = "integer"

    def __init__(self, least: int) -> None:
        super().__init__()
        self._least = least

    def convert(self, value: Any) -> int:
        """Return it; a string of digits is one, too."""
        number = _to_number(value)
        if isinstance(number, bool) or not isinstance(number, int) or number < self._least:
            raise ValidationError(f"a whole number of at least {self._least} is wanted, not {INPUT}")
        return number


class Number(Check):
    """A number from `least` to `most`."""

    kind = "number"

    def __init__(self, least: float, most: float, *, may_be_null: bool = False) -> None:
        super().__init__(may_be_null=may_be_null)
        self._least, self._most = least, most
        self._wanted = f"a number from {least:g} to {most:g}"

    def convert(self, value: Any) -> float:
        """Return it; a string that is one is one, too."""
        number = _to_number(value)
        if isinstance(number, bool) or not isinstance(number, int | float) or not self._is_fit(number):
            null = ", or null for no bound," if self.allow_none else ""
            raise ValidationError(f"{self._wanted}{null} is wanted, not {INPUT}")
        return float(number)

    def _is_fit(self, number: float) -> bool:
        return self._least <= number <= self._most


class Seconds(Number):
    """A time; null is no bound."""

    def __init__(self) -> None:
        super().__init__(0, _MOST_SECONDS, may_be_null=True)
        self._wanted = "a number of seconds above 0 and up to 1e9"

    def _is_fit(self, number: float) -> bool:
        return 0 < number <= self._most


class Boolean(Check):
    """True or false."""

    kind = "boolean"

    def convert(self, value: Any) -> bool:
        """Return it; the words are it, too, as environment variables give them."""
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise ValidationError(f"true or false is wanted, not {INPUT}")
        return value


class Text(Check):
    """A string that says something, in one line."""

    kind = "string"

    def convert(self, value: Any) -> str:
        """Return it."""
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValidationError(f"a non-empty string is wanted, not {INPUT}")
        return value


class OneOf(Check):
    """One of a few words."""

    kind = "string"

    def __init__(self, *choices: str) -> None:
        super().__init__()
        self._choices = choices

    def convert(self, value: Any) -> str:
        """Return it in small letters."""
        if not isinstance(value, str) or value.lower() not in self._choices:
            raise ValidationError(f"one of {', '.join(self._choices)} is wanted, not {INPUT}")
        return value.lower()


class SecretText(Check):
    """A key, fit to be sent in a header."""

    kind = "string"

    def convert(self, value: Any) -> Secret:
        """Return it, hidden."""
        if not isinstance(value, str):
            raise ValidationError(f"a key is wanted, a string, not {_kind(value)} (value not shown)")
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ValidationError(
                "a key is wanted: visible ASCII characters without blanks, nor 'Bearer' before them (value not shown)"
            )
        if (doubt := find_doubt(value)) is not None:
            raise ValidationError(f"the key {doubt} (value not shown)")
        return Secret(value)


class Keys(Check):
    """A list of keys; one alone may stand for a list."""

    kind = "list"
    _key: ClassVar = SecretText()

    def convert(self, value: Any) -> tuple[Secret, ...]:
        """Return them, hidden."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise ValidationError(f"a list of keys is wanted, not {_kind(value)} (value not shown)")
        return tuple(self._key.convert(item) for item in value)


class CorsOrigins(Check):
    """A list of web origins, or `*` for all; one alone may stand for a list."""

    kind = "list"

    def convert(self, value: Any) -> tuple[str, ...]:
        """Return them as a browser writes them."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise ValidationError(f"a list of origins is wanted, not {_kind(value)}")
        for item in value:
            if not isinstance(item, str) or not _ORIGIN.fullmatch(item):
                raise ValidationError(f"{item!r} is no origin; one looks like https://app.example.com")
        return tuple(item.lower() for item in value)


class Headers(Check):
    """Headers by name; their values are taken for secrets."""

    kind = "mapping"

    def convert(self, value: Any) -> dict[str, Secret]:
        """Return them, hidden."""
        if not isinstance(value, dict):
            raise ValidationError(
                f"a mapping of header names to values is wanted, not {_kind(value)} (value not shown)"
            )
        headers: dict[str, Secret] = {}
        for name, content in value.items():
            if not isinstance(name, str) or not _TOKEN.fullmatch(name):
                raise ValidationError("a header name may hold letters, digits and !#$%&'*+.^_`|~- only")
            if type(content) not in (str, int, float) or not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", str(content)):
                raise ValidationError(f"the value of header {name} must be one line of Latin-1 text (value not shown)")
            if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
                raise ValidationError(f"header {name} is the connection's own and can't be configured")
            if name.lower() in (taken.lower() for taken in headers):
                raise ValidationError(f"header {name} is given twice")
            headers[name] = Secret(str(content))
        return headers


class BodyDefaults(Check):
    """Parameters of a request's body, without the model."""

    kind = "mapping"

    def convert(self, value: Any) -> dict[str, Any]:
        """Return them."""
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ValidationError(f"a mapping of body parameters is wanted, not {_kind(value)}")
        if "model" in value:
            raise ValidationError("'model' doesn't belong here: the model is always openai_model")
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValidationError("a text in it holds half of a surrogate pair, which UTF-8 has no form for") from None
        except ValueError:
            raise ValidationError("a number in it is infinite or not a number, which JSON has no form for") from None
        return value


class BaseUrl(Check):
    """A base URL."""

    kind = "URL"

    def convert(self, value: Any) -> str:
        """Return it without a slash at the end."""
        try:
            return parse_base_url(value).geturl()
        except BadBaseUrl as error:
            raise ValidationError(f"{error}, not {INPUT}" if error.may_be_shown else str(error)) from None
