"""How a worker that leaves has its master start another: by a byte where it reads one, by a signal if it may."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from openai_gateway.server.master import ask_for_another


@pytest.mark.parametrize("may_send", [True, False])
def test_worker_whose_master_is_another_users_cannot_ask_for_another(
    may_send: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def kill(pid: int, number: int) -> None:
        if not may_send:
            raise PermissionError
        sent.append((pid, number))

    monkeypatch.setattr(os, "kill", kill)
    worker: Any = SimpleNamespace(ppid=7)
    assert ask_for_another(worker) == may_send
    assert sent == [(7, signal.SIGTTIN)] * may_send
