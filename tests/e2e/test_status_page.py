"""The status page in a real browser, before real gunicorn with two workers and the simulator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[test]'")

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By

from tests.support.chromium import needs_chromium, read_console, read_requests, run_chromium
from tests.support.processes import Gunicorn, eventually, run_gateway

pytestmark = needs_chromium

NASTY = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
SETTINGS = {
    "openai_model": f"model {NASTY}",
    "price_file": "prices.yaml",
    "max_concurrent_requests": 20,
    "max_retries": 0,
    "breaker_cooldown_s": None,
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    with run_chromium() as running:
        yield running


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> webdriver.Chrome:
    """Return the browser, having left the last test's page, which still asks for a gateway that is gone."""
    chromium.get("about:blank")
    read_console(chromium)
    read_requests(chromium)
    return chromium


@pytest.fixture
def gateway(tmp_path: Path, simulator: Gunicorn) -> Iterator[Gunicorn]:
    prices = {"models": {SETTINGS["openai_model"]: {"input": 1.0, "cached": 0.1, "output": 2.0}}}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
    with run_gateway(tmp_path, simulator.url, SETTINGS, "-w", "2") as running:
        eventually(lambda: requests.get(f"{running.url}/metrics", timeout=60).text.count("_workers 2.0") == 1)
        yield running


def _call(gateway: Gunicorn, **metadata: str) -> int:
    """Make a call over a new connection, so that either worker may get it."""
    headers = {"x-client-request-id": NASTY}
    body = {"input": "How many?", "metadata": {f"sim_{name}": value for name, value in metadata.items()}}
    return requests.post(f"{gateway.url}/v1/responses", json=body, headers=headers, timeout=60).status_code


def _text(browser: webdriver.Chrome, selector: str) -> str:
    text: str = browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)
    return text


def _tile(browser: webdriver.Chrome, label: str) -> str:
    script = """return [...document.querySelectorAll('.tile')]
        .find((tile) => tile.children[0].textContent === arguments[0]).innerText.replaceAll('\\n', ' ')"""
    text: str = browser.execute_script(script, label)
    return text


def _wait(check: Callable[[], Any]) -> None:
    eventually(check)


def test_page_is_right_before_any_call(browser: webdriver.Chrome, gateway: Gunicorn) -> None:
    browser.get(f"{gateway.url}/status")
    _wait(lambda: _text(browser, "#state").startswith("live"))
    text = _text(browser, "body")
    assert text.lower().count("no calls yet") == 7
    assert "No errors yet." in text
    assert "NaN" not in text
    assert not {"undefined", "null", "None", "Infinity"} & set(text.split())
    assert browser.execute_script("return document.querySelectorAll('#workers tbody tr').length") == 2
    browser.find_element(By.CSS_SELECTOR, "[data-span=hour]").click()
    assert "1 h ago" in _text(browser, ".axis")
    assert read_console(browser) == []


def test_page_follows_the_calls_of_both_workers_without_loading_anew(
    browser: webdriver.Chrome, gateway: Gunicorn
) -> None:
    browser.get(f"{gateway.url}/status")
    browser.execute_script("window.mark = 'not loaded anew'")
    with ThreadPoolExecutor(10) as pool:
        jobs = [pool.submit(_call, gateway, latency_ms="3000") for _ in range(10)]
        _wait(lambda: _tile(browser, "In flight") == "In flight 10 of 40 slots")
        assert browser.title.startswith("10 in flight")
        assert {job.result() for job in jobs} == {200}
    _wait(lambda: "10 in all" in _tile(browser, "Calls/s"))
    for status in ("401", "404", "429", "500"):
        assert _call(gateway, status=status) == int(status)
    _wait(lambda: "14 in all" in _tile(browser, "Calls/s") and "Errors/min 4" in _tile(browser, "Errors/min"))
    assert "28.6% of calls" in _tile(browser, "Errors/min")
    assert _tile(browser, "In flight") == "In flight 0 of 40 slots"
    errors = _text(browser, "#errors")
    for words in ("set openai_api_key", "set openai_model", "lower max_concurrent_requests, or wait"):
        assert words in errors
    assert "send the call again" in errors
    assert {"model_not_found", "rate_limit_exceeded"} <= set(errors.split())
    counts = "return [...document.querySelectorAll('#recent tbody tr, #errors tbody tr')].length"
    assert browser.execute_script(counts) == 14 + 4
    drawn = "return [...document.querySelectorAll('.line')].map((path) => path.getAttribute('d')).join(' ')"
    assert "NaN" not in browser.execute_script(drawn)
    _wait(lambda: browser.execute_script(drawn).count("M") >= 8)
    assert "requests" in _text(browser, "#limits")
    # The last thing that moves is the clock.
    before = _text(browser, "#state")
    _wait(lambda: _text(browser, "#state") != before)
    assert browser.execute_script("return window.mark") == "not loaded anew"
    assert read_console(browser) == []
    asked = [url for url in read_requests(browser) if not url.startswith(("data:", "about:"))]
    assert {url for url in asked if not url.startswith("chrome")} == {
        f"{gateway.url}/status",
        f"{gateway.url}/status/events",
    }


