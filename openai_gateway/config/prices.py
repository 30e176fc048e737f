"""The table of prices: read from YAML, and asked what a call costs. An unknown price makes an unknown cost, never zero.

Where token counts come from is `wire.usage`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from openai_gateway.config.parse import NotYaml, parse

DEFAULT_PRICE_FILE: Final = "conf/prices.yaml"
_SNAPSHOT: Final = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$")
# What upstreams report for the standard price.
_STANDARD_TIERS: Final = frozenset({None, "", "default", "auto", "standard"})


class Tokens(Protocol):
    """A call's token counts; cached and newly cached ones are parts of the input."""

    @property
    def input_tokens(self) -> int: ...  # noqa: D102
    @property
    def output_tokens(self) -> int: ...  # noqa: D102
    @property
    def cached_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def cache_write_tokens(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class LongContext:
    """How a whole call's prices change if its input is longer than `above_tokens`."""

    above_tokens: int
    input_factor: float
    output_factor: float


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; None where cached or newly cached input costs what other input does."""

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    long_context: LongContext | None = None

    def cost_usd(self, tokens: Tokens) -> float:
        """Return what these tokens cost at the standard tier."""
        cached = min(tokens.cached_tokens or 0, tokens.input_tokens)
        written = min(tokens.cache_write_tokens or 0, tokens.input_tokens - cached)
        taken = (
            (tokens.input_tokens - cached - written) * self.input
            + cached * (self.input if self.cached is None else self.cached)
            + written * (self.input if self.cache_write is None else self.cache_write)
        )
        made = tokens.output_tokens * self.output
        long = self.long_context
        if long is not None and tokens.input_tokens > long.above_tokens:
            taken, made = taken * long.input_factor, made * long.output_factor
        return (taken + made) / 1_000_000


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model name; `service_tiers` holds the factor of each tier that doesn't cost the standard price.

    `read_on` and `source` say when and where the prices were read.
    """

    models: Mapping[str, Price] = field(default_factory=dict)
    service_tiers: Mapping[str, float] = field(default_factory=dict)
    read_on: str = ""
    source: str = ""

    def find(self, model: str) -> Price | None:
        """Return the price of a model by its name, or of the model that it is a dated snapshot of."""
        return self.models.get(model) or self.models.get(_SNAPSHOT.sub("", model))

    def cost_usd(self, model: str | None, tokens: Tokens | None, service_tier: str | None = None) -> float | None:
        """Return a call's cost in US dollars; None if model, tokens or tier are unknown."""
        if model is None or tokens is None:
            return None
        price = self.find(model)
        factor = 1.0 if service_tier in _STANDARD_TIERS else self.service_tiers.get(service_tier or "")
        return None if price is None or factor is None else price.cost_usd(tokens) * factor


class BadPrices(Exception):
    """A table of prices can't be used; the message says why."""


def read_prices(path: Path) -> PriceTable:
    """Return the table in a file. Raises BadPrices."""
    try:
        return msgspec.convert(parse(path.read_text(encoding="utf-8")), PriceTable)
    except NotYaml as error:
        raise BadPrices(f"is not valid YAML ({error}{f', line {error.line}' if error.line else ''})") from None
    except msgspec.ValidationError as error:
        raise BadPrices(f"is no table of prices: {error}") from None
    except (OSError, ValueError) as error:
        raise BadPrices(f"can't be read ({getattr(error, 'strerror', None) or type(error).__name__})") from None
