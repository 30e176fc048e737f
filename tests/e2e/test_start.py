"""What is loaded, and what is not, before a command helps or a worker answers: each module costs time to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CONFIG = """
policy_model:
  responses_api_models:
    openai_model: {openai_base_url: "http://127.0.0.1:1/v1", openai_api_key: any, openai_model: m}
"""
ONLY_FOR_COMMANDS = {
    "rich",
    "openai_gateway.cli.main",
    "openai_gateway.collect",
    "openai_gateway.probe",
    "openai_gateway.simulator",
}
# What a feature needs that is off.
ONLY_IF_ASKED_FOR = {"opentelemetry", "redis", "asyncio", "sqlite3", "multiprocessing"}


def find_loaded(code: str, folder: Path) -> set[str]:
    """Return the modules that are loaded once `code` has run."""
    (folder / "config.yaml").write_text(CONFIG)
    environ = {**os.environ, "OPENAI_GATEWAY_CONFIG_PATHS": str(folder / "config.yaml")}
    program = f"import json, sys\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environ, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_worker_loads_nothing_of_the_commands_nor_of_features_that_are_off(tmp_path: Path) -> None:
    loaded = find_loaded("import openai_gateway.wsgi", tmp_path)
    assert "openai_gateway.app" in loaded
    assert loaded & (ONLY_FOR_COMMANDS | ONLY_IF_ASKED_FOR) == set()


def test_help_loads_neither_server_nor_config(tmp_path: Path) -> None:
    program = "from openai_gateway.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    loaded = find_loaded(program, tmp_path)
    assert "openai_gateway.cli.main" in loaded
    heavy = {"gevent", "gunicorn", "flask", "requests", "marshmallow", "omegaconf", "yaml", "msgspec", "rich", "ssl"}
    assert loaded & heavy == set()


def test_serve_loads_gunicorn_into_the_process_that_has_read_the_config_and_nothing_that_must_be_patched_first(
    tmp_path: Path,
) -> None:
    loaded = find_loaded("import openai_gateway.cli.serve, openai_gateway.cli.simulate", tmp_path)
    assert "openai_gateway.config.load" in loaded
    assert loaded & {"gevent", "urllib3", "requests", "flask", "openai_gateway.transport.pool"} == set()
