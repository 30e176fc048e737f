"""The shipped table of prices, and what calls cost by a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_gateway.config.prices import BadPrices, LongContext, Price, PriceTable, read_prices
from openai_gateway.wire.usage import Usage

SHIPPED = Path(__file__).parents[2] / "conf" / "prices.yaml"
TABLE = PriceTable(
    {
        "m": Price(input=2.0, output=8.0, cached=0.5, cache_write=2.5, long_context=LongContext(1_000_000, 2.0, 1.5)),
        "plain": Price(input=1.0, output=3.0),
    },
    {"flex": 0.5},
)
MILLION = 1_000_000


@pytest.mark.parametrize(
    ("model", "usage", "tier", "cost_usd"),
    [
        pytest.param("m", Usage(MILLION, 0), None, 2.0, id="input"),
        pytest.param("m", Usage(0, MILLION, 0, 0, MILLION), "default", 8.0, id="reasoning is part of the output"),
        pytest.param("m", Usage(MILLION, 0, 600_000), None, 0.8 + 0.3, id="cached is part of the input"),
        pytest.param("m", Usage(MILLION, 0, 500_000, 400_000), None, 0.2 + 0.25 + 1.0, id="newly cached"),
        pytest.param("m", Usage(2 * MILLION, MILLION), None, 8.0 + 12.0, id="long context"),
        pytest.param("m", Usage(MILLION, 0), "flex", 1.0, id="a tier with a factor"),
        pytest.param("m", Usage(MILLION, 0), "priority", None, id="a tier without: unknown"),
        pytest.param("m-2026-09-01", Usage(MILLION, 0), None, 2.0, id="a dated snapshot"),
        pytest.param("m-mini", Usage(MILLION, 0), None, None, id="another model: unknown"),
        pytest.param("plain", Usage(MILLION, 0, MILLION), None, 1.0, id="no price for cached input"),
        pytest.param("plain", Usage(10, 0, 99), None, 10e-6, id="more cached than there is"),
        pytest.param("m", None, None, None, id="unknown tokens"),
        pytest.param(None, Usage(1, 1), None, None, id="unknown model"),
    ],
)
def test_cost(model: str | None, usage: Usage | None, tier: str | None, cost_usd: float | None) -> None:
    assert TABLE.cost_usd(model, usage, tier) == pytest.approx(cost_usd)


def test_shipped_table_says_when_and_where_its_prices_were_read() -> None:
    table = read_prices(SHIPPED)
    assert table.read_on
    assert table.source.startswith("https://")
    assert table.cost_usd("gpt-5-mini-2025-08-07", Usage(1000, 500, 200)) == pytest.approx(0.001205)
    assert all(0 < price.input < price.output for price in table.models.values())
    assert all(price.cached is None or price.cached < price.input for price in table.models.values())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("models: {m: {input: cheap, output: 1}}", "input", id="no number"),
        pytest.param("models: {m: {input: 1}}", "output", id="no output price"),
        pytest.param("models: [", "YAML", id="no YAML"),
        pytest.param("- 1", "table of prices", id="no mapping"),
        pytest.param(None, "can't be read", id="no file"),
    ],
)
def test_bad_table_is_complained_of(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadPrices, match=complaint):
        read_prices(path)
