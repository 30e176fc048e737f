"""How many files a process may have open: as many as the system allows, for each call holds two sockets.

See also: settings (where gunicorn's master raises it, for its workers too), worker (for those of plain gunicorn).
"""

from __future__ import annotations

import resource
from typing import Final

# Where the system sets no limit.
_ENOUGH: Final = 65_536


def raise_limit() -> None:
    """Allow this process, and those it starts, as many open files as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else max(soft, _ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
