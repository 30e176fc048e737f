"""Finds the worker of gunicorn's that runs this process, and makes it ours if it is gunicorn's own of gevent.

Under our settings it is ours from the start. See also: worker, master (which is adopted likewise), wsgi (who asks).
"""

from __future__ import annotations

import signal
from typing import Any, Final

from gunicorn.workers.base import Worker as BaseWorker
from gunicorn.workers.ggevent import GeventWorker

from openai_gateway.server.master import find_master
from openai_gateway.server.worker import Worker

_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class RefusedWorkerClass(Exception):
    """gunicorn runs a worker under which nothing here would work."""


def adopt_worker() -> Worker | None:
    """Return the worker that runs this process, made a Worker if it is gunicorn's own of gevent; None if there is none.

    To be called while it loads its app. A stop that came before it could hear of it is not lost. Raises
    RefusedWorkerClass.
    """
    worker: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(worker, BaseWorker):
        return None
    if type(worker) is GeventWorker:
        worker.__class__ = Worker
        # Signals were set up by GeventWorker; this handler is ours.
        signal.signal(signal.SIGTERM, worker.handle_exit)
    if not isinstance(worker, Worker):
        raise RefusedWorkerClass(
            f"The gateway needs gunicorn's gevent worker, and this is {type(worker).__name__}: start gunicorn with"
            f" '-k gevent', or with '-k {Worker.__module__}.{Worker.__qualname__}'."
        )
    if was_told_to_stop():
        worker.stop()
    return worker


def was_told_to_stop() -> bool:
    """Tell whether a signal to stop came between the fork and the worker's own handlers.

    Until then the master's handlers are in place, which put it into the child's copy of the master's queue, where
    nobody looks.
    """
    queue = getattr(find_master(), "SIG_QUEUE", None)
    came = set()
    while queue is not None and not queue.empty():
        came.add(queue.get_nowait())
    return not came.isdisjoint(_STOPS)
