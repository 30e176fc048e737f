"""The gateway's app with one more URL, `/__inspect`, that counts what a worker holds."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterable
from typing import Any

from greenlet import getcurrent, greenlet

from openai_gateway.wsgi import app as gateway

gateway.has_shortcut = os.environ.get("INSPECTED_WAY") != "flask"


def _is_held(thing: greenlet) -> bool:
    """Tell whether a greenlet lives, in this thread; gevent keeps its resolver's threads for 5 s after their use."""
    return not thing.dead and _find_root(thing) is _find_root(getcurrent())


def _find_root(thing: greenlet) -> greenlet:
    while thing.parent is not None:
        thing = thing.parent
    return thing


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/__inspect":
        return gateway(environ, start_response)
    gc.collect()
    states = [server.state() for server in gateway.extensions["openai_gateway"].values()]
    found = {
        "in_flight": sum(state.in_flight for state in states),
        "queued": sum(state.queued for state in states),
        "greenlets": sum(isinstance(thing, greenlet) and _is_held(thing) for thing in gc.get_objects()),
        "fds": len(os.listdir("/proc/self/fd")),
        "pid": os.getpid(),
    }
    body = json.dumps(found).encode()
    start_response("200 OK", [("content-type", "application/json"), ("content-length", str(len(body)))])
    return [body]
