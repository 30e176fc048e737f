"""The envelope: what is refused, what is changed, and that every other byte of a value stays."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.errors import InvalidRequest
from openai_gateway.wire.api import Api
from openai_gateway.wire.envelope import (
    ChatEnvelope,
    ModelEnvelope,
    ResponsesEnvelope,
    drop_reasoning_items,
    find_rollout_key,
    is_true,
    parse,
    read_output_tokens,
    rewrite,
    to_raw,
)

MODEL = msgspec.Raw(b'"the-model"')
SCHEMAS = {"responses": ResponsesEnvelope(), "chat": ChatEnvelope(), "model": ModelEnvelope()}


def _rewrite(body: bytes, schema: str = "model", **defaults: Any) -> bytes:
    return rewrite(parse(body, SCHEMAS[schema]), MODEL, to_raw(defaults))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"123456789012345678901234567890", id="big integers"),
        pytest.param(b"1.0", id="a float that is whole"),
        pytest.param(b"1E5", id="exponents"),
        pytest.param(b"-0", id="negative zero"),
        pytest.param(b"1e400", id="numbers beyond a float"),
        pytest.param(b'"\\u0041\\/\\ud83d\\ude00"', id="escapes"),
        pytest.param(b"[ 1 ,\t2\n, { } ]", id="white space inside"),
        pytest.param('"caf\u00e9 \U0001f600"'.encode(), id="UTF-8"),
        pytest.param(b'"\\ud800"', id="a lone surrogate"),
        pytest.param(b'[{"\\udfff": [1.0 , null]} ]', id="a lone surrogate in a nested key"),
    ],
)
def test_bytes_of_a_value_stay(value: bytes) -> None:
    assert _rewrite(b'{"x" : ' + value + b' , "model": 1e0, "y":true}'.replace(b"1e0", b'"m"')) == (
        b'{"x":' + value + b',"model":"the-model","y":true}'
    )


def test_model_is_replaced_in_its_place_and_added_at_the_end_if_missing() -> None:
    assert _rewrite(b'{"a":1,"model":"m","b":2}') == b'{"a":1,"model":"the-model","b":2}'
    assert _rewrite(b'{"a":1}') == b'{"a":1,"model":"the-model"}'
    assert _rewrite(b'{"mod\\u0065l":"m","model":"n"}') == b'{"model":"the-model"}'


def test_defaults_are_added_and_the_request_wins_an_explicit_null_too() -> None:
    body = b'{"temperature":null,"user":"u"}'
    assert json.loads(_rewrite(body, temperature=1.0, user="default", top_p=0.5)) == {
        "temperature": None, "user": "u", "model": "the-model", "top_p": 0.5,
    }  # fmt: skip


def test_key_with_a_lone_surrogate_passes() -> None:
    assert _rewrite(b'{"\\ud800":1, "b" : [2 ] }') == b'{"\\ud800":1,"b":[2 ],"model":"the-model"}'


@pytest.mark.parametrize(
    ("schema", "body", "code", "param"),
    [
        ("model", b"", "invalid_json", None),
        ("model", b"  ", "invalid_json", None),
        ("model", b"{", "invalid_json", None),
        ("model", b'{"a":1}x', "invalid_json", None),
        ("model", b'{"a":NaN}', "invalid_json", None),
        ("model", b'{"a":Infinity,"b":"\\ud800"}', "invalid_json", None),
        ("model", b'{"a":"\\ud800"', "invalid_json", None),
        ("model", b'{"a":"\\ud800"}}', "invalid_json", None),
        ("model", b'{"a":"\\ud800",}', "invalid_json", None),
        ("model", b'["\\ud800"]', "invalid_type", None),
        ("model", b'{"a":"\\ud800","b":' + b"[" * 100_000, "invalid_json", None),
        ("model", b'\xef\xbb\xbf{"a":1}', "invalid_json", None),
        ("model", '{"a":1}'.encode("utf-16"), "invalid_json", None),
        ("model", b'{"a":"\xff"}', "invalid_json", None),
        ("model", b'{"a":"\xed\xa0\x80"}', "invalid_json", None),
        ("model", b'{"a":"' + "\u20ac".encode() * 20_000 + b'\xe2"}', "invalid_json", None),
        ("model", b'{"a":"\x00"}', "invalid_json", None),
        ("model", b"[" * 100_000, "invalid_type", None),
        ("model", b'{"a":' * 100_000, "invalid_json", None),
        ("model", b"[]", "invalid_type", None),
        ("model", b"null", "invalid_type", None),
        ("model", b'{"model":1}', "invalid_type", "model"),
        ("chat", b"{}", "missing_required_parameter", "messages"),
        ("chat", b'{"messages":"x"}', "invalid_type", "messages"),
        ("chat", b'{"messages":null}', "invalid_type", "messages"),
        ("chat", b'{"messages":[],"stream":"yes"}', "invalid_type", "stream"),
        ("chat", b'{"messages":[],"stream_options":[]}', "invalid_type", "stream_options"),
        ("chat", b'{"messages":[],"metadata":true}', "invalid_type", "metadata"),
        ("responses", b'{"input":1}', "invalid_type", "input"),
        ("responses", b'{"input":{}}', "invalid_type", "input"),
    ],
)
def test_body_is_refused_with_code_and_parameter(schema: str, body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(body, SCHEMAS[schema])
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.status == 400


@pytest.mark.parametrize("body", [b"{}", b'{"input":null}', b'{"prompt":{"id":"p"}}'])
def test_whether_a_response_can_be_made_is_the_apis_to_judge(body: bytes) -> None:
    assert rewrite(parse(body, SCHEMAS["responses"]), msgspec.Raw(b'"m"'), {}).endswith(b'"model":"m"}')


def test_nulls_and_unknown_keys_pass() -> None:
    body = b'{"messages":[],"model":null,"stream":null,"stream_options":null,"metadata":null,"new_key":1}'
    assert parse(body, SCHEMAS["chat"])


def test_reasoning_items_are_left_out_and_the_others_keep_their_bytes() -> None:
    body = b'{"input": [ {"type" : "reasoning"}, {"a": 1.0 } , "x", {"type":"mess\\u0061ge"}, {"type": 3}]}'
    values = parse(body, SCHEMAS["responses"])
    drop_reasoning_items(values)
    assert bytes(values["input"]) == b'[{"a": 1.0 },"x",{"type":"mess\\u0061ge"},{"type": 3}]'
    for untouched in (b'{"input":"text"}', b'{"prompt":{}}', b'{"input":[ 1 ]}'):
        values = parse(untouched, SCHEMAS["responses"])
        before = dict(values)
        drop_reasoning_items(values)
        assert values == before


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (rb'[{"type":"message","content":"\ud800"} , {"type":"reasoning","x":"\uDFFF"},[[1]]]',
         rb'[{"type":"message","content":"\ud800"},[[1]]]'),
        (rb'[ "\\ud800", 1,1 ,{"type":"reasoning"},11,{"type":"\ud800"}]', rb'["\\ud800",1,1,11,{"type":"\ud800"}]'),
        (rb'[{"type":"message","content":"\ud800"} ]', rb'[{"type":"message","content":"\ud800"} ]'),
    ],
)  # fmt: skip
def test_lone_surrogates_are_no_hindrance_to_dropping_reasoning_items(given: bytes, kept: bytes) -> None:
    values = parse(b'{"input":%b}' % given, SCHEMAS["responses"])
    drop_reasoning_items(values)
    assert bytes(values["input"]) == kept


def test_only_a_true_is_true() -> None:
    assert is_true(msgspec.Raw(b"true"))
    assert not any(map(is_true, [None, msgspec.Raw(b"false"), msgspec.Raw(b'"true"'), msgspec.Raw(b"1")]))


@given(st.binary())
def test_any_bytes_are_refused_or_an_object(body: bytes) -> None:
    try:
        values = parse(body, SCHEMAS["model"])
    except InvalidRequest:
        return
    assert isinstance(json.loads(rewrite(values, MODEL, {})), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON), st.booleans(), st.sampled_from([None, 1]))
def test_any_object_comes_out_as_it_was_but_for_the_model(
    values: dict[str, Any], ensure_ascii: bool, indent: int | None
) -> None:
    values = {name: value for name, value in values.items() if name != "model"}
    body = json.dumps(values, ensure_ascii=ensure_ascii, indent=indent).encode(errors="surrogatepass")
    try:
        rewritten = _rewrite(body)
    except InvalidRequest:
        assert not ensure_ascii, "only raw surrogates, which are no UTF-8, are refused"
        return
    assert json.loads(rewritten) == {**values, "model": "the-model"}


@given(st.dictionaries(st.text(), JSON, min_size=1), st.data())
def test_damaged_json_is_refused_or_still_an_object(values: dict[str, Any], data: st.DataObject) -> None:
    body = bytearray(json.dumps(values).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        rewritten = _rewrite(bytes(body))
    except InvalidRequest:
        return
    assert isinstance(json.loads(rewritten), dict)


@pytest.mark.parametrize(
    ("body", "headers", "key"),
    [
        pytest.param(b"{}", {}, None, id="nothing"),
        pytest.param(b'{"previous_response_id": "resp_1"}', {}, '"resp_1"', id="the call before"),
        pytest.param(b'{"previous_response_id": "r"}', {"HTTP_SESSION_ID": "s"}, "s", id="a session wins over it"),
        pytest.param(b'{"prompt_cache_key": "k"}', {"HTTP_SESSION_ID": "s"}, '"k"', id="the cache's key over both"),
    ],
)
def test_rollout_is_told_by_the_most_telling(body: bytes, headers: dict[str, str], key: str | None) -> None:
    assert find_rollout_key(msgspec.json.decode(body, type=dict[str, msgspec.Raw]), headers) == key


@pytest.mark.parametrize(
    ("body", "api", "tokens"),
    [
        (b"{}", Api.CHAT, None),
        (b'{"max_tokens": 7}', Api.CHAT, 7),
        (b'{"max_tokens": 7, "max_completion_tokens": 9}', Api.CHAT, 9),
        (b'{"max_output_tokens": 1024}', Api.RESPONSES, 1024),
        (b'{"max_output_tokens": null}', Api.RESPONSES, None),
        (b'{"max_output_tokens": 1e99}', Api.RESPONSES, None),
    ],
)
def test_bound_of_the_answer_is_read(body: bytes, api: Api, tokens: int | None) -> None:
    assert read_output_tokens(msgspec.json.decode(body, type=dict[str, msgspec.Raw]), api) == tokens


def test_rollouts_key_is_kept_by_its_end_if_it_is_long() -> None:
    values = {"prompt_cache_key": msgspec.Raw(b'"' + b"x" * 1_000_000 + b'7"')}
    assert find_rollout_key(values, {}) == "x" * 254 + '7"'
