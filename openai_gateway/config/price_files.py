"""Reads tables of prices: our own form, in YAML or JSON, and LiteLLM's public `model_prices_and_context_window.json`.

What stands in a table of our own has to be right: a key that isn't known, a negative price or `0,25` is refused, for
it would make wrong costs. LiteLLM's file has much that isn't about tokens, which is left out. Its prices are those of
one token; those of a tier or of long inputs have names like `input_cost_per_token_above_272k_tokens_flex`.

The table in the package was made of that file by `.ci/make_prices`. See also: prices (what a table says of a call).
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from openai_gateway.config.parse import NotYaml, parse_yaml
from openai_gateway.config.prices import Price, PriceTable, Usd

USUAL: Final = "conf/prices.yaml"
SHIPPED: Final = Path(__file__).with_name("prices.json")
_KINDS: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
}
# Such as input_cost_per_token_above_272k_tokens_flex. One that names a time (`above_12hr`) is no price of usual calls.
_COST: Final = re.compile(rf"({'|'.join(_KINDS)})(?:_above_(\d+)k_tokens)?(?:_([a-z]+))?")
_TIERS: Final = {"batches": "batch"}
_MOST_USD_PER_TOKEN: Final = 1.0


class BadPrices(Exception):
    """A table of prices can't be used; the message says why."""


class _Alias(msgspec.Struct, forbid_unknown_fields=True):
    """A model that costs what another one does, such as a deployment."""

    same_as: str


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    models: dict[str, dict[str, Any]]
    service_tiers: dict[str, Usd] = {}
    read_on: str = ""
    source: str = ""


def read_prices(path: Path) -> PriceTable:
    """Return the table in a file. Raises BadPrices."""
    try:
        found = _parse(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "models" not in found and any(map(_is_litellms, found.values())):
            read_on = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
            return PriceTable(_from_litellm(found), read_on=read_on, source=path.name)
        return _to_table(msgspec.convert(found, _Table))
    except NotYaml as error:
        raise BadPrices(f"is not valid YAML ({error}{f', line {error.line}' if error.line else ''})") from None
    except msgspec.ValidationError as error:
        raise BadPrices(f"is no table of prices: {error}") from None
    except (OSError, ValueError) as error:
        raise BadPrices(f"can't be read ({getattr(error, 'strerror', None) or type(error).__name__})") from None


def find_usual_file(folder: Path) -> Path:
    """Return the file of prices where none is named: `conf/prices.yaml` in a folder, else the package's own."""
    path = folder / USUAL
    return path if path.is_file() else SHIPPED


def _parse(text: str) -> Any:
    # YAML takes 500 times as long to read, and LiteLLM's file has 3 MB.
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            pass
    return parse_yaml(text)


def _to_table(table: _Table) -> PriceTable:
    models: dict[str, Price] = {}
    aliases: dict[str, str] = {}
    faults: list[str] = []
    for name, entry in table.models.items():
        try:
            if "same_as" in entry:
                aliases[name] = msgspec.convert(entry, _Alias).same_as
            else:
                models[name] = msgspec.convert(entry, Price)
        except msgspec.ValidationError as error:
            said, _, where = str(error).partition(" - at `$.")
            faults.append(f"{name}: {where.rstrip('`')}: {said}" if where else f"{name}: {said}")
    for name, other in aliases.items():
        if other in models:
            models[name] = models[other]
        else:
            faults.append(f"{name}: same_as names {other}, which has no price here")
    if faults:
        raise msgspec.ValidationError("; ".join(faults))
    return PriceTable(models, table.service_tiers, table.read_on, table.source)


def _is_litellms(entry: Any) -> bool:
    return isinstance(entry, dict) and "litellm_provider" in entry


def _from_litellm(table: dict[str, Any]) -> dict[str, Price]:
    models = {}
    for name, entry in table.items():
        if name != "sample_spec" and isinstance(entry, dict):
            price = read_price(name, entry)
            if price is not None:
                models[name] = price
    return models


def read_price(name: str, entry: dict[str, Any]) -> Price | None:
    """Return the price in an entry of LiteLLM's, None if it has none by the token. Raises BadPrices."""
    tiers: dict[str, dict[str, Any]] = {}
    for key, value in entry.items():
        match = _COST.fullmatch(key)
        if match is None or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_USD_PER_TOKEN:
            raise BadPrices(f"is no table of prices: {name}: {key} is no price of a token")
        kind, above, tier = match.groups()
        rates = tiers.setdefault(_TIERS.get(tier, tier or ""), {})
        usd = round(value * 1_000_000, 9)
        if above is None:
            rates[_KINDS[kind]] = usd
        else:
            rates.setdefault("above", {}).setdefault(int(above) * 1000, {})[_KINDS[kind]] = usd
    whole = {tier: _read_rates(rates) for tier, rates in tiers.items() if {"input", "output"} <= rates.keys()}
    standard = whole.pop("", None)
    if standard is None:
        return None
    long = standard.get("long_context")
    for rates in whole.values():
        # A tier that tells no price of long inputs has none.
        if long is not None and "long_context" not in rates:
            rates["long_context"] = {"above_tokens": long["above_tokens"]}
    return msgspec.convert({**standard, "tiers": whole}, Price)


def _read_rates(rates: dict[str, Any]) -> dict[str, Any]:
    above = {
        tokens: prices for tokens, prices in rates.pop("above", {}).items() if {"input", "output"} <= prices.keys()
    }
    if above:
        # Several bounds would be a model's that isn't served through these APIs: the first one counts.
        tokens = min(above)
        prices = {kind: usd for kind, usd in above[tokens].items() if not kind.endswith("_audio")}
        rates["long_context"] = {"above_tokens": tokens, **prices}
    return rates
