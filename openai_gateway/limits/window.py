"""How many calls may be in flight: at the start, and at an upstream that limits just that.

The strategy. Answers may take minutes, but refusals come at once: what was in flight for a moment without one is proven
to be let in. A new upstream is met with six calls, of all workers together. While these are all in flight, one more is
let in each time that nothing was refused for 10 ms, then one and a quarter, from 75 on a sixtieth: a hundred within a
second, a thousand within three, then any number. So an upstream refuses a few when its limit is met, and no rush
comes at once, whatever it limits. It is looks that count, by a timer, and each lets in little, for a worker that was
busy or stood still has refusals to read first. Whatever tells the upstream's limits opens the window at once.

An upstream that refuses calls for being too many at once is held at what was running then. One more is tried after five
seconds; refused, the next try comes after ten, and so on to a minute. A try that is not refused within a second is
followed by another, twice as soon each time, until the next refusal. Refused without a try, there is one less, or two
or four if it goes on for a second, to a fifth at a time: the limit fell. It grows only when it is full. After a refusal
nothing starts for 50 ms: answers and other refusals that are not read yet make more seem to be in flight than are.

Pure: the clock (monotonic seconds) is an argument, and so is the number of calls in flight. See also: limiter, blind
(upstreams that tell nothing).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_FIRST: Final = 6.0
_STEP: Final = 1.25
# In these parts, before it grows by steps and after that.
_FIRST_PART: Final = 6
_LAST_PART: Final = 60
LOOK_S: Final = 0.01
_MOST_LOOKS: Final = 2.0
# So many at once are no start any more.
_OPEN_AT: Final = 1024.0
_FIRST_TRY_S: Final = 5.0
_LAST_TRY_S: Final = 60.0
_TRIED_FOR_S: Final = 1.0
_TRIED_FOR_LEAST_S: Final = 0.03
_QUIET_S: Final = 0.05
_SETTLED_S: Final = 1.0
_MOST_CUT: Final = 0.2
_MOST_TOGETHER: Final = 32
_SOON_S: Final = 2.0
_FEWER_TIMES: Final = 3


class Window(msgspec.Struct, array_like=True, eq=False):
    """The most calls in flight; `math.inf` once it is open."""

    most: float = _FIRST
    is_held: bool = False
    # At the start: by how many it grows at most.
    _step: float = _STEP
    refused_at: float = -math.inf
    # When those were sent that were refused with the last one.
    _together: list[float] = []
    try_every_s: float = _FIRST_TRY_S
    _try_at: float = math.inf
    _try_for_s: float = _TRIED_FOR_S
    _is_trying: bool = False
    _cut: float = 1.0
    # When the limit was met, and until when nothing starts: what ended or was refused is to be read first.
    _met_at: float = -math.inf
    quiet_until: float = -math.inf
    # Hosts try one after the other: so much later than the first of them.
    turn_s: float = 0.0
    # Calls sent before were not counted with those of all who share the window now.
    _joined_at: float = -math.inf
    # Of refusals that name nothing: when the last was, how many were in flight then, how often they had been fewer.
    _held_back: tuple[float, int, int] = (-math.inf, 0, 0)

    def join(self, running: int, most: float, now: float) -> None:
        """Take in another process, which has so many in flight, of the `most` that it might have by itself."""
        self._joined_at, self._held_back = now, (-math.inf, 0, 0)
        if self.is_held:
            self.most += running
        else:
            self.most += most

    def leave_out(self) -> None:
        """Learn that one of those that another process had in flight as it joined was refused."""
        if self.is_held:
            self.most = max(1.0, self.most - 1)

    def begin_beside(self, others: int) -> None:
        """Begin with its part of the first calls, so many processes beginning at the same time."""
        if not self.is_held:
            self.most = min(self.most, max(1.0, _FIRST / (1 + others)))
            self._step = _STEP / (1 + others)

    def open(self) -> None:
        """Let in any number: the upstream's limits are told otherwise."""
        self.most, self.is_held, self.quiet_until = math.inf, False, -math.inf

    def look(self, running: int, looks: float = 1.0) -> bool:
        """Learn that a call still waits: what came until the look before has been read. Tell whether that counts.

        `looks` is the time since the one before, over that between two looks.
        """
        if running < self.most or self.is_held:
            return False
        step = self._step * min(max(1.0, looks), _MOST_LOOKS)
        step = max(min(self.most / _FIRST_PART, step), self.most / _LAST_PART)
        self.most += step if self.most < _OPEN_AT else math.inf
        return True

    @property
    def is_open(self) -> bool:
        """Tell whether it lets in any number."""
        return self.most == math.inf

    def begin_try(self, running: int, now: float) -> bool:
        """Let one more go than may, if it is time to try that, and the window is just full."""
        if not self.is_held or now < self._try_at or running >= self.most + 1:
            return False
        self._try_for_s = _TRIED_FOR_S if not self._is_trying else max(self._try_for_s / 2, _TRIED_FOR_LEAST_S)
        self._is_trying = True
        self._try_at = now + self._try_for_s
        self.most += 1
        return True

    def wait_s(self, now: float) -> float:
        """Return when a full window may have room, if no call ends before."""
        if now < self.quiet_until:
            return self.quiet_until - now
        return max(LOOK_S, self._try_at - now) if self.is_held else LOOK_S

    def cannot_explain(self, sent_at: float, running: int, now: float) -> bool:
        """Tell whether calls are refused again and again with fewer in flight than passed a moment ago, or none."""
        if sent_at < self._joined_at:
            return False
        at, most, times = self._held_back
        if now - at > _SOON_S:
            self._held_back = (now, running, 0)
        elif sent_at > at and (running < most or not running):
            self._held_back = (now, running, times + 1)
        return self._held_back[2] >= _FEWER_TIMES

    def refuse(self, sent_at: float, running: int, now: float) -> None:
        """Learn that a call was refused because of the others, `running` of them, that were in flight."""
        if sent_at < self._joined_at:
            return
        if self.is_held and sent_at <= self.refused_at:
            # Under way together with others: those of them that were sent earlier ran as little as this one did.
            let_in = running - sum(earlier < sent_at for earlier in self._together)
            self.most = max(1.0, min(self.most, let_in))
            self._together = [*self._together[-_MOST_TOGETHER:], sent_at]
            return
        if not self.is_held:
            self.most, self.is_held = float(max(1, running)), True
        else:
            fewer = 1.0
            if self._is_trying:
                self.try_every_s = min(2 * self.try_every_s, _LAST_TRY_S)
            elif now - self.refused_at < _SOON_S and now - self._met_at > _SETTLED_S:
                fewer, self._cut = self._cut, min(2 * self._cut, max(1.0, _MOST_CUT * self.most))
            self.most = max(1.0, min(math.floor(self.most - fewer), running))
        if self._is_trying or now - self.refused_at >= _SOON_S:
            self._cut, self._met_at = 1.0, now
        # If it may be a rate, each moment in which calls end has more of them refused together after it.
        self.quiet_until = now + _QUIET_S * 0.5 ** self._held_back[2]
        self._is_trying = False
        self.refused_at, self._together = now, [sent_at]
        self._try_at = now + self.try_every_s + self.turn_s

    def take_turn(self, turn_s: float) -> None:
        """Try so much later than the first host; if that is less than before, from the next refusal on."""
        if turn_s > self.turn_s:
            # Not later than after a refusal: turns may change again and again.
            latest = self.refused_at + self.try_every_s + turn_s
            self._try_at = max(self._try_at, min(self._try_at + turn_s - self.turn_s, latest))
        self.turn_s = turn_s

    def hear(self, refused_at: float, try_every_s: float, running: int, now: float) -> None:
        """Learn that another host was refused, or a try of it: this one would be, too."""
        if self.is_held and refused_at > self.refused_at:
            self._is_trying = False
            self.try_every_s = max(self.try_every_s, try_every_s)
            self._try_at = refused_at + self.try_every_s + self.turn_s
        elif not self.is_held and not self.is_open and now - refused_at < _SOON_S:
            self.most, self.is_held = float(max(1, running)), True
            self._met_at, self.refused_at = now, refused_at
            self._try_at = refused_at + self.try_every_s + self.turn_s
