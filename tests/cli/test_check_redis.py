"""`openai-gateway check` says in one line whether hosts can share limits."""

from __future__ import annotations

from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from openai_gateway.cli.main import main
from tests.support.processes import run_simulator, to_config
from tests.support.redis_server import needs_redis, run_redis

pytestmark = needs_redis


def _check(folder: Path, url: str, redis_url: str) -> Result:
    config = yaml.safe_load(to_config(url, {"limits_url": redis_url, "openai_model": "gpt-5-mini"}))
    (folder / "gateway.yaml").write_text(yaml.safe_dump(config))
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(folder / "gateway.yaml"), "OPENAI_GATEWAY_OVERRIDES": None}
    return CliRunner(env=environ).invoke(main, ["check", "--api", "responses"])


def test_redis_that_answers_is_a_line_and_one_that_does_not_a_failure_with_its_cure(tmp_path: Path) -> None:
    with run_simulator(tmp_path) as simulator, run_redis(tmp_path, "pass-of-redis") as redis:
        result = _check(tmp_path, simulator.url, redis.url)
        assert result.exit_code == 0, result.output
        assert "answers; hosts share limits by it" in result.output
        wrong = _check(tmp_path, simulator.url, redis.url.replace("pass-of-redis", "wrong-of-redis"))
    assert wrong.exit_code == 1
    assert "it refuses the user or password" in wrong.output
    assert "each host goes by itself" in wrong.output
    assert "of-redis" not in result.output + wrong.output
