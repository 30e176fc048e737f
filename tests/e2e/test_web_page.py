"""A page of another origin in a real browser: with a key it may call and read all there is; without keys nothing."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[test]'")

from selenium import webdriver

from tests.support.chromium import needs_chromium, read_console, run_chromium
from tests.support.processes import Gunicorn, run_gateway

pytestmark = needs_chromium

KEY = "gw-key-0123456789"
# What a page's script does, with its outcome for the test: status, body, what it can read of the headers; or the error.
_CALL = """
const [url, key, body, done] = arguments;
const headers = {"content-type": "application/json"};
if (key) headers.authorization = `Bearer ${key}`;
(async () => {
  const answer = await fetch(url, body === null ? {headers} : {method: "POST", headers, body: JSON.stringify(body)});
  let text = "", pieces = 0;
  for (const reader = answer.body.getReader(), decoder = new TextDecoder(); ;) {
    const {value, done: isOver} = await reader.read();
    if (isOver) break;
    text += decoder.decode(value, {stream: true});
    pieces += 1;
  }
  return {status: answer.status, text, pieces, id: answer.headers.get("x-gateway-request-id")};
})().then(done, (error) => done({error: String(error)}));
"""
# Without a content type or a header of its own, a browser asks nobody first.
_UNASKED = """
const [url, body, done] = arguments;
fetch(url, {method: "POST", mode: "no-cors", body: JSON.stringify(body)})
  .then(() => done("sent"), (error) => done(String(error)));
"""


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!doctype html><title>a page</title>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """Return the origin of a site that has nothing to do with the gateway."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as site:
        thread = threading.Thread(target=site.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join(60)


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    with run_chromium() as running:
        running.set_script_timeout(60)
        yield running


@pytest.fixture
def browser(chromium: webdriver.Chrome, page: str) -> webdriver.Chrome:
    """Return the browser, with the page open."""
    chromium.get(page)
    read_console(chromium)
    return chromium


@pytest.fixture
def keyed(page: str, tmp_path: Path, simulator: Gunicorn) -> Iterator[Gunicorn]:
    settings = {"gateway_api_keys": [KEY], "cors_origins": [page], "max_retries": 0}
    with run_gateway(tmp_path, simulator.url, settings) as running:
        yield running


def _call(browser: webdriver.Chrome, url: str, body: dict[str, Any] | None, key: str | None = KEY) -> dict[str, Any]:
    found: dict[str, Any] = browser.execute_async_script(_CALL, url, key, body)  # type: ignore[no-untyped-call]
    return found


def test_listed_page_calls_both_apis_and_reads_headers_streams_and_errors(
    browser: webdriver.Chrome, keyed: Gunicorn
) -> None:
    whole = _call(browser, f"{keyed.url}/v1/responses", {"input": "Say hello"})
    assert whole["status"] == 200
    assert json.loads(whole["text"])["status"] == "completed"
    assert whole["id"].startswith("gwreq_")
    metadata = {"sim_event_gap_ms": "30"}
    body = {"messages": [{"role": "user", "content": "Say hello"}], "stream": True, "metadata": metadata}
    streamed = _call(browser, f"{keyed.url}/v1/chat/completions", body)
    assert streamed["text"].endswith("data: [DONE]\n\n")
    assert streamed["pieces"] > 2, "it came as it was made"
    made = json.loads(whole["text"])["id"]
    assert json.loads(_call(browser, f"{keyed.url}/v1/responses/{made}", None)["text"])["id"] == made
    assert json.loads(_call(browser, f"{keyed.url}/v1/models", None)["text"])["data"][0]["id"] == "the-model"
    refused = {**body, "metadata": {"sim_status": "429"}}
    for url, sent, key, code in (
        ("/v1/responses", {"input": "x"}, "wrong", "invalid_api_key"),
        ("/v1/responses", {"input": "x"}, None, "invalid_api_key"),
        ("/v1/nothing", {"input": "x"}, KEY, "unknown_url"),
        ("/v1/chat/completions", {"messages": 1}, KEY, "invalid_type"),
    ):
        found = _call(browser, keyed.url + url, sent, key)
        assert json.loads(found["text"])["error"]["code"] == code
    assert _call(browser, f"{keyed.url}/v1/chat/completions", refused)["status"] == 429


def test_large_body_with_a_wrong_key_is_refused_readably(browser: webdriver.Chrome, keyed: Gunicorn) -> None:
    found = _call(browser, f"{keyed.url}/v1/responses", {"input": "x" * 5_000_000}, "wrong")
    assert (found.get("status"), found.get("error")) == (401, None)


def test_page_of_an_origin_that_is_not_listed_neither_calls_nor_reads(
    chromium: webdriver.Chrome, page: str, keyed: Gunicorn
) -> None:
    # The same server by another name is another origin.
    chromium.get(page.replace("127.0.0.1", "localhost"))
    assert "Failed to fetch" in _call(chromium, f"{keyed.url}/v1/responses", {"input": "unlisted"})["error"]
    assert "CORS policy" in "\n".join(read_console(chromium))
    assert chromium.execute_async_script(_UNASKED, f"{keyed.url}/v1/responses", {"input": "unlisted"}) == "sent"  # type: ignore[no-untyped-call]
    keyed.wait_for_log('"status": 403, "code": "cross_site_request"')
    assert '"attempts": 1' not in keyed.log()


def test_without_keys_no_page_of_another_origin_makes_a_call(
    browser: webdriver.Chrome, tmp_path: Path, simulator: Gunicorn
) -> None:
    with run_gateway(tmp_path, simulator.url) as gateway:
        assert "Failed to fetch" in _call(browser, f"{gateway.url}/v1/responses", {"input": "x"}, None)["error"]
        assert browser.execute_async_script(_UNASKED, f"{gateway.url}/v1/responses", {"input": "x"}) == "sent"  # type: ignore[no-untyped-call]
        gateway.wait_for_log('"status": 403, "code": "cross_site_request"')
        assert '"attempts": 1' not in gateway.log()
        # Its own page may.
        browser.get(f"{gateway.url}/status")
        assert _call(browser, f"{gateway.url}/v1/responses", {"input": "x"}, None)["status"] == 200
