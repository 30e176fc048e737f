"""The gateway's app with two more URLs: `/__inspect` counts what a worker holds, `/__calls` the calls of Python's.

Calls are counted on the connection that asked, from one such request to its next, so that other greenlets don't count.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
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


_calls: Counter[str] = Counter()


def _count(frame: Any, event: str, arg: Any) -> None:
    if event == "call":
        code = frame.f_code
        _calls[f"{'/'.join(code.co_filename.split('/')[-2:])}:{code.co_name}"] += 1


def _count_calls() -> bytes:
    """Return what was counted, and count from here on."""
    # The calls before this may still have to be accounted for.
    for server in gateway.extensions["openai_gateway"].values():
        server.settle_records()
    sys.setprofile(None)
    counted = json.dumps(_calls).encode()
    _calls.clear()
    sys.setprofile(_count)
    return counted


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/__calls":
        body = _count_calls()
        start_response("200 OK", [("content-type", "application/json"), ("content-length", str(len(body)))])
        return [body]
    if environ["PATH_INFO"] != "/__inspect":
        return gateway(environ, start_response)
    gc.collect()
    states = [server.state() for server in gateway.extensions["openai_gateway"].values()]
    found = {
        "in_flight": sum(state.in_flight for state in states),
        "queued": sum(state.queued for state in states),
        "most_in_flight": [state.most_in_flight for state in states],
        "greenlets": sum(isinstance(thing, greenlet) and _is_held(thing) for thing in gc.get_objects()),
        "fds": len(os.listdir("/proc/self/fd")),
        "pid": os.getpid(),
    }
    body = json.dumps(found).encode()
    start_response("200 OK", [("content-type", "application/json"), ("content-length", str(len(body)))])
    return [body]
