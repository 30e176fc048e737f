r"""Reads the value of a command line's `+key=value` as NeMo Gym's Hydra does: `{a:1,b:{c:d}}`, `[x,y]`, quotes.

Only null, true, false and decimal numbers are more than text: `yes`, `on`, `0x10` and `01` are strings. What Hydra
would take for a function or a sweep over several values is refused. Beyond it, an unquoted text may hold any other
character, and a mapping's key may be quoted, so that JSON is read, too (but for escapes: `\n` is two characters).
Source: Hydra 1.3, OverrideLexer.g4 and OverrideParser.g4. See also: files (what a key means).
"""

from __future__ import annotations

import re
from typing import Any, Final

_SPACES: Final = " \t\r\n"
_ESCAPED: Final = "\\()[]{}:=, \t"
_WORDS: Final = {"null": None, "true": True, "false": False}
_DIGITS: Final = r"(?:0|[1-9](?:_?[0-9])*)"
_INT: Final = re.compile(rf"[+-]?{_DIGITS}")
_POINT: Final = rf"(?:{_DIGITS}?\.[0-9](?:_?[0-9])*|{_DIGITS}\.)"
_FLOAT: Final = re.compile(
    rf"[+-]?(?:{_POINT}|(?:{_POINT}|{_DIGITS})[eE][+-]?[0-9](?:_?[0-9])*|[Ii][Nn][Ff]|[Nn][Aa][Nn])"
)
_FORBIDDEN: Final = {
    "(": "Hydra's functions are not known here; put the text in quotes",
    ")": "a bracket is closed that was not opened; put the text in quotes",
    "[": "a bracket stands inside a text; put the text in quotes",
    "]": "a bracket is closed that was not opened; put the text in quotes",
    "{": "a brace stands inside a text; put the text in quotes",
    "}": "a brace is closed that was not opened; put the text in quotes",
}
_QUOTED: Final = {quote: re.compile(rf"{quote}((?:\\\\)*|.*?[^\\](?:\\\\)*){quote}", re.DOTALL) for quote in ("'", '"')}
_ESCAPED_QUOTE: Final = {quote: re.compile(rf"(\\+)(?={quote}|$)") for quote in ("'", '"')}


class BadValue(ValueError):
    """A text is no value; the message says why and repeats nothing of it."""


def parse_value(text: str) -> Any:
    """Return null, a boolean, a number, a string, a list or a mapping, as the text says. Raises BadValue."""
    try:
        reader = _Reader(text)
        if reader.is_at_end():
            return ""
        value = reader.read_element("")
    except RecursionError:
        raise BadValue("it is nested too deeply") from None
    if reader.is_at_end():
        return value
    if reader.looks_at(","):
        raise BadValue("several values are given; a list stands in [ ], a text with a comma in quotes")
    raise BadValue("something follows the value; put a text in quotes")


class _Reader:
    """Reads elements from the text, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def is_at_end(self) -> bool:
        self._skip_spaces()
        return self._at >= len(self._text)

    def looks_at(self, characters: str) -> bool:
        self._skip_spaces()
        return self._text[self._at : self._at + 1] in characters and self._at < len(self._text)

    def read_element(self, ends: str) -> Any:
        """Return the element here; an unquoted text goes on up to one of `ends` or a comma."""
        if self._take("["):
            return self._read_list()
        if self._take("{"):
            return self._read_mapping()
        if self.looks_at("'\""):
            return self._read_quoted()
        return self._read_plain(ends)

    def _read_list(self) -> list[Any]:
        items: list[Any] = []
        if self._take("]"):
            return items
        while True:
            items.append(self.read_element("]"))
            if self._take("]"):
                return items
            self._expect(",", "a list's bracket is not closed")

    def _read_mapping(self) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        if self._take("}"):
            return mapping
        while True:
            name = self._read_quoted() if self.looks_at("'\"") else self._read_plain(":}", is_key=True)
            self._expect(":", "a mapping has a key without a value")
            mapping["null" if name is None else str(name)] = self.read_element("}")
            if self._take("}"):
                return mapping
            self._expect(",", "a mapping's brace is not closed")

    def _read_quoted(self) -> str:
        quote = self._text[self._at]
        match = _QUOTED[quote].match(self._text, self._at)
        if match is None:
            raise BadValue("a quote is not closed")
        self._at = match.end()
        # Backslashes count only before a quote: each second one is dropped.
        return _ESCAPED_QUOTE[quote].sub(lambda found: "\\" * (len(found[1]) // 2), match[1])

    def _read_plain(self, ends: str, *, is_key: bool = False) -> Any:
        self._skip_spaces()
        found, length, is_escaped = [], 0, False
        while self._at < len(self._text):
            character = self._text[self._at]
            piece = character
            if self._text.startswith("${", self._at) and not is_key:
                piece = self._read_interpolation()
            elif character == "\\" and self._text[self._at + 1 : self._at + 2] in [*_ESCAPED]:
                piece, is_escaped = self._text[self._at + 1], True
                self._at += 1
            elif character in ends or character == ",":
                break
            elif character in _FORBIDDEN:
                raise BadValue(_FORBIDDEN[character])
            found.append(piece)
            self._at += 1 if len(piece) == 1 else len(piece)
            if character not in _SPACES:
                length = len(found)
        text = "".join(found[:length])
        if not text:
            raise BadValue("a value is missing beside a comma or bracket")
        return text if is_escaped else _to_primitive(text)

    def _read_interpolation(self) -> str:
        """Return the whole of the `${...}` that begins here, others in it included."""
        depth = 0
        for at in range(self._at + 1, len(self._text)):
            depth += {"{": 1, "}": -1}.get(self._text[at], 0)
            if depth == 0:
                return self._text[self._at : at + 1]
        raise BadValue("an interpolation's brace is not closed")

    def _take(self, character: str) -> bool:
        if not self.looks_at(character):
            return False
        self._at += 1
        return True

    def _expect(self, character: str, otherwise: str) -> None:
        if not self._take(character):
            raise BadValue(otherwise)

    def _skip_spaces(self) -> None:
        while self._text[self._at : self._at + 1] in [*_SPACES]:
            self._at += 1


def _to_primitive(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
