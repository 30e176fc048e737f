"""Whether this worker is draining: it takes no more connections, and each one that is open ends with its next answer.

The one place that knows, for the whole process. The worker starts it when it is told to stop; answers' heads, /readyz
and the viewers of the status page ask. It never ends but with the process. See also: worker (which starts it),
page.feed.
"""

from __future__ import annotations

is_on = False


def start() -> None:
    """Begin to drain."""
    global is_on
    is_on = True
