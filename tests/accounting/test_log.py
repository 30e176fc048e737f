"""Log lines: which calls get one, and what it says, as JSON and plain."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from openai_gateway.accounting.log import CallLog, JsonFormatter, PlainFormatter
from openai_gateway.config import Secret, ServerConfig
from openai_gateway.wire.call import CallRecord
from tests.support.records import to_record


def _server(**settings: Any) -> ServerConfig:
    return ServerConfig("s", "http://u/v1", "m", openai_api_key=Secret("sk-secret"), **settings)


@pytest.mark.parametrize(
    ("record", "settings", "message"),
    [
        pytest.param(to_record(), {}, None, id="an ordinary call gets no line"),
        pytest.param(to_record(), {"access_log": True}, "call completed", id="unless every call does"),
        pytest.param(to_record(status=404), {}, "call answered with an error", id="the upstream's error"),
        pytest.param(to_record(outcome="failed", status=502), {}, "call failed", id="failed"),
        pytest.param(to_record(outcome="client_gone", status=None), {}, "call client_gone", id="client gone"),
        pytest.param(to_record(duration_s=301.0), {}, "call slow", id="slow"),
        pytest.param(to_record(duration_s=301.0), {"slow_call_s": None}, None, id="slow, but nothing is"),
        pytest.param(to_record(duration_s=3.0), {"slow_call_s": 2.0}, "call slow", id="slow by the config"),
    ],
)
def test_which_calls_get_a_line(
    record: CallRecord, settings: dict[str, Any], message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="openai_gateway"):
        CallLog(_server(**settings)).observe(record)
    assert [line.getMessage() for line in caplog.records] == ([message] if message else [])


@pytest.fixture
def line(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    with caplog.at_level(logging.INFO, logger="openai_gateway"):
        CallLog(_server()).observe(to_record(status=500, client_request_id='a b="c"', rollout_id="7"))
    return caplog.records[0]


def test_json_line_has_the_call_in_fields(line: logging.LogRecord) -> None:
    found = json.loads(JsonFormatter().format(line))
    assert (found["level"], found["logger"], found["message"]) == (
        "warning",
        "openai_gateway",
        "call answered with an error",
    )
    assert found["time"].endswith("Z")
    assert (found["status"], found["rollout"], found["client_request_id"]) == (500, "7", 'a b="c"')
    assert (found["input_tokens"], found["output_tokens"], found["duration_s"]) == (100, 50, 1.0)


def test_plain_line_quotes_what_could_be_taken_for_more(line: logging.LogRecord) -> None:
    text = PlainFormatter("%(levelname)s %(message)s").format(line)
    assert text.startswith("WARNING call answered with an error server=")
    assert 'client_request_id="a b=\\"c\\""' in text
    assert "status=500" in text


@pytest.mark.parametrize("sent", ["a\nERROR forged", "a\rb", "\x1b[2J", "\u2028x", "\x85", "\u202eabc"])
def test_plain_line_cant_be_forged(sent: str, caplog: pytest.LogCaptureFixture) -> None:
    CallLog(_server()).observe(to_record(status=500, client_request_id=sent))
    text = PlainFormatter("%(message)s").format(caplog.records[0])
    assert text.isprintable()
    assert f"client_request_id={json.dumps(sent)}" in text


def test_plain_line_cuts_long_values(caplog: pytest.LogCaptureFixture) -> None:
    CallLog(_server()).observe(to_record(status=500, path="/" + "x" * 5000))
    text = PlainFormatter("%(message)s").format(caplog.records[0])
    assert f"path=/{'x' * 199}... " in text


def test_traceback_is_one_json_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "p", 1, "it %s", ("broke",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: broken" in json.loads(text)["exception"]
