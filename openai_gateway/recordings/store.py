"""One folder of kept answers, as one process sees it: its index, its own segment, and the runs it takes part in.

Several processes may share the folder. See also: index, segments, runs (what several processes agree on).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from time import monotonic, time
from typing import Final

from openai_gateway.recordings.index import Index
from openai_gateway.recordings.kept import KeptAnswer, from_payload, to_payload
from openai_gateway.recordings.runs import Candidate, RunNotes
from openai_gateway.recordings.segments import SegmentWriter, prune

_log = logging.getLogger("openai_gateway")
_MOST_RUNS: Final = 64
_PRUNE_EVERY_S: Final = 60.0
_RUNS: Final = "runs"
_ROLL_BYTES: Final = 64 * 1024 * 1024
_OLD_RUN_S: Final = 30 * 24 * 3600.0


class Store:
    """The kept answers of a folder; `most_bytes` and `most_age_s` None are no bounds."""

    def __init__(self, folder: Path, most_bytes: int | None = None, most_age_s: float | None = None) -> None:
        self.folder = folder
        self.most_age_s = most_age_s
        self._most_bytes = most_bytes
        roll_bytes = _ROLL_BYTES if most_bytes is None else min(_ROLL_BYTES, most_bytes // 8)
        self._writer = SegmentWriter(folder, roll_bytes)
        self.index = Index(folder)
        self._runs: OrderedDict[str, RunNotes] = OrderedDict()
        self._prune_at = 0.0
        self.lost = 0

    def open(self) -> None:
        """Make the folder if need be, drop what is too old, and read what there is. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.index.refresh()

    def run(self, name: str) -> RunNotes:
        """Return a run by name. Raises OSError."""
        run = self._runs.get(name)
        if run is None:
            if len(self._runs) >= _MOST_RUNS:
                # Flights of the run hold its RunNotes, so that its file stays open until they are over.
                self._runs.popitem(last=False)
            run = self._runs[name] = RunNotes(self._find_runs_folder(), name)
        self._runs.move_to_end(name)
        return run

    def _find_runs_folder(self) -> Path:
        """Return where the runs' notes are: in the folder, or apart from one that can't be written to."""
        if os.access(self.folder, os.W_OK):
            folder = self.folder / _RUNS
        else:
            info = self.folder.stat()
            folder = Path(tempfile.gettempdir(), f"openai_gateway-runs.{os.getuid()}.{info.st_dev}.{info.st_ino}")
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def find(self, key: bytes, most_age_s: float | None, *, refresh: bool) -> list[Candidate]:
        """Return the answers under a key that are young enough, the first begun first. Raises OSError."""
        if refresh:
            self.index.refresh()
        ages = [age for age in (most_age_s, self.most_age_s) if age is not None]
        oldest = time() - min(ages) if ages else 0.0
        return [Candidate(header.id, header.asker) for _, header in self.index.find(key) if header.time >= oldest]

    def read(self, key: bytes, answer_id: bytes) -> tuple[KeptAnswer, float] | None:
        """Return a kept answer and its Unix time; None if it is gone, damaged, or of another version."""
        for place, header in self.index.find(key):
            if header.id == answer_id:
                payload = self.index.read(place, header)
                answer = from_payload(payload) if payload is not None else None
                return None if answer is None else (answer, header.time)
        return None

    def keep(self, key: bytes, asker: bytes, answer: KeptAnswer, answer_id: bytes, began_at: float) -> bool:
        """Keep an answer under an id; False, with a line in the log and a count, if the disk won't take it.

        `began_at` is when its call began: equal calls' answers are handed out in this order, whichever worker keeps its
        own first.
        """
        try:
            self._writer.append(key, asker, to_payload(answer), began_at, answer_id)
            self._prune()
        except OSError as error:
            if self.lost == 0:
                _log.error("answers are not kept: %s: %s", self.folder, error.strerror or error)
            self.lost += 1
            return False
        if self.lost:
            _log.warning("answers are kept again; %d were not", self.lost)
            self.lost = 0
        return True

    def _prune(self) -> None:
        if monotonic() < self._prune_at:
            return
        self._prune_at = monotonic() + _PRUNE_EVERY_S
        prune(self.folder, self._most_bytes, self.most_age_s)
        runs = self._find_runs_folder()
        for path in runs.glob("*.run"):
            if path.stat().st_mtime < time() - _OLD_RUN_S:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close every file."""
        self._writer.close()
        self.index.close()
        while self._runs:
            self._runs.popitem()[1].close()
