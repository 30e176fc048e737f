"""One check of base URLs for config, bench and collect; what it says never holds the URL."""

from __future__ import annotations

import pytest

from openai_gateway.config.base_url import BadBaseUrl, parse_base_url


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://h/openai/v1/?api-version=preview", "https://h/openai/v1?api-version=preview"),
    ],
)
def test_base_url_is_taken_without_a_slash_at_its_end(given: str, whole: str) -> None:
    assert parse_base_url(given).geturl() == whole


@pytest.mark.parametrize(
    ("given", "may_be_shown"),
    [
        pytest.param(7, True, id="a number"),
        pytest.param("h.example/v1", True, id="no scheme"),
        pytest.param("http://h:0/v1", True, id="port 0"),
        pytest.param("http://h:99999/v1", False, id="an impossible port"),
        pytest.param("https://u:secret@h/v1", False, id="a password"),
        pytest.param("ftp://h/v1?key=secret", False, id="a query"),
        pytest.param("https://h/v1#secret", False, id="a fragment"),
        pytest.param("http://h\n/v1", True, id="two lines"),
    ],
)
def test_what_is_no_base_url_is_refused_without_being_repeated(given: object, may_be_shown: bool) -> None:
    with pytest.raises(BadBaseUrl) as refused:
        parse_base_url(given)
    assert refused.value.may_be_shown is may_be_shown
    assert "secret" not in str(refused.value)
