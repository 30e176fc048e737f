"""The sums over an output as NeMo Gym's tools write and read them: for each agent, and in it for each task.

Numbers at the top level of a line and in its response's `usage` are summed: mean, most, least, median and standard
deviation. Gym's own adds what a verifier computes; there is none here. Each number is held in memory until the end.
See also: sums (our own), run_files (where they go).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Final

import msgspec

from openai_gateway.collect.entries import read_entries_and_lines
from openai_gateway.collect.rows import AGENT_REF, RESPONSE, TASK_INDEX
from openai_gateway.collect.run_files import derive_gym_metrics_path

# What tools put into a line for themselves.
_OF_TOOLS: Final = "_"

_Numbers = dict[str, list[float]]


def write_gym_sums(output: Path) -> Path | None:
    """Write the sums of an output whose lines name agents, in Gym's form; return where, None if no line does."""
    agents: dict[str, dict[int, _Numbers]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for entry, line in read_entries_and_lines(output):
        fields = msgspec.json.decode(line)
        agent = fields.get(AGENT_REF)
        if not isinstance(agent, dict) or not isinstance(agent.get("name"), str):
            continue
        numbers = agents[agent["name"]][entry.task_index]
        usage = (fields.get(RESPONSE) or {}).get("usage")
        for name, value in {**fields, **(usage if isinstance(usage, dict) else {})}.items():
            if isinstance(value, (int, float)) and not name.startswith(_OF_TOOLS) and math.isfinite(value):
                numbers[name].append(float(value))
    if not agents:
        return None
    path = derive_gym_metrics_path(output)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps([_sum_up_agent(name, tasks) for name, tasks in sorted(agents.items())], indent=2) + "\n")
    part.replace(path)
    return path


def _sum_up_agent(name: str, tasks: dict[int, _Numbers]) -> dict[str, Any]:
    every: _Numbers = defaultdict(list)
    for numbers in tasks.values():
        for key, values in numbers.items():
            every[key] += values
    metrics = _describe(every)
    return {
        AGENT_REF: {"name": name},
        "agent_metrics": metrics,
        "key_metrics": {key: value for key, value in metrics.items() if key.startswith("mean/")},
        "group_level_metrics": [{TASK_INDEX: task, **_describe(numbers)} for task, numbers in sorted(tasks.items())],
    }


def _describe(numbers: _Numbers) -> dict[str, float]:
    found = {}
    for key, values in numbers.items():
        found[f"mean/{key}"] = fmean(values)
        found[f"max/{key}"] = max(values)
        found[f"min/{key}"] = min(values)
        found[f"median/{key}"] = median(values)
        found[f"std/{key}"] = stdev(values) if len(values) > 1 else 0.0
    return found
