r"""A command line's values are read as Hydra reads them; the expected values are Hydra 1.3's own."""

from __future__ import annotations

import math
from typing import Any

import pytest

from openai_gateway.config.override_value import BadValue, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        (" \t", ""),
        ("null", None),
        ("NULL", None),
        ("True", True),
        ("yes", "yes"),
        ("on", "on"),
        ("~", "~"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("01", "01"),
        ("-0", 0),
        ("+4", 4),
        ("1_000", 1000),
        ("1__0", "1__0"),
        ("1e3", 1000.0),
        ("2.", 2.0),
        (".5", 0.5),
        ("-INF", -math.inf),
        ("2026-01-01", "2026-01-01"),
        ("1:30", "1:30"),
        ("a b ", "a b"),
        ("a: b", "a: b"),
        ("'12'", "12"),
        ("'it\\'s'", "it's"),
        ('"a\\nb"', "a\\nb"),
        ("'a\\\\'", "a\\"),
        ("a\\,b", "a,b"),
        ("\\ 1", " 1"),
        ("a\\x", "a\\x"),
        ("http://h:8000/v1?api-version=preview&x=1", "http://h:8000/v1?api-version=preview&x=1"),
        ("${oc.env:A,b}", "${oc.env:A,b}"),
        ("${a:${b}}x", "${a:${b}}x"),
        ("[]", []),
        ("[a, b,[1,null]]", ["a", "b", [1, None]]),
        ("{}", {}),
        ("{a:1,b:{c:d}}", {"a": 1, "b": {"c": "d"}}),
        ("{a: yes, on: off}", {"a": "yes", "on": "off"}),
        ("{a b:http://h}", {"a b": "http://h"}),
        ("{1:x,null:y}", {"1": "x", "null": "y"}),
        ("{a:'x,y',b:\"{}\"}", {"a": "x,y", "b": "{}"}),
        ('{"temperature": 0.5, "stop": ["a"]}', {"temperature": 0.5, "stop": ["a"]}),
    ],
)
def test_value_is(text: str, value: Any) -> None:
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b", "several values"),
        ("choice(a,b)", "functions"),
        ("[a", "not closed"),
        ("[a,]", "missing"),
        ("{a}", "without a value"),
        ("{a:1", "not closed"),
        ("{:1}", "missing"),
        ("a]", "not opened"),
        ("a[0]", "inside a text"),
        ("'a", "not closed"),
        ("'a'b", "follows"),
        ("${a", "not closed"),
        ("[" * 100_000, "too deeply"),
    ],
)
def test_value_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadValue, match=said):
        parse_value(text)
