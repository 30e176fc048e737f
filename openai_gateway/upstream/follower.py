"""Who wants a call's answer beside its client: as a protocol, for `upstream` knows nothing of what is made of it.

See also: recordings (which keep answers and hand them to others).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.head import Head, Header
from openai_gateway.wire.tail import Tail

_log = logging.getLogger("openai_gateway")


class Follower(Protocol):
    """Follows one call; `added_headers` go to its client."""

    def make_tail(self, head: Head) -> Tail:
        """Return what takes the body as it goes by."""

    @property
    def added_headers(self) -> list[Header]:
        """What the client is told."""

    def is_awaited(self) -> bool:
        """Tell whether the answer is wanted though the client has left."""

    def end(self, progress: Progress) -> None:
        """Take what became of the call; called once, when it is over."""


def follow_end(follower: Follower, end: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return what ends a call that is followed: the follower first, then `end`."""

    def end_followed(progress: Progress) -> None:
        try:
            # Before `end`: only the follower knows what the answer cost, and the client may ask for it again at once.
            follower.end(progress)
        except Exception:
            _log.exception("a call's answer could not be handed on")
        end(progress)

    return end_followed
