"""The files for deployment agree with each other, with gunicorn's settings, and with what the gateway reads."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_gateway.app import create_app
from openai_gateway.config import GatewayConfig, load_config
from tests.support.processes import ROOT

DEPLOY = ROOT / "conf" / "deploy"
SYSTEMD = DEPLOY / "systemd"
UNIT = (SYSTEMD / "openai-gateway.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]
MANIFESTS = {
    document["kind"]: document
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


def _in_unit(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "upstream-key").write_text("sk-upstream\n")
    (folder / "client-keys").write_text("sk-client\n")
    return folder


def _load(path: Path, environ: dict[str, str]) -> GatewayConfig:
    return load_config({"OPENAI_GATEWAY_CONFIG_PATHS": str(path), **environ}, cwd=ROOT)


def test_config_of_a_deployment_loads_with_files_for_its_keys(tmp_path: Path, keys: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(keys), "STATE_DIRECTORY": str(tmp_path), "POLICY_MODEL_NAME": "m"}
    server = _load(DEPLOY / "gateway.yaml", environ).servers["policy_model"]
    assert (server.openai_base_url, server.openai_model) == ("https://api.openai.com/v1", "m")
    assert (server.openai_api_key_file, server.gateway_api_keys_file) == (
        str(keys / "upstream-key"),
        str(keys / "client-keys"),
    )
    assert server.usage_log == str(tmp_path / "usage.jsonl")
    assert server.max_concurrent_requests == 256
    again = _load(
        DEPLOY / "gateway.yaml", {**environ, "MAX_CONCURRENT_REQUESTS": "7", "POLICY_BASE_URL": "http://h/v1"}
    )
    assert again.servers["policy_model"].max_concurrent_requests == 7
    assert again.servers["policy_model"].openai_base_url == "http://h/v1"


def test_config_in_the_manifests_loads(tmp_path: Path, keys: Path) -> None:
    text = MANIFESTS["ConfigMap"]["data"]["gateway.yaml"]
    assert text.count("/run/secrets/") == 2
    (tmp_path / "gateway.yaml").write_text(text.replace("/run/secrets", str(keys)))
    server = _load(tmp_path / "gateway.yaml", {}).servers["policy_model"]
    most = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    assert int(most["metrics"][0]["pods"]["target"]["averageValue"]) < (server.max_concurrent_requests or 0)
    assert f"has at most {most['maxReplicas']}" in text


def test_who_stops_the_gateway_waits_longer_than_it_drains() -> None:
    drains_s = int(re.search(r"GRACEFUL_TIMEOUT=(\d+)", UNIT)[1])
    assert int(_in_unit("TimeoutStopSec")[0]) > drains_s
    assert int(COMPOSE["stop_grace_period"].rstrip("s")) > int(COMPOSE["environment"]["GRACEFUL_TIMEOUT"])
    environ = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    before_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["terminationGracePeriodSeconds"] > before_s + int(environ["GRACEFUL_TIMEOUT"])


def test_nginx_lets_idle_connections_go_before_gunicorn_closes_them() -> None:
    settings = runpy.run_path(str(ROOT / "conf" / "gunicorn.conf.py"))
    kept_s = int(re.search(r"keepalive_timeout (\d+)s;", (DEPLOY / "nginx.conf").read_text())[1])
    assert kept_s < settings["keepalive"]


def test_probes_ask_for_what_is_served(tmp_path: Path, keys: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(keys), "STATE_DIRECTORY": str(tmp_path), "POLICY_MODEL_NAME": "m"}
    client = create_app(_load(DEPLOY / "gateway.yaml", environ)).test_client()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert client.get(CONTAINER[probe]["httpGet"]["path"]).status_code == 200
    (path,) = re.findall(r"http://127\.0\.0\.1:\{[^}]*\}(/\w+)", DOCKERFILE)
    assert client.get(path).status_code == 200


def test_manifests_name_each_other() -> None:
    labels = {"app": "openai-gateway"}
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "openai-gateway"
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    assert MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]


def test_image_has_what_it_starts_with(tmp_path: Path) -> None:
    copied: list[str] = []
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
        copied += [source.removeprefix("./") for source in sources]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in copied} == {line for line in ignored if line.startswith("!")}
    secrets = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["secrets"].values()
    assert all(secret["file"].startswith("./secrets/") for secret in secrets)
    assert "conf/deploy/secrets" in ignored
    assert "/conf/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    command = yaml.safe_load(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
    assert command == _in_unit("ExecStart")[0].removeprefix("/opt/openai-gateway/bin/").split()
    user = re.search(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[1]
    assert POD["securityContext"]["runAsUser"] == int(user) > 0


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not installed (Debian's package systemd)")
def test_systemd_understands_the_units_and_finds_the_service_well_shut_in(tmp_path: Path) -> None:
    for path in SYSTEMD.iterdir():
        # What it starts must be there to be verified.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/openai-gateway/bin/gunicorn", "/bin/true"))
    service = str(tmp_path / "openai-gateway.service")
    verified = _analyze("verify", "--man=no", service, str(tmp_path / "openai-gateway.socket"))
    assert verified.returncode == 0, verified.stderr
    # Other units of this machine may be complained about, too.
    assert "openai-gateway" not in verified.stdout + verified.stderr
    rated = _analyze("security", "--offline=true", "--threshold=20", "--no-pager", service)
    assert rated.returncode == 0, rated.stdout


def _analyze(*arguments: str) -> Any:
    assert SYSTEMD_ANALYZE is not None
    return subprocess.run([SYSTEMD_ANALYZE, *arguments], capture_output=True, text=True, timeout=60, check=False)
