"""Who wants a call's answer beside its client: as a protocol, for `upstream` knows nothing of what is made of it.

See also: recordings, which keep answers and hand them to others.
"""

from __future__ import annotations

from typing import Protocol

from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.tail import Tail
from openai_gateway.wire.head import Head, Header


class Follower(Protocol):
    """Follows one call; `added_headers` go to its client."""

    def to_tail(self, head: Head) -> Tail:
        """Return what takes the body as it goes by."""

    @property
    def added_headers(self) -> list[Header]:
        """What the client is told."""

    def is_awaited(self) -> bool:
        """Tell whether the answer is wanted though the client has left."""

    def end(self, progress: Progress) -> None:
        """Take what became of the call; called once, when it is over."""
