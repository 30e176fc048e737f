"""The app that gunicorn's workers serve, made from the environment: `gunicorn -k gevent wsgi:app`.

Patches first; a bad config ends the worker with its one message, and gunicorn with it. See also: app (what is
served), server.worker, server.settings.
"""

# ruff: noqa: E402 (nothing may be imported before the patching)
from gevent import monkey

monkey.patch_all()

import gc

# What is imported and made below stays, and hardly any of it is garbage: to look for that takes a fifth of a start.
gc.disable()

import atexit
import logging
import math
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, Final

from openai_gateway.accounting.log import configure_logging
from openai_gateway.accounting.shared_files import make_folder_name, open_shared_files
from openai_gateway.app import GatewayApp, create_app
from openai_gateway.blueprints.serving import SERVERS
from openai_gateway.config import ConfigError
from openai_gateway.errors import Unavailable
from openai_gateway.server import kept_config, writer
from openai_gateway.server.adoption import RefusedWorkerClass, adopt_worker
from openai_gateway.server.stderr import queue_stderr
from openai_gateway.server.worker import Worker
from openai_gateway.transport.dial import keep_alive
from openai_gateway.transport.watch import cancel_all_in

GUNICORN_APP_LOAD_ERROR: Final = 4
_log = logging.getLogger("openai_gateway")
_MARGIN_S: Final = 2.0
_GC_THRESHOLDS: Final = (50_000, 20, 100)
# Twice that is kept at most.
_LARGE_BYTES: Final = 4 * 1024 * 1024


def _make_app() -> GatewayApp:
    try:
        # Under `-k gevent`, gunicorn's own worker becomes ours here; under our settings it is ours from the start.
        worker = adopt_worker()
    except RefusedWorkerClass as refused:
        print(refused, file=sys.stderr, flush=True)
        raise SystemExit(GUNICORN_APP_LOAD_ERROR) from None
    if worker is not None:
        queue_stderr()
    try:
        return _make_app_for(worker)
    except Exception as error:
        is_config = isinstance(error, ConfigError)
        if worker is not None:
            worker.stand_by(_find_shared_counts(worker), str(error) if is_config else traceback.format_exc())
        if not is_config:
            raise
        print(error, file=sys.stderr, flush=True)
        # Any other code would make gunicorn start the worker again, for ever.
        raise SystemExit(GUNICORN_APP_LOAD_ERROR) from None


def _make_app_for(worker: Worker | None) -> GatewayApp:
    config = kept_config.current()
    server = config.servers[config.default_server]
    configure_logging(server.log_level, server.log_format)
    made = create_app(config)
    if worker is not None:
        _attend_to_worker(made, worker, server.tcp_keepalive_s)
    patience = [server.client_timeout_s for server in config.servers.values()]
    writer.sends.seconds = max(math.inf if seconds is None else seconds for seconds in patience)
    atexit.register(made.snapshots.publish)
    # What is loaded now lives as long as the process: no collection need look at it, and calls make few cycles.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    # glibc learns from a large block that is freed what is worth keeping. Without that, it gives the memory of each
    # large body back to the kernel, only to fetch it anew for the next, page by page.
    bytes(_LARGE_BYTES)
    gc.enable()
    return made


def _attend_to_worker(made: GatewayApp, worker: Worker, keepalive_s: float | None) -> None:
    """Do what needs the worker.

    Share the totals with the other workers; warn if it listens beyond loopback without keys; on a stop, end calls with
    an error in time, which is shortly before gunicorn's master kills the worker.
    """
    files = open_shared_files(worker.ppid)
    if files is not None:
        made.snapshots.share(files)
        worker.balance(_find_shared_counts(worker))
    for listener in worker.sockets:
        # What is set here holds for the connections that it accepts.
        if isinstance(listener.getsockname(), tuple):
            keep_alive(listener, keepalive_s)
    made.share_limits(worker.cfg.workers)
    if made.is_open_to_all and not all(_is_local(sock.getsockname()) for sock in worker.sockets):
        _log.warning("anybody who reaches this address can use the upstream key; gateway_api_keys would keep them out")
    graceful_s = float(worker.cfg.graceful_timeout)

    def stop() -> None:
        cancel_all_in(graceful_s - min(_MARGIN_S, graceful_s / 2), _make_draining_error)

    def hand_limits_on() -> None:
        for server in made.extensions[SERVERS].values():
            server.hand_limits_on()

    worker.on_stop, worker.on_give_way = stop, hand_limits_on
    if worker.age > worker.cfg.workers:
        # It takes another's place, and runs beside it for a while.
        hand_limits_on()


def _find_shared_counts(worker: Worker) -> Path:
    """Return the file in which the workers of a master tell each other how many connections they have."""
    return Path(tempfile.gettempdir(), make_folder_name(worker.ppid), "connections")


def _is_local(address: Any) -> bool:
    return isinstance(address, str) or address[0] == "::1" or address[0].startswith("127.")


def _make_draining_error() -> Unavailable:
    return Unavailable("The gateway is shutting down.", retry_after_s=1)


app = _make_app()
