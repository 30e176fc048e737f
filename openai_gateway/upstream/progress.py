"""What is known of a call while it is under way.

See also: recorder (the record made of it), limits.queued_call (what the limits know of it).
"""

from __future__ import annotations

import msgspec

from openai_gateway.errors import GatewayError
from openai_gateway.limits.queued_call import QueuedCall
from openai_gateway.wire.head import Head
from openai_gateway.wire.tail import Tail


class Progress(QueuedCall):
    """The state of one call; `head` is None until the answer's is in.

    `outcome` and `error` say how it went, as in CallRecord: its client is taken to have left until something else is
    known. `ended` is set when it is over; `tail` stays None if no answer of the upstream was relayed. `is_replayed`:
    the answer is a kept one, or another call's, so that nothing was paid for it. `is_read`: the upstream's
    answer was read to its end, whether or not its client got it.
    """

    last_attempt: float = 0.0
    status: int | None = None
    head: Head | None = None
    outcome: str = "client_gone"
    error: GatewayError | None = None
    tail: Tail | None = None
    ended: float = 0.0
    is_replayed: bool = False
    is_read: bool = False
    is_captured: bool = False

    def drop_body(self) -> None:
        """Let go of the request's body, which a stream that may last for hours doesn't need."""
        self.call = msgspec.structs.replace(self.call, body=None)
