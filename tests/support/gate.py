"""An upstream that counts the calls it has in flight, and callers of whom some may get no answer."""

from __future__ import annotations

import threading
import time

import requests

from tests.support.upstreams import PATHS, Conversation, to_answer, to_request_body


class Gate:
    """Holds each call until it is open, and then for a moment; `most` is how many it ever held at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.most = self.done = 0
        self.is_open = threading.Event()

    def script(self, talk: Conversation) -> None:
        while talk.read_request() is not None:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            if not self.is_open.wait(120):
                return
            time.sleep(0.03)
            with self.lock:
                self.running -= 1
                self.done += 1
            talk.send(to_answer(b"{}"))


def call_for_status(url: str) -> int:
    """Make a call to a gateway; return its status, 0 if the connection broke."""
    try:
        return requests.post(url + PATHS["responses"], json=to_request_body("responses"), timeout=90).status_code
    except requests.RequestException:
        return 0
