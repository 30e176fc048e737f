"""What of gunicorn's our worker was made after: when one of these fails, read what changed there, and follow it."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.http import wsgi
from gunicorn.http.message import Message, Request
from gunicorn.workers.base import Worker
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

# By our module: what it replaces, or relies on the order of.
SOURCES: dict[str, tuple[Any, str]] = {
    "connection: AsyncWorker.handle": (AsyncWorker.handle, "6eb3b127e6ba7e84"),
    "connection: AsyncWorker.handle_request": (AsyncWorker.handle_request, "913e17a9542aa70d"),
    "connection: GeventWorker.handle": (GeventWorker.handle, "0ea41a12296421e4"),
    "connection: GeventWorker.handle_request": (GeventWorker.handle_request, "46750b15c6e4d4b4"),
    "connection: wsgi.create": (wsgi.create, "2c35d4a2dc629ede"),
    "worker: GeventWorker.run": (GeventWorker.run, "50119854ef8be38c"),
    "worker: Worker.init_process": (Worker.init_process, "114caccd7a0e3c21"),
    "worker: Worker.init_signals": (Worker.init_signals, "65442e0602b05f37"),
    "worker: Arbiter.signal": (Arbiter.signal, "8b193e95e16aa270"),
    "worker: Arbiter.handle_ttou": (Arbiter.handle_ttou, "3abf8f0696cb040e"),
    "arbiter: Arbiter.reload": (Arbiter.reload, "fec344d2f774ee32"),
    "arbiter: Arbiter.manage_workers": (Arbiter.manage_workers, "518f2dd040ef6809"),
    "arbiter: Arbiter.reap_workers": (Arbiter.reap_workers, "ebcf4187e9ebf378"),
    "settings: Arbiter.reexec": (Arbiter.reexec, "7d8134145fffe417"),
    "successors: Arbiter.stop": (Arbiter.stop, "7138b6afd9c46ae0"),
    "heads: Message.__init__": (Message.__init__, "14b64a40f29fd0c4"),
    "heads: Message.set_body_reader": (Message.set_body_reader, "e3ba33f5ac7ca542"),
    "heads: Request._parse_python": (Request._parse_python, "ed07ffec51784055"),
    "refusals: Worker.handle_error": (Worker.handle_error, "75426448389bbac9"),
    "writer: Response.start_response": (wsgi.Response.start_response, "59799d9ff13635c1"),
    "writer: Response.write": (wsgi.Response.write, "a13659ff072c00e1"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_gunicorns_source_is_the_one_ours_was_made_after(name: str) -> None:
    what, digest = SOURCES[name]
    assert hashlib.sha256(inspect.getsource(what).encode()).hexdigest()[:16] == digest
