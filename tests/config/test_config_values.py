"""What a key's value may be, what it is turned into, and that a Secret shows itself to nobody."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from openai_gateway.config import Secret
from tests.config.folder import DOTTED, PLANTED_KEY, Folder, to_server


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        pytest.param("openai_base_url", "https://h/v1/", "https://h/v1", id="a trailing slash is taken off"),
        pytest.param("openai_base_url", "http://h", "http://h", id="a URL without a path"),
        pytest.param("openai_base_url", "http://[::1]:8000/a/b", "http://[::1]:8000/a/b", id="IPv6, port, path"),
        pytest.param("openai_base_url", "https://h/v1/?a=b", "https://h/v1?a=b", id="a query stays"),
        pytest.param("max_concurrent_requests", "8", 8, id="an integer as a string"),
        pytest.param("max_concurrent_requests", "null", None, id="null as a string"),
        pytest.param("connect_timeout_s", "2.5", 2.5, id="a float as a string"),
        pytest.param("connect_timeout_s", 3, 3.0, id="an integer for a float"),
        pytest.param("queue_timeout_s", "null", None, id="null as a string for a float"),
        pytest.param("drop_input_reasoning_items", "true", True, id="a boolean as a string"),
        pytest.param("drop_input_reasoning_items", True, True, id="a boolean"),
        pytest.param("max_queue", 0, 0, id="no queue"),
        pytest.param("retry_ratio", "0.5", 0.5, id="a ratio as a string"),
        pytest.param("max_retries", 0, 0, id="no retries"),
        pytest.param("extra_body", {"a": {"b": [1, None]}}, {"a": {"b": [1, None]}}, id="a nested body"),
        pytest.param("extra_body_chat", {"stop": "x"}, {"stop": "x"}, id="defaults of one API"),
        pytest.param("openai_default_headers", {"A": "k", "B": 1}, {"A": Secret("k"), "B": Secret("1")}, id="headers"),
        pytest.param("openai_default_headers", {"X": "é"}, {"X": Secret("é")}, id="a Latin-1 header"),
        pytest.param("gateway_api_keys", "one", (Secret("one"),), id="one key for a list of keys"),
        pytest.param("gateway_api_keys", ["a", "b"], (Secret("a"), Secret("b")), id="a list of keys"),
    ],
)  # fmt: skip
def test_value_is_taken(folder: Folder, key: str, value: Any, taken: Any) -> None:
    folder.write(folder.default, {"policy_model": to_server(**{key: value})})
    got = getattr(folder.server(), key)
    assert got == taken
    assert type(got) is type(taken)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("openai_base_url", "h.example/v1", id="a URL without a scheme"),
        pytest.param("openai_base_url", "ftp://h/v1", id="a URL of another scheme"),
        pytest.param("openai_base_url", "https:///v1", id="a URL without a host"),
        pytest.param("openai_base_url", f"https://u:{PLANTED_KEY}@h/v1", id="a URL with a password"),
        pytest.param("openai_base_url", "https://h/v1#a", id="a URL with a fragment"),
        pytest.param("openai_base_url", "https://h:99999/v1", id="a URL with an impossible port"),
        pytest.param("openai_base_url", "https://h /v1", id="a URL with a space"),
        pytest.param("openai_base_url", 7, id="a number for a URL"),
        pytest.param("openai_model", "", id="an empty model"),
        pytest.param("openai_model", "a\nb", id="a model of two lines"),
        pytest.param("openai_model", ["a"], id="a list for a model"),
        pytest.param("openai_api_key", "", id="an empty key"),
        pytest.param("openai_api_key", f"{PLANTED_KEY}\n", id="a key with a newline"),
        pytest.param("openai_api_key", f"{PLANTED_KEY} x", id="a key with a space"),
        pytest.param("openai_api_key", f"{PLANTED_KEY}→", id="a key beyond Latin-1"),
        pytest.param("openai_api_key", [PLANTED_KEY], id="a list for a key"),
        pytest.param("openai_api_key", {PLANTED_KEY: 1}, id="a mapping for a key"),
        pytest.param("openai_api_key", 12345678, id="a number for a key"),
        pytest.param("openai_default_headers", PLANTED_KEY, id="a string for headers"),
        pytest.param("openai_default_headers", {"a b": PLANTED_KEY}, id="a header name with a space"),
        pytest.param("openai_default_headers", {"a": f"{PLANTED_KEY}\r\nb: c"}, id="a header of two lines"),
        pytest.param("openai_default_headers", {"a": f"{PLANTED_KEY}→"}, id="a header beyond Latin-1"),
        pytest.param("openai_default_headers", {"a": [PLANTED_KEY]}, id="a list for a header"),
        pytest.param("openai_default_headers", {"Content-Length": "1"}, id="a header of the connection's own"),
        pytest.param("extra_body", [1], id="a list for a body"),
        pytest.param("extra_body", {"model": "m"}, id="a model in extra_body"),
        pytest.param("extra_body_responses", {"model": "m"}, id="a model in extra_body_responses"),
        pytest.param("max_concurrent_requests", 0, id="a cap of nothing"),
        pytest.param("max_concurrent_requests", True, id="a boolean for an integer"),
        pytest.param("max_concurrent_requests", 1.5, id="a fraction for an integer"),
        pytest.param("max_concurrent_requests", "many", id="a word for an integer"),
        pytest.param("max_queue", -1, id="a queue below nothing"),
        pytest.param("max_retries", "null", id="null where there must be a number"),
        pytest.param("connect_timeout_s", 0, id="a time of nothing"),
        pytest.param("connect_timeout_s", -1, id="a time below nothing"),
        pytest.param("connect_timeout_s", float("nan"), id="a time that is no number"),
        pytest.param("connect_timeout_s", float("inf"), id="a time without end"),
        pytest.param("connect_timeout_s", "soon", id="a word for a time"),
        pytest.param("connect_timeout_s", True, id="a boolean for a time"),
        pytest.param("retry_ratio", 1.5, id="a ratio over one"),
        pytest.param("drop_input_reasoning_items", "maybe", id="a word for a boolean"),
        pytest.param("drop_input_reasoning_items", 1, id="a number for a boolean"),
        pytest.param("gateway_api_keys", {"a": PLANTED_KEY}, id="a mapping for keys"),
        pytest.param("gateway_api_keys", [f"{PLANTED_KEY} x"], id="a bad key among keys"),
    ],
)
def test_value_is_refused_with_file_and_dotted_key(folder: Folder, key: str, value: Any) -> None:
    folder.write(folder.default, {"policy_model": to_server(**{key: value})})
    message = folder.complaint()
    assert "1 problem " in message
    assert f"{folder.default}: {DOTTED}.{key}: " in message


def test_wrong_value_is_shown_short(folder: Folder) -> None:
    folder.write(folder.default, {"policy_model": to_server(max_retries="x" * 500)})
    assert "x" * 50 in (message := folder.complaint())
    assert "x" * 70 not in message


@pytest.mark.parametrize("key", ["openai_api_key_file", "gateway_api_keys_file"])
def test_key_file_is_found_from_the_working_folder(folder: Folder, key: str) -> None:
    own = {"openai_api_key": None} if key == "openai_api_key_file" else {}
    folder.write("keys.txt", f"# a comment\n\n{PLANTED_KEY}\n")
    folder.write(folder.default, {"policy_model": to_server(**{key: "keys.txt", **own})})
    assert getattr(folder.server(), key) == str(folder.path / "keys.txt")


@pytest.mark.parametrize(
    "content",
    [None, "", "# none\n", f"{PLANTED_KEY} x\n"],
    ids=["missing", "empty", "comments only", "key with a space"],
)
def test_key_file_without_a_usable_key_is_refused(folder: Folder, content: str | None) -> None:
    if content is not None:
        folder.write("keys.txt", content)
    folder.write(folder.default, {"policy_model": to_server(openai_api_key=None, openai_api_key_file="keys.txt")})
    message = folder.complaint()
    assert f"{DOTTED}.openai_api_key_file" in message
    assert "keys.txt" in message


def test_key_file_that_is_no_text_is_refused(folder: Folder) -> None:
    (folder.path / "keys.txt").write_bytes(b"\xff\xfe")
    folder.write(folder.default, {"policy_model": to_server(openai_api_key=None, openai_api_key_file="keys.txt")})
    assert f"{DOTTED}.openai_api_key_file" in folder.complaint()


@pytest.mark.parametrize("content", [None, "no certificate\n"], ids=["missing", "holding no certificate"])
def test_ca_file_is_refused_when(folder: Folder, content: str | None) -> None:
    if content is not None:
        folder.write("ca.pem", content)
    folder.write(folder.default, {"policy_model": to_server(ssl_ca_file="ca.pem")})
    assert f"{DOTTED}.ssl_ca_file" in folder.complaint()


def test_key_and_key_file_together_are_refused(folder: Folder) -> None:
    folder.write("keys.txt", PLANTED_KEY)
    folder.write(folder.default, {"policy_model": to_server(openai_api_key_file="keys.txt")})
    assert "openai_api_key_file; give one of them" in folder.complaint()


def test_config_is_frozen(folder: Folder) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        folder.server().name = "other"  # type: ignore[misc]


def test_secret_shows_itself_only_to_reveal(folder: Folder) -> None:
    secret = Secret(PLANTED_KEY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", "%s" % secret, repr({"a": secret})]  # noqa: UP031
    assert not any(PLANTED_KEY in text for text in [*shown, repr(folder.load())])
    assert secret.reveal() == PLANTED_KEY


def test_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(PLANTED_KEY))


def test_secrets_are_equal_by_value() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
