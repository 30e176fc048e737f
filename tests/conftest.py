"""Fixtures for tests that need real processes: one simulator and one gateway serve a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes import Gunicorn, run_gateway, run_simulator
from tests.support.upstreams import ScriptedUpstream, answer_always, run_upstream


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with run_simulator(tmp_path_factory.mktemp("simulator"), {"api_key": "sk-upstream-key"}) as running:
        yield running


@pytest.fixture(scope="module", params=["shortcut", "flask"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, simulator: Gunicorn
) -> Iterator[Gunicorn]:
    """Both ways: our worker and the shortcut for the two POST paths; gunicorn's own worker and Flask's dispatch."""
    settings = {"max_retries": 1, "retry_ratio": None, "breaker_cooldown_s": None}
    folder, environ = tmp_path_factory.mktemp("gateway"), {"INSPECTED_WAY": request.param}
    # With an access log, gunicorn's worker is left as it is.
    arguments = ["--access-logfile", "/dev/null"] if request.param == "flask" else []
    with run_gateway(folder, simulator.url, settings, *arguments, environ=environ) as running:
        yield running


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """An upstream that answers until a test gives it another script."""
    with run_upstream(answer_always) as running:
        yield running
