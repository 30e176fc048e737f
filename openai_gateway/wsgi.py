"""The app that gunicorn's workers serve, made from the environment: `gunicorn -k gevent wsgi:app`.

Patches first; a bad config ends the worker with its one message, and gunicorn with it.
"""

# ruff: noqa: E402 (nothing may be imported before the patching)
from gevent import monkey

monkey.patch_all()

import atexit
import gc
import logging
import signal
import sys
from typing import Any, Final

from openai_gateway.accounting.log import configure_logging
from openai_gateway.accounting.shared_files import open_shared_files
from openai_gateway.app import GatewayApp, create_app
from openai_gateway.config import ConfigError
from openai_gateway.errors import Unavailable
from openai_gateway.server import master
from openai_gateway.server.worker import adopt_worker, close_idle
from openai_gateway.server.writer import start_draining
from openai_gateway.transport.watch import call_in_hub, cancel_all_in

GUNICORN_APP_LOAD_ERROR: Final = 4
_log = logging.getLogger("openai_gateway")
_MARGIN_S: Final = 2.0
_IDLE_S: Final = 1.0
_GC_THRESHOLDS: Final = (50_000, 20, 100)


def _make_app() -> GatewayApp:
    try:
        config = master.current()
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        # Any other code would make gunicorn start the worker again, for ever.
        raise SystemExit(GUNICORN_APP_LOAD_ERROR) from None
    server = config.servers[config.default_server]
    configure_logging(server.log_level, server.log_format)
    made = create_app(config)
    _attend_to_worker(made)
    atexit.register(made.snapshots.publish)
    # What is loaded now lives as long as the process: no collection need look at it, and calls make few cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return made


def _attend_to_worker(made: GatewayApp) -> None:
    """Do what needs gunicorn's worker, if there is one.

    Share this worker's totals with the other workers; warn if it listens beyond loopback without keys; have SIGTERM
    end calls with an error in time, which is shortly before gunicorn's master kills the worker.
    """
    handle_exit = signal.getsignal(signal.SIGTERM)
    worker: Any = getattr(handle_exit, "__self__", None)
    if not callable(handle_exit) or not hasattr(worker, "cfg"):
        return
    adopt_worker(worker)
    files = open_shared_files(worker.ppid)
    if files is not None:
        made.snapshots.share(files)
    if made.is_open_to_all and not all(_is_local(sock.getsockname()) for sock in worker.sockets):
        _log.warning("anybody who reaches this address can use the upstream key; gateway_api_keys would keep them out")
    graceful_s = float(worker.cfg.graceful_timeout)

    def on_term(number: int, frame: Any) -> None:
        made.is_draining = True
        start_draining()
        # A request that is on its way comes through before.
        call_in_hub(_IDLE_S, close_idle)
        cancel_all_in(graceful_s - min(_MARGIN_S, graceful_s / 2), _to_draining)
        handle_exit(number, frame)

    signal.signal(signal.SIGTERM, on_term)


def _is_local(address: Any) -> bool:
    return isinstance(address, str) or address[0] == "::1" or address[0].startswith("127.")


def _to_draining() -> Unavailable:
    return Unavailable("The gateway is shutting down.", retry_after_s=1)


app = _make_app()
