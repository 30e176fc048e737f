"""Has the calls of rollouts captured before their answers' last bytes go out, without holding up anybody else.

Whoever reads a rollout's captures does so milliseconds after its last answer, so the line has to be there first: the
call itself waits for it. Bodies of megabytes and slow disks must not stop the worker meanwhile, so the work is done in
a thread. A call waits for so long at most; then, and while that thread is still at work (a disk that doesn't answer),
calls are not captured but counted.

See also: capture (which makes and writes the lines), upstream.recorder (which says when).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from openai_gateway.accounting.capture import Captures
from openai_gateway.wire.call import CallRecord

_Result = TypeVar("_Result")
_THREADS: Final = 2
_WAIT_S: Final = 10.0
# A file's lock is held for as long as a write takes.
_LOCK_TRIES: Final = 20
_LOCK_WAIT_S: Final = 0.02


class ServerCapturer:
    """Captures the calls of one server."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._pool: ThreadPool | None = None
        self._late: AsyncResult[Any] | None = None

    def capture(self, record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> None:
        """Capture a call; on return its line is there, or its rollout is marked as incomplete."""
        rollout_id = record.rollout_id or ""
        try:
            line = self._run(lambda: self._captures.to_line(record, request, answer, is_stream=is_stream))
            self._append(rollout_id, line)
        # Whatever it is: a call that can't be captured is answered all the same.
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) else None
            self._captures.count_lost(rollout_id, why or str(error) or type(error).__name__)
            with contextlib.suppress(Exception):
                self._run(lambda: self._captures.mark_incomplete(rollout_id))

    def _append(self, rollout_id: str, line: bytes) -> None:
        for _ in range(_LOCK_TRIES):
            try:
                return self._run(lambda: self._captures.append(rollout_id, line))
            except BlockingIOError:
                gevent.sleep(_LOCK_WAIT_S)
        raise TimeoutError("another process holds its lock")

    def _run(self, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns, in a thread. Raises what it raises, TimeoutError if it doesn't return."""
        if self._late is not None and not self._late.ready():
            raise TimeoutError("the disk does not answer")
        job: AsyncResult[_Result | Exception] | None = None
        self._pool = self._pool or ThreadPool(_THREADS)
        with gevent.Timeout(_WAIT_S, False):  # type: ignore[arg-type]
            job = self._pool.spawn(_try, work)
            job.wait()
        if job is None or not job.ready():
            self._late = job
            raise TimeoutError("the disk does not answer")
        result = job.get()
        if isinstance(result, Exception):
            raise result
        return cast(_Result, result)


def _try(work: Callable[[], _Result]) -> _Result | Exception:
    """Return what `work` returns, or raises: gevent prints a traceback of whatever its threads raise."""
    try:
        return work()
    except Exception as error:
        return error
