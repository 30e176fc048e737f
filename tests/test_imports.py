"""What a start must not wait for: modules that the gateway's worker, or `--help`, has no use for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, write_config

_WORKER = "import openai_gateway.wsgi"
_HELP = """
import contextlib, io
from openai_gateway.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
"""
# Each is for what only some configs, calls or commands want; together they would double the time of a start.
_NOT_IN_A_WORKER = {
    "asyncio",
    "multiprocessing",
    "omegaconf",
    "openai_gateway.cli",
    "openai_gateway.collect",
    "openai_gateway.probe",
    "openai_gateway.simulator",
    "opentelemetry",
    "redis",
    "rich",
    "unittest",
    "wsproto",
}
_NOT_FOR_HELP = {
    *_NOT_IN_A_WORKER - {"openai_gateway.cli"},
    "click.shell_completion",
    "difflib",
    "email",
    "flask",
    "gevent",
    "gunicorn",
    "http",
    "importlib.metadata",
    "jinja2",
    "json",
    "logging",
    "marshmallow",
    "msgspec",
    "openai_gateway.config",
    "requests",
    "ssl",
    "subprocess",
    "tempfile",
    "urllib.request",
    "yaml",
}


@pytest.mark.parametrize(
    ("code", "unwanted"), [(_WORKER, _NOT_IN_A_WORKER), (_HELP, _NOT_FOR_HELP)], ids=["worker", "help"]
)
def test_start_imports_nothing_that_it_has_no_use_for(code: str, unwanted: set[str], tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OPENAI_GATEWAY_CONFIG_PATHS": str(write_config(tmp_path, "http://127.0.0.1:1")),
    }
    # What the environment loads by itself, for coverage or an editable install, is not counted.
    tell = "import sys; before = set(sys.modules)\n" + code + "\nprint(*(set(sys.modules) - before), sep='\\n')"
    told = subprocess.run(
        [sys.executable, "-c", tell], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(told.stdout.splitlines())
    assert "openai_gateway" in loaded
    assert not sorted(loaded & unwanted)
