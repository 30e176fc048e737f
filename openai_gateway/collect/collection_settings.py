"""With what an output was collected: model, parameters, input. Kept beside it, so that no output mixes two unknowingly.

A run that resumes with other settings is refused unless it is told to mix them. See also: run_files (where it is
kept), merging (parts with other settings).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from openai_gateway.collect.entries import JournalError
from openai_gateway.collect.run_files import derive_settings_path


class CollectionSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run asks with; `extra_body` is the config's by API, None if that is a running gateway's secret.

    `rows` counts the whole input's as far as they are taken, `shard` is the part of them that the output is of.
    `has_own_indices` says that rows bring their task indices, so that their count says nothing of those.
    """

    model: str | None = None
    params: dict[str, Any] = {}
    has_seeds: bool = False
    extra_body: dict[str, Any] | None = None
    rows: int = 0
    repeats: int = 1
    shard: str | None = None
    has_own_indices: bool = False

    @property
    def unheeded(self) -> frozenset[str]:
        """The parameters that are not the rows' own."""
        return frozenset(self.params) | (frozenset({"seed", "metadata"}) if self.has_seeds else frozenset())


class _File(msgspec.Struct):
    runs: list[CollectionSettings] = []


def read_settings(output: Path) -> list[CollectionSettings]:
    """Return the settings of the runs that an output is of, none if they weren't kept. Raises JournalError."""
    path = derive_settings_path(output)
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).runs
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalError(f"{path} was not written by collect ({error}); take it away") from None


def write_settings(output: Path, runs: list[CollectionSettings]) -> None:
    """Keep the settings of an output's runs. Raises OSError."""
    path = derive_settings_path(output)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(_File(runs)), indent=2) + b"\n")
    part.replace(path)


def add_run(runs: list[CollectionSettings], now: CollectionSettings) -> list[CollectionSettings]:
    """Return the settings with those of one more run; of runs that ask with the same, the last is kept."""
    return [*(each for each in runs if find_differences(each, now) or each.shard != now.shard), now]


def find_differences(before: CollectionSettings, now: CollectionSettings) -> list[str]:
    """Return what two runs ask with differently."""
    found = []
    if before.model != now.model:
        found.append(f"model {now.model or 'unknown'} instead of {before.model or 'unknown'}")
    found += _compare("", before.params, now.params)
    if before.has_seeds != now.has_seeds:
        found.append(f"{'with' if now.has_seeds else 'without'} a seed for each repeat")
    if before.extra_body is not None and now.extra_body is not None:
        for api in sorted({*before.extra_body, *now.extra_body}):
            found += _compare("extra_body's ", before.extra_body.get(api) or {}, now.extra_body.get(api) or {})
    return list(dict.fromkeys(found))


def _compare(prefix: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted({*before, *now}):
        if name not in now:
            found.append(f"{prefix}{name} not set")
        elif name not in before:
            found.append(f"{prefix}{name} set")
        elif before[name] != now[name]:
            found.append(f"another {prefix}{name}")
    return found
