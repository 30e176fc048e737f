"""What is charged is what the upstream was sent, however often that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from tests.support.ledgers import read_ledger
from tests.support.processes import eventually, run_gateway
from tests.support.upstreams import PATHS, Conversation, run_upstream, to_answer, to_request_body

# Such a cap has the workers share the file of charges from the start.
SETTINGS: dict[str, Any] = {"max_concurrent_requests_total": 4, "max_retries": 1}


def _call(url: str) -> int:
    return requests.post(url + PATHS["chat"], json=to_request_body("chat"), timeout=90).status_code


def test_request_that_went_out_twice_is_charged_twice(tmp_path: Path) -> None:
    """The upstream may have counted both."""

    def script(talk: Conversation) -> None:
        while talk.read_request() is not None:
            if len(talk.seen) == 2:
                talk.reset()
                return
            talk.send(to_answer(b"{}"))

    environ = {"TMPDIR": str(tmp_path)}
    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, SETTINGS, environ=environ) as gateway:
        assert [_call(gateway.url) for _ in range(2)] == [200, 200]
        assert len(upstream.requests) == 3
        # The call may end a moment after its client has the answer.
        eventually(lambda: read_ledger(tmp_path, upstream.url)[::2] == (3, 0))


def test_request_that_never_went_out_is_not_charged(tmp_path: Path) -> None:
    with run_upstream(lambda talk: None) as upstream:
        nobody = upstream.url
    with run_gateway(tmp_path, nobody, SETTINGS, environ={"TMPDIR": str(tmp_path)}) as gateway:
        assert _call(gateway.url) == 502
        eventually(lambda: read_ledger(tmp_path, nobody)[::2] == (0, 0))
