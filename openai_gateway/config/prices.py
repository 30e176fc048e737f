"""What calls cost: by model, service tier, length of the input and kind of token. Unknown prices make unknown costs.

Strategy: a price is found by the name of the model that answered, and told by what the answer reports. Whatever the
table doesn't say (a model, a tier, audio, a tier's price of long inputs) makes a cost unknown, never zero or a guess.
See also: price_files (which reads tables), wire.usage (where token counts come from).
"""

from __future__ import annotations

import datetime
import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol

import msgspec

# Prices change a few times a year.
OLD_DAYS: Final = 60
_SNAPSHOT: Final = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$")
# What upstreams report for the standard price.
_STANDARD_TIERS: Final = frozenset({None, "", "default", "auto", "standard"})
_MOST_FOUND: Final = 1000
# No price is a million dollars for a million tokens; this keeps infinity out, too.
Usd = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Tokens(Protocol):
    """A call's token counts; cached, newly cached and audio ones are parts of the input or the output."""

    @property
    def input_tokens(self) -> int: ...  # noqa: D102
    @property
    def output_tokens(self) -> int: ...  # noqa: D102
    @property
    def cached_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def cache_write_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def input_audio_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def output_audio_tokens(self) -> int | None: ...  # noqa: D102


class LongContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a whole call costs if its input is longer than `above_tokens`: by factors or by prices, else unknown."""

    above_tokens: Annotated[int, msgspec.Meta(ge=1)]
    input_factor: Usd | None = None
    output_factor: Usd | None = None
    input: Usd | None = None
    output: Usd | None = None
    cached: Usd | None = None
    cache_write: Usd | None = None


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens at one tier; None where cached or newly cached input costs what other input does.

    Audio tokens have no price if theirs is None.
    """

    input: Usd
    output: Usd
    cached: Usd | None = None
    cache_write: Usd | None = None
    long_context: LongContext | None = None
    input_audio: Usd | None = None
    output_audio: Usd | None = None

    def cost_usd(self, tokens: Tokens) -> float | None:
        """Return what these tokens cost, None if one of the kinds has no price."""
        long = self.long_context
        if long is not None and tokens.input_tokens > long.above_tokens:
            if long.input is not None and long.output is not None:
                rates = Rates(long.input, long.output, long.cached, long.cache_write)
                return rates.cost_usd(tokens)
            if long.input_factor is None or long.output_factor is None:
                return None
            taken_factor, made_factor = long.input_factor, long.output_factor
        else:
            taken_factor = made_factor = 1.0
        cached = min(tokens.cached_tokens or 0, tokens.input_tokens)
        written = min(tokens.cache_write_tokens or 0, tokens.input_tokens - cached)
        fresh = tokens.input_tokens - cached - written
        taken = cached * (self.input if self.cached is None else self.cached)
        taken += written * (self.input if self.cache_write is None else self.cache_write)
        made = 0.0
        if tokens.input_audio_tokens or tokens.output_audio_tokens:
            heard = min(tokens.input_audio_tokens or 0, fresh)
            spoken = min(tokens.output_audio_tokens or 0, tokens.output_tokens)
            if (heard and self.input_audio is None) or (spoken and self.output_audio is None):
                return None
            taken += heard * ((self.input_audio or 0.0) - self.input)
            made += spoken * ((self.output_audio or 0.0) - self.output)
        taken += fresh * self.input
        made += tokens.output_tokens * self.output
        return (taken * taken_factor + made * made_factor) / 1_000_000


class Price(Rates, frozen=True, forbid_unknown_fields=True):
    """What a model's tokens cost at the standard tier, and at the others that it has prices of."""

    tiers: dict[str, Rates] = {}


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model name, in which `*` stands for anything.

    `service_tiers` holds the factor of each tier for models that have no price of it. `read_on` and `source` say when
    and where the prices were read.
    """

    models: Mapping[str, Price] = field(default_factory=dict)
    service_tiers: Mapping[str, float] = field(default_factory=dict)
    read_on: str = ""
    source: str = ""
    _found: dict[str, Price | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def find(self, model: str) -> Price | None:
        """Return the price of a model by its name, by that of the model it is a snapshot of, or by a pattern."""
        try:
            return self._found[model]
        except KeyError:
            pass
        price = next((self.models[name] for name in _list_names(model) if name in self.models), None)
        if price is None:
            patterns = (name for name in self.models if "*" in name and fnmatch.fnmatchcase(model, name))
            price = next((self.models[name] for name in patterns), None)
        # Bounded: the upstream chooses the names of its models.
        if len(self._found) < _MOST_FOUND:
            self._found[model] = price
        return price

    def cost_usd(self, model: str | None, tokens: Tokens | None, service_tier: str | None = None) -> float | None:
        """Return a call's cost in US dollars; None if model, tokens or tier are unknown."""
        if model is None or tokens is None:
            return None
        price = self.find(model)
        if price is None or service_tier in _STANDARD_TIERS:
            return None if price is None else price.cost_usd(tokens)
        rates = price.tiers.get(service_tier or "")
        if rates is not None:
            return rates.cost_usd(tokens)
        factor, cost_usd = self.service_tiers.get(service_tier or ""), price.cost_usd(tokens)
        return None if factor is None or cost_usd is None else cost_usd * factor

    def describe_age(self, today: datetime.date | None = None) -> str | None:
        """Return what to know of a table whose prices were read long ago; None if they were not, or it doesn't say."""
        try:
            read_on = datetime.date.fromisoformat(self.read_on)
        except ValueError:
            return None
        days = ((today or datetime.date.today()) - read_on).days
        if days <= OLD_DAYS:
            return None
        return (
            f"The prices are of {self.read_on}, {days} days ago: costs may be wrong. A newer table goes in price_file."
        )


def _list_names(model: str) -> Iterator[str]:
    """Yield the names that a model may stand under, the closest first.

    `openai/gpt-5-mini-2025-08-07` is `gpt-5-mini`; `ft:gpt-4.1-2025-04-14:org::id` is `ft:gpt-4.1`, which has a price
    of its own, never `gpt-4.1`.
    """
    name, slash = model, "/"
    while slash:
        yield name
        yield _SNAPSHOT.sub("", name)
        if name.startswith("ft:"):
            base = "ft:" + name.split(":")[1]
            yield base
            yield _SNAPSHOT.sub("", base)
        # A provider's prefix.
        _, slash, name = name.partition("/")
