"""gunicorn's settings for thousands of long calls: `gunicorn -c python:openai_gateway.server.settings`.

HOST, PORT, WEB_CONCURRENCY and GRACEFUL_TIMEOUT in the environment change the most usual ones. See also: wsgi (what is
served).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from openai_gateway.accounting.shared_files import remove_dead
from openai_gateway.server import kept_config, open_files
from openai_gateway.server.master import adopt_master
from openai_gateway.server.stderr import drop_stderr

bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or '8000'}"
worker_class = "openai_gateway.server.worker.Worker"
# The cap on upstream calls is per worker; one worker is enough for thousands of calls in flight.
workers = int(os.environ.get("WEB_CONCURRENCY") or "1")
# Connections above this wait silently, health checks too: far above any expected load.
worker_connections = 10_000
# Connections that arrive while the worker is busy wait in the kernel, not in vain.
backlog = 4096
# A worker that doesn't beat for so long is killed; gevent workers beat from their own greenlet, so calls may be longer.
timeout = 120
# SIGTERM and SIGHUP let calls in flight finish for so long; the default of 30 s cuts long answers.
graceful_timeout = int(os.environ.get("GRACEFUL_TIMEOUT") or "900")
# Clients reuse connections, a new one for each call costs 18 % of the throughput; a balancer in front keeps them for
# 60 s, and must be the one that ends them.
keepalive = 75
# One line a failed call is logged by the gateway itself; gunicorn's own access log costs 18 % of the throughput.
accesslog = None
# gunicorn 27 would open a control socket in the home folder.
control_socket_disable = True
# Big enough for the SDKs' headers and long bearer tokens.
limit_request_field_size = 16_380


def on_starting(server: Any) -> None:
    """Read the config once, before any worker is started; a bad one ends here, with one message and exit code 2."""
    open_files.raise_limit()
    problem = None if kept_config.is_read() else kept_config.read()
    if problem is not None:
        print(problem, file=sys.stderr, flush=True)
        sys.exit(2)
    drop_stderr()
    adopt_master(server)


def on_reload(server: Any) -> None:
    """Read the config again on SIGHUP; a bad one is reported, and the last good one serves on."""
    problem = kept_config.read()
    if problem is not None:
        server.log.error("%s\nThe last good config stays in use.", problem)


def pre_exec(server: Any) -> None:
    """Mend, on SIGUSR2, the command line of the next master, in the process that is about to become it."""
    python, script, *given = server.START_CTX["args"]
    if Path(script).name == "__main__.py":
        # What was started as `python -m gunicorn`, as `serve` is, must be again: as a script, its folder would come
        # first on the path, where its `http` hides Python's.
        script = "-mgunicorn"
    # The socket that `serve` has opened is known to gunicorn by another number now, which it hands down itself.
    server.START_CTX["args"] = [python, script, *(part for part in given if not part.startswith("--bind=fd://"))]


def on_exit(server: Any) -> None:
    """Remove the folder that the workers shared their totals in: nobody reads it any more."""
    remove_dead(Path(tempfile.gettempdir()), also=os.getpid())
