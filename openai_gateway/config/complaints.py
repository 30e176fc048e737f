"""What is said of a config that can't be used: one error that lists every problem.

None of those who find them may put a secret in. See also: files, interpolate, load and build (who finds them),
redact.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config: where, what was found, and what is wanted; never a secret."""

    place: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)


class ConfigError(Exception):
    """The config can't be used; the message lists every problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"openai_gateway: {count} in the config:\n" + "\n".join(f"  - {p}" for p in problems))
