"""A real headless Chromium (Debian's packages), driven by selenium; keeps to 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"
)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    # No proxy of the environment: only 127.0.0.1 is asked.
    "--no-proxy-server",
)
_JAVASCRIPT_OFF = {"profile.managed_default_content_settings.javascript": 2}


@contextlib.contextmanager
def run_chromium(*, has_javascript: bool = True) -> Iterator[webdriver.Chrome]:
    """Run a browser whose console and network logs are kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not has_javascript:
        options.add_experimental_option("prefs", _JAVASCRIPT_OFF)
    browser = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    try:
        browser.set_page_load_timeout(30)
        yield browser
    finally:
        browser.quit()


def read_console(browser: webdriver.Chrome) -> list[str]:
    """Return what the console has got since it was last read."""
    return [f"{entry['level']}: {entry['message']}" for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]


def read_requests(browser: webdriver.Chrome) -> list[str]:
    """Return the URLs that were asked for since they were last read."""
    entries: list[Any] = browser.get_log("performance")  # type: ignore[no-untyped-call]
    messages = [json.loads(entry["message"])["message"] for entry in entries]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
