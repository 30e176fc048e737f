"""How many calls may be in flight: at the start, and at an upstream that limits just that.

The strategy. A new upstream is met with four calls, of all workers together. While these are all in flight, each answer
lets two more in, and they double in a third of a second without a refusal, one by one (answers may take minutes,
refusals come at once): a thousand in three seconds, then any number. Whatever tells the upstream's limits opens the
window at once.

An upstream that refuses calls for being too many at once is held at what was running then. One more is tried after five
seconds; refused, the next try comes after ten, and so on to a minute. A try that passes lets the window grow by one an
answer until the next refusal. Refused again within that time, the limit fell: the window is cut by a fifth at a time.
It grows only when it is full.

Pure: the clock (monotonic seconds) is an argument, and so is the number of calls in flight. See also: limiter, blind
(upstreams that tell nothing).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_FIRST: Final = 4.0
_MORE_AN_ANSWER: Final = 2.0
_DOUBLED_EVERY_S: Final = 0.35
# So many at once are no start any more.
_OPEN_AT: Final = 1024.0
_FIRST_TRY_S: Final = 5.0
_LAST_TRY_S: Final = 60.0
_CUT: Final = 0.8
# A refusal that soon after another is of calls that were under way together.
_SAME_EVENT_S: Final = 0.25
_SOON_S: Final = 2.0
_FEWER_TIMES: Final = 4


class Window(msgspec.Struct, array_like=True, eq=False):
    """The most calls in flight; `math.inf` once it is open."""

    most: float = _FIRST
    is_held: bool = False
    _full_since: float | None = None
    _refused_at: float = -math.inf
    _try_every_s: float = _FIRST_TRY_S
    _try_at: float = math.inf
    _is_growing: bool = False
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

    def open(self) -> None:
        """Let in any number: the upstream's limits are told otherwise."""
        self.most, self.is_held = math.inf, False

    @property
    def is_open(self) -> bool:
        """Tell whether it lets in any number."""
        return self.most == math.inf

    @property
    def was_full(self) -> bool:
        """Tell whether it was full when last asked, and is not held."""
        return self._full_since is not None

    def admits(self, running: int, now: float) -> bool:
        """Tell whether one more may go beside those running."""
        if running < self.most:
            self._full_since = None
            return True
        if not self.is_held:
            self._full_since = now if self._full_since is None else self._full_since
            grown = self.most * min(1.0, (now - self._full_since) / _DOUBLED_EVERY_S)
            if grown >= 1:
                self._full_since = now
                self.most = self.most + grown if self.most < _OPEN_AT else math.inf
        elif now >= self._try_at:
            self._try_at = math.inf
            self._is_growing = True
            self.most += 1
        return running < self.most

    def wait_s(self, now: float) -> float:
        """Return when a full window may have room, if no call ends before."""
        if self.is_held:
            return max(0.01, self._try_at - now)
        return max(0.002, _DOUBLED_EVERY_S / self.most)

    def learns_from_answer(self, running: int) -> bool:
        """Tell whether `answer` would change anything."""
        return self._full_since is not None or (running >= self.most and (self._is_growing or not self.is_held))

    def answer(self, running: int) -> None:
        """Learn that a call was answered and not refused, `running` being in flight with it."""
        if running < self.most:
            self._full_since = None
        elif not self.is_held:
            self.most += _MORE_AN_ANSWER
        elif self._is_growing:
            self.most += 1

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
        if self.is_held and sent_at <= self._refused_at:
            # Under way together with the one before: what was running with the first of them is what counts.
            self.most = max(1.0, min(self.most, running))
            return
        again_s = now - self._refused_at
        if not self.is_held:
            self.most, self.is_held = float(max(1, running)), True
        elif self._is_growing:
            self._try_every_s = min(2 * self._try_every_s, _LAST_TRY_S)
            self.most = max(1.0, min(self.most - 1, running))
        elif again_s < _SAME_EVENT_S or running < self.most:
            self.most = max(1.0, min(self.most - 1, running))
        else:
            self.most = max(1.0, math.floor(_CUT * self.most))
        self._is_growing = False
        self._refused_at = now
        self._try_at = now + self._try_every_s