@pytest.mark.parametrize(("width", "is_phone"), [(390, True), (1280, False), (1700, False)])
def test_nothing_is_clipped(browser: webdriver.Chrome, gateway: Gunicorn, width: int, is_phone: bool) -> None:
    for status in ("404", "503"):
        _call(gateway, status=status)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": is_phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(f"{gateway.url}/status")
        _wait(lambda: "503" in _text(browser, "#errors"))
        clipped = """return [document.documentElement, ...document.querySelectorAll('.scroll:not([hidden])')]
            .filter((part) => part.scrollWidth > part.clientWidth + 1).map((part) => part.innerText.slice(0, 80))"""
        assert browser.execute_script(clipped) == []
        shown = "return [...document.querySelectorAll('#errors th')].filter((head) => head.offsetWidth)"
        assert "Server" in browser.execute_script(f"{shown}.map((head) => head.textContent)")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "as loaded"])
def test_texts_from_outside_are_shown_and_never_run(
    browser: webdriver.Chrome, gateway: Gunicorn, is_live: bool
) -> None:
    if is_live:
        browser.get(f"{gateway.url}/status")
    assert _call(gateway) == 200
    if not is_live:
        eventually(lambda: "1 in all" in requests.get(f"{gateway.url}/status", timeout=60).text)
        browser.get(f"{gateway.url}/status")
    _wait(lambda: NASTY in _text(browser, "#recent"))
    assert f"model {NASTY}" in _text(browser, "#recent")
    assert f"model {NASTY}" in _text(browser, "#servers")
    assert browser.execute_script("return [window.hacked || 0, document.querySelectorAll('img').length]") == [0, 0]
    assert browser.execute_script("return document.scripts.length") == 1
    assert read_console(browser) == []


def test_page_says_so_when_the_gateway_is_gone_and_goes_on_when_it_is_back(
    browser: webdriver.Chrome, gateway: Gunicorn
) -> None:
    browser.get(f"{gateway.url}/status")
    _wait(lambda: _text(browser, "#state").startswith("live"))
    for pid in (*gateway.workers(), gateway.pid):
        os.kill(pid, signal.SIGSTOP)
    try:
        _wait(lambda: _text(browser, "#state").startswith("Connection lost; data of "))
        assert browser.execute_script("return document.body.className") == "lost"
    finally:
        for pid in (gateway.pid, *gateway.workers()):
            os.kill(pid, signal.SIGCONT)
    _wait(lambda: _text(browser, "#state").startswith("live"))


def test_browser_that_gives_a_key_as_password_is_let_in_and_kept_up_to_date(
    browser: webdriver.Chrome, tmp_path: Path, simulator: Gunicorn
) -> None:
    with run_gateway(tmp_path, simulator.url, {"gateway_api_keys": ["key-of-a-client"]}) as gateway:
        assert requests.get(f"{gateway.url}/status", timeout=60).status_code == 401
        browser.get(gateway.url.replace("//", "//anybody:key-of-a-client@") + "/status")
        _wait(lambda: _text(browser, "#state").startswith("live"))
        assert "key-of-a-client" not in browser.page_source


def _seen(browser: webdriver.Chrome) -> str:
    """Return the text of a page that may load itself anew meanwhile."""
    try:
        return str(browser.find_element(By.TAG_NAME, "body").text)
    except (NoSuchElementException, StaleElementReferenceException):
        return ""


def test_without_javascript_the_page_is_whole_and_loads_itself_anew(gateway: Gunicorn) -> None:
    with run_chromium(has_javascript=False) as browser:
        browser.get(f"{gateway.url}/status")
        assert "No calls yet." in _seen(browser)
        for status in ("200", "200", "429"):
            _call(gateway, **({} if status == "200" else {"status": status}))
        # Nothing but the page itself brings the next one.
        _wait(lambda: "33.3% of calls" in _seen(browser))
        text = browser.find_element(By.TAG_NAME, "body").text
        for words in ("As of ", "3 in all", "of 40 slots", "or wait", f"model {NASTY}"):
            assert words in text
        assert not browser.find_element(By.ID, "charts").is_displayed()
        # Not at once: it may just be loading itself.
        _wait(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#recent tbody tr")) == 3)
        assert read_console(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window_and_is_legible_in_both_themes(
    browser: webdriver.Chrome, gateway: Gunicorn, width: int, scheme: str
) -> None:
    _call(gateway, status="429")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(f"{gateway.url}/status")
        _wait(lambda: _text(browser, "#errors tbody"))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for selector in (".tile .note", ".tile .value", "thead th", "td.warn", "td.advice", ".legend"):
            _wait(lambda selector=selector: browser.find_elements("css selector", selector))
            assert _contrast(browser, selector) >= 4.5, selector
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _contrast(browser: webdriver.Chrome, selector: str) -> float:
    """Return the contrast of a text to what is behind it (WCAG 2 1.4.3 wants 4.5)."""
    script = """
        const element = document.querySelector(arguments[0]), colour = getComputedStyle(element).color;
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [colour, getComputedStyle(behind).backgroundColor]
            .map((text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number));"""
    bright, dark = sorted(map(_luminance, browser.execute_script(script, selector)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: list[float]) -> float:
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
