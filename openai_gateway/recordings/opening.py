"""Opens what a config says of kept answers: one store a folder, which several servers may share.

A folder that can't be used costs the recordings, never the calls. See also: store, config.replay.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from openai_gateway.config import GatewayConfig
from openai_gateway.config.redact import mask_url
from openai_gateway.config.replay import write_replay_config
from openai_gateway.processes import start_of
from openai_gateway.recordings.recordings import JOIN, RECORD, REUSE, Recordings
from openai_gateway.recordings.store import Store

_log = logging.getLogger("openai_gateway")
_JOINED_S: Final = 60.0


def open_recordings(config: GatewayConfig, joined_folder: Path) -> dict[str, Recordings]:
    """Return the kept answers of the servers that have any, by name.

    `joined_folder` is for those who only wait for each other's calls; what is in it is not for long.
    """
    stores: dict[Path, Store] = {}
    found = {}
    for name, server in config.servers.items():
        mode = server.recordings or (JOIN if server.join_resent else None)
        if mode is None:
            continue
        folder = joined_folder if mode == JOIN else Path(server.recordings_dir or "")
        if folder not in stores:
            most_age_s = _JOINED_S if mode == JOIN else server.recordings_max_age_s
            stores[folder] = Store(folder, server.recordings_max_bytes, most_age_s)
            _open(stores[folder], mode, config)
        # Masked, so that a replay without the secret finds the same keys.
        base_url = mask_url(server.openai_base_url)
        found[name] = Recordings(
            stores[folder], mode, base_url, _make_run_name(), is_stateful_kept=server.record_stateful
        )
    return found


def _make_run_name() -> str:
    """Return the run of requests that name none: one for all workers of a master, until it ends."""
    master = os.getppid()
    return f"since the start of process {master} at {start_of(master)}"


def _open(store: Store, mode: str, config: GatewayConfig) -> None:
    try:
        store.open()
        if mode in (RECORD, REUSE):
            kept = [server for server in config.servers.values() if server.recordings_dir == str(store.folder)]
            write_replay_config(store.folder, kept)
    except OSError as error:
        _log.error("the folder of recordings %s can't be used: %s", store.folder, error.strerror or error)
