"""Starts the gateway where NeMo Gym would start its `openai_model` server, with Gym's own config, host and port.

Gym finds this folder before its own if NEMO_GYM_EXTRA_ROOTS (or --search-dir) names the folder `gym` above it.
OPENAI_GATEWAY_HOME is the gateway's virtual environment.
"""

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

# A collection waits for a rate limit as long as it takes; what the config says stays.
PATIENCE = {"max_retries": 100, "retry_budget_s": 3600, "retry_ratio": None}


def main() -> None:
    """Become the gateway that serves the server that Gym names."""
    # Gym hands every server the merged config of the run, and the name of the one to be.
    name = os.environ["NEMO_GYM_CONFIG_PATH"]
    config = OmegaConf.create(os.environ["NEMO_GYM_CONFIG_DICT"])
    # The files it was merged from need not be read again, and their paths count from another folder.
    config.pop("config_paths", None)
    settings = config[name]["responses_api_models"]["openai_model"]
    gateway = Path(os.environ.get("OPENAI_GATEWAY_HOME", "/opt/openai-gateway"), "bin", "openai-gateway")
    if not gateway.is_file():
        sys.exit(f"{gateway} is not there; set OPENAI_GATEWAY_HOME to the virtual environment that has openai_gateway.")
    if config.get("dry_run"):
        # Gym only sets servers up then, and waits for each to end.
        return
    for key, value in PATIENCE.items():
        settings.setdefault(key, value)
    # It holds keys: kept in memory only, where SIGHUP finds it again, too.
    held = os.memfd_create("nemo_gym_config", flags=0)
    os.write(held, OmegaConf.to_yaml(config).encode())
    path = f"/proc/self/fd/{held}"
    os.environ["OPENAI_GATEWAY_SERVER"] = name
    arguments = ["serve", "--config", path, "--host", str(settings["host"]), "--port", str(settings["port"])]
    # Gym's environment is not the gateway's.
    os.environ.pop("PYTHONPATH", None)
    os.execv(gateway, [str(gateway), *arguments, "--workers", str(settings.get("num_workers") or 1)])


if __name__ == "__main__":
    main()
