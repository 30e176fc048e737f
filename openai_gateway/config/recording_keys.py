"""The keys that say whether answers are kept and handed out again.

See also: keys (all of a server's keys), declaration (what a line says), recordings (what is made of it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from openai_gateway.config.call_keys import CallKeys
from openai_gateway.config.checks import Boolean, Integer, OneOf, Seconds
from openai_gateway.config.declaration import key
from openai_gateway.config.path_checks import CreatedFolder

RECORDINGS: Final = "Recordings"


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class RecordingKeys(CallKeys):
    """Kept answers; `recordings` and `recordings_dir` are both given or both None."""

    recordings: str | None = key(
        OneOf("record", "replay", "reuse"),
        None,
        "record: keep answers; replay: answer from what is kept, and never call; reuse: answer from what is kept, "
        "else call and keep",
        RECORDINGS,
        shared=True,
    )
    recordings_dir: str | None = key(
        CreatedFolder(),
        None,
        "folder of kept answers; several gateways may share it",
        RECORDINGS,
        shared=True,
    )
    recordings_max_bytes: int | None = key(
        Integer(1_000_000), None, "size above which the oldest files in it are removed", RECORDINGS, shared=True
    )
    recordings_max_age_s: float | None = key(
        Seconds(), None, "age above which an answer is neither handed out nor kept on", RECORDINGS, shared=True
    )
    replay_speed: str = key(
        OneOf("at_once", "recorded"),
        "at_once",
        "recorded: a kept stream's pieces come as far apart as they did then",
        RECORDINGS,
        shared=True,
    )
    record_stateful: bool = key(
        Boolean(),
        False,
        "keep answers to calls with `previous_response_id`, `conversation`, `store: true` or `background: true`, too",
        RECORDINGS,
        shared=True,
    )
    join_resent: bool = key(
        Boolean(),
        False,
        "a call that is sent again while the first is under way waits for that one's answer, also without recordings",
        RECORDINGS,
        shared=True,
    )
