"""The charges that a gateway's workers have in the file that they share, and whether they are right."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import msgspec

from openai_gateway.limits.attempts import ConfiguredLimits
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.limits_file import LimitsFile
from openai_gateway.limits.sharing import derive_limits_path


class Accounts(msgspec.Struct):
    """What became of calls, what is held when all are over, and the charges, as upstream and ledger count them."""

    outcomes: Counter[str]
    held: dict[str, float]
    charged: dict[str, float]
    counted: dict[str, float]

    @property
    def is_exact(self) -> bool:
        """Tell whether nothing is held, and both count the same."""
        return not any(self.held.values()) and self.charged == self.counted


def read_ledger(temporary: Path, upstream_url: str) -> tuple[float, float, int]:
    """Return the requests and tokens charged, and the calls in flight, of a gateway whose `TMPDIR` is given."""
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        path = derive_limits_path(f"{upstream_url}/v1", "sk-upstream-key", "the-model")
    finally:
        tempfile.tempdir = before
    file, limiter = LimitsFile(path), Limiter(ConfiguredLimits(), 0.0)
    known = file.begin()
    file.end(None)
    if known is not None:
        limiter.take(known)
    return limiter.requests.spent, limiter.tokens.spent, file.count_all()
