"""A kept answer on its way to a client: others get a turn meanwhile, and a client that has left is no error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from openai_gateway.blueprints.recorded import ReplayedAnswer
from openai_gateway.errors import Cancelled, ClientGone
from openai_gateway.recordings.kept import KeptAnswer
from openai_gateway.recordings.recordings import Hit
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.headers import RequestHeaders

PIECES = 2000


class Client:
    """Takes all at once."""

    def __init__(self) -> None:
        self.got = b""

    def offer(self, payload: bytes, *, is_last: bool) -> bytes:
        self.got += payload
        return b""


def _replay() -> ReplayedAnswer:
    kept = KeptAnswer(
        path="/x",
        status=200,
        reason="OK",
        headers=[("content-type", "text/event-stream")],
        body=b"data: 1\n\n" * PIECES,
        pieces=[9] * PIECES,
    )
    relay: Any = SimpleNamespace(make_own_headers=lambda progress: [], capture_whole=lambda progress: None)
    progress = Progress(Call(Api.CHAT, "POST", "/x", RequestHeaders(), None))
    return ReplayedAnswer(Hit(kept, 0.0, is_joined=False), relay, progress, CallWatch(Timeouts()), False)


def test_others_get_turns_while_a_client_takes_a_long_stream_as_fast_as_it_is_given() -> None:
    answer, client, turns = _replay(), Client(), 0

    def count() -> None:
        nonlocal turns
        while len(client.got) < 9 * PIECES:
            turns += 1
            gevent.sleep(0)

    other = gevent.spawn(count)
    answer.pump_into(client)  # type: ignore[arg-type]
    other.join()
    answer._watch.stop()
    assert client.got == b"data: 1\n\n" * PIECES
    assert turns > 1


def test_iterated_for_a_client_that_has_left_it_ends_as_a_broken_connection() -> None:
    answer = _replay()
    gevent.get_hub().loop.run_callback(gevent.getcurrent().throw, Cancelled(ClientGone()))
    with pytest.raises(ConnectionResetError):
        b"".join(answer)
    answer._watch.stop()
