"""Fixtures for tests that need real processes: one simulator and one gateway serve a whole module."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.processes import Gunicorn, run_gateway, run_simulator
from tests.support.upstreams import ScriptedUpstream, answer_always, run_upstream

# Where the environment forbids bytecode, each of the hundreds of gateways would compile all modules at its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# In the background, or under nohup, the tests are to ignore a signal; all that they start would do so, too.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *given: None)

# A busy machine makes single examples slow.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

PROGRAMS = {
    "chromium": "the status page and pages of other origins",
    "chromedriver": "the same",
    "java": "the JDK's clients",
    "nginx": "the site for nginx",
    "node": "Node's client",
    "promtool": "the alerts",
    "redis-server": "limits that machines share",
    "systemd-analyze": "the unit",
}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say before the whole suite starts how long it takes, and what it skips."""
    config = session.config
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or hasattr(config, "workerinput"):
        return
    lines = ["All tests take about 6 minutes on two free cores, 15 on busy ones."]
    lines += [f"Skipped, as there is no {name}: those of {what}." for name, what in PROGRAMS.items() if not _find(name)]
    print("\n".join(lines), flush=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the files that take long begin first: whoever has nothing left to do waits for a short one only."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


def _find(name: str) -> str | None:
    # Debian has nginx where only root's PATH leads.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with run_simulator(tmp_path_factory.mktemp("simulator"), {"api_key": "sk-upstream-key"}) as running:
        yield running


@pytest.fixture(scope="module", params=["shortcut", "flask"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, simulator: Gunicorn
) -> Iterator[Gunicorn]:
    """Both ways: plain heads and the shortcut for the two POST paths; gunicorn's parser and Flask's dispatch."""
    settings = {"max_retries": 1, "retry_ratio": None, "breaker_cooldown_s": None}
    folder, environ = tmp_path_factory.mktemp("gateway"), {"INSPECTED_WAY": request.param}
    # With an access log, no head is taken for a plain one; `-k gevent` has its worker adopted.
    arguments = ["-k", "gevent", "--access-logfile", "/dev/null"] if request.param == "flask" else []
    with run_gateway(folder, simulator.url, settings, *arguments, environ=environ) as running:
        yield running


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """An upstream that answers until a test gives it another script."""
    with run_upstream(answer_always) as running:
        yield running
