"""What the limits know of one call, from its coming to its answer.

See also: admission (which admits it).
"""

from __future__ import annotations

from time import monotonic

import msgspec

from openai_gateway.limits.attempts import Tries
from openai_gateway.limits.order import Place, Rollout
from openai_gateway.limits.slots import Admitted
from openai_gateway.wire.call import Call


class QueuedCall(msgspec.Struct):
    """What the limits know of a call: what it was `admitted` with, what it waited for, how it was refused.

    `queue_wait_s` sums up what it waited in the queue, `queue_reason` is what for, at last: slot, rate, tokens, window,
    or pause. `retries` has the reason of each further attempt, a status or an error code; `sends` is how often the
    last one went out.
    """

    call: Call
    request_bytes: int = 0
    started: float = msgspec.field(default_factory=monotonic)
    admitted: Admitted | None = None
    queue_wait_s: float = 0.0
    queue_reason: str = ""
    rollout: Rollout | None = None
    place: Place | None = None
    tries: Tries = msgspec.field(default_factory=Tries)
    attempts: int = 0
    sends: int = 0
    retries: tuple[str, ...] = ()

    def find_place_again(self, rollout: Rollout, tokens: float, token_factor: float) -> Place:
        """Return the place of a call that was refused, which was sent as one of so many tokens.

        What is known of the estimate by now holds for this call, too: as low as before, it would be refused again.
        """
        if self.place is None:
            self.place = Place(rollout, tokens, True, self.call.client or "", self.call.share)
        self.place.tokens *= token_factor / self.tries.token_factor
        self.tries.token_factor = token_factor
        self.place.is_refused = self.tries.goes_first
        return self.place
