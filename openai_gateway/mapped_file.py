"""Maps a file that several processes write to.

See also: limits.limits_file, server.balance, accounting.spend_file (whose files these are).
"""

from __future__ import annotations

import mmap
import os


def map_file(fd: int, size: int) -> mmap.mmap:
    """Map an open file of so many bytes, of zeros if it was smaller. Raises OSError, also if the disk has no room."""
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, 0)
        # What is written through the mapping of a file with holes would end the process (SIGBUS) on a full disk.
        os.posix_fallocate(fd, 0, size)
    return mmap.mmap(fd, size)
