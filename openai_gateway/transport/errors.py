"""What can go wrong with a peer, in sentences that lack their subject: whoever called puts the peer's name before it.

`f"The upstream {error}."`, say. See also: upstream.attempt (which of them are worth another try).
"""

from __future__ import annotations


class PeerError(Exception):
    """The peer gave no usable answer; the text goes on after its name, such as "sent nothing for 5 s"."""


class Unreachable(PeerError):
    """There was no connection, or it broke before the answer's first byte."""


class NoDescriptor(PeerError):
    """The peer was not asked at all: this process has no file descriptor left for a connection."""


class BadAnswer(PeerError):
    """What came is not a complete HTTP answer."""


class NotHttp(BadAnswer):
    """What came has no head of HTTP/1.x: the peer is something else, and will be the next time."""


class TimedOut(PeerError):
    """The peer did not accept, answer or go on in time."""
