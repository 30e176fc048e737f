"""The shipped table of prices, and what calls cost by a table."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.config.price_files import SHIPPED, BadPrices, find_usual_file, read_prices
from openai_gateway.config.prices import LongContext, Price, PriceTable
from openai_gateway.wire.usage import Usage, read_answer

ROOT = Path(__file__).parents[2]

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


def _details(**counts: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _chat(
    given: int, made: int, *, cached: int = 0, reasoning: int = 0, heard: int = 0, spoken: int = 0
) -> dict[str, Any]:
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "prompt_tokens_details": _details(cached_tokens=cached, audio_tokens=heard),
        "completion_tokens_details": _details(reasoning_tokens=reasoning, audio_tokens=spoken),
    }


def _response(given: int, made: int, *, cached: int = 0, reasoning: int = 0, written: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": given,
        "output_tokens": made,
        "input_tokens_details": _details(cached_tokens=cached, cache_write_tokens=written),
        "output_tokens_details": _details(reasoning_tokens=reasoning),
    }


# By hand: each kind's tokens times its dollars for a million, as they stand on the price pages.
BY_HAND = {
    "chat": ("gpt-5-mini", _chat(1000, 500), None, 250 + 1000),
    "responses": ("gpt-5-mini", _response(1000, 500), "default", 250 + 1000),
    "cached": ("gpt-5", _chat(10_000, 200, cached=8_000), None, 2500 + 1000 + 2000),
    "reasoning": ("gpt-5", _response(4_024, 9_000, cached=1_024, reasoning=8_000), "auto", 3750 + 128 + 90_000),
    "o4-mini": ("o4-mini", _response(10_000, 1_000), None, 11_000 + 4_400),
    "o3": ("o3", _chat(5_000, 2_000, reasoning=1_500), None, 10_000 + 16_000),
    "priority": ("gpt-5-mini-2025-08-07", _response(5_000, 1_000), "priority", 2_250 + 3_600),
    "flex, cached": ("gpt-5-mini", _chat(5_000, 1_000, cached=4_000), "flex", 125 + 50 + 1_000),
    "batch": ("gpt-4o", _chat(1_000, 1_000), "batch", 1_250 + 5_000),
    "priority, cached": ("gpt-4o", _chat(1_000, 1_000, cached=1_000), "priority", 2_125 + 17_000),
    "a snapshot with a price of its own": ("gpt-4o-2024-05-13", _chat(1_000, 100), None, 5_000 + 1_500),
    "a snapshot with its model's price": ("gpt-4o-2024-08-06", _chat(1_000, 100), None, 2_500 + 1_000),
    "long, luna": ("gpt-5.6-luna", _response(300_000, 2_000), None, 120_000 + 3_600),
    "long, the newer luna": ("gpt-6-luna", _response(300_000, 2_000), None, 60_000 + 1_500),
    "long, pro": ("gpt-5.5-pro", _response(300_000, 2_000), None, 18_000_000 + 540_000),
    "just not long": ("gpt-5.6-luna", _response(272_000, 2_000), None, 54_400 + 2_400),
    "long, flex, cached and newly cached": (
        "gpt-5.6-luna", _response(300_000, 1_000, cached=200_000, written=50_000), "flex", 10_000 + 4_000 + 12_500 + 900
    ),
    "newly cached": ("gpt-6-astra", _response(10_000, 100, written=9_000), None, 10_000 + 112_500 + 5_000),
    "audio": ("gpt-audio-2025-08-28", _chat(1_000, 500, heard=800, spoken=400), None, 500 + 25_600 + 1_000 + 25_600),
    "fine-tuned": ("ft:gpt-4.1-2025-04-14:org::abc", _chat(10_000, 1_000), None, 30_000 + 12_000),
    "with its provider": ("openai/gpt-5-nano", _chat(1_000, 1_000), None, 50 + 400),
    "unknown: a tier without a price of long inputs": ("gpt-5.5-pro", _response(300_000, 2_000), "flex", None),
    "unknown: fine-tuned without a price": ("ft:gpt-5-mini:org::abc", _chat(1_000, 1_000), None, None),
    "unknown: audio without a price": ("gpt-4o", _chat(1_000, 500, heard=10), None, None),
    "unknown: a tier without a price": ("gpt-5-mini", _chat(1_000, 1_000), "scale", None),
    "unknown: a model": ("llama-9", _chat(1_000, 1_000), None, None),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_usage_costs_what_the_price_pages_say(case: str) -> None:
    model, usage, tier, micro_usd = BY_HAND[case]
    answer = {"model": model, "service_tier": tier, "usage": usage}
    report = read_answer(json.dumps(answer).encode())
    cost_usd = read_prices(SHIPPED).cost_usd(report.model, report.usage, report.service_tier)
    assert cost_usd == (None if micro_usd is None else pytest.approx(micro_usd / MILLION, rel=1e-9))


def test_shipped_table_says_when_and_where_its_prices_were_read() -> None:
    table = read_prices(SHIPPED)
    assert table.describe_age(datetime.date.fromisoformat(table.read_on)) is None
    assert table.source.startswith("https://")
    assert all(0 < price.input < price.output for price in table.models.values())
    assert all(price.cached is None or price.cached < price.input for price in table.models.values())


def test_shipped_table_is_used_wherever_there_is_no_other(tmp_path: Path) -> None:
    assert find_usual_file(tmp_path) == SHIPPED
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "prices.yaml").write_text("models: {}")
    assert find_usual_file(tmp_path) == tmp_path / "conf" / "prices.yaml"


def test_old_table_says_so() -> None:
    table = PriceTable(read_on="2026-01-01")
    assert table.describe_age(datetime.date(2026, 3, 2)) is None
    warning = table.describe_age(datetime.date(2026, 3, 3))
    assert warning is not None
    assert "2026-01-01, 61 days ago" in warning
    assert PriceTable(read_on="in spring").describe_age() is None


def _read(tmp_path: Path, text: str) -> PriceTable:
    (tmp_path / "prices.yaml").write_text(text)
    return read_prices(tmp_path / "prices.yaml")


def test_table_of_ones_own_has_tiers_patterns_and_deployments(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        """
        models:
          m:
            {input: 1, output: 2, input_audio: 5, output_audio: 6,
             tiers: {flex: {input: 0.4, output: 0.9}},
             long_context: {above_tokens: 1000, input: 3, output: 4}}
          "team-*": {input: 10, output: 20}
          my-deployment: {same_as: m}
        service_tiers: {batch: 0.5}
        """,
    )
    usage = Usage(1000, 1000)
    assert table.cost_usd("my-deployment", usage) == pytest.approx(0.003)
    assert table.cost_usd("m", usage, "flex") == pytest.approx(0.0013)
    assert table.cost_usd("m", usage, "batch") == pytest.approx(0.0015)
    assert table.cost_usd("m", Usage(2000, 1000)) == pytest.approx(0.01)
    assert table.cost_usd("team-blue", usage) == pytest.approx(0.03)
    assert table.cost_usd("m", Usage(1000, 1000, None, None, None, 1000, 1000)) == pytest.approx(0.011)


def test_shipped_table_can_be_made_anew(tmp_path: Path) -> None:
    """Of LiteLLM's file, by the script that made it."""
    path = tmp_path / "table.json"
    entry = {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    path.write_text(json.dumps({"gpt-x": entry, "whisper": {**entry, "mode": "audio_transcription"}}))
    command = [sys.executable, str(ROOT / ".ci/make_prices"), str(path), "2026-11-27", "a test"]
    made = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True, timeout=60).stdout
    (tmp_path / "made.json").write_bytes(made)
    prices = read_prices(tmp_path / "made.json")
    assert prices.cost_usd("gpt-x", Usage(1_000_000, 1_000_000), None) == pytest.approx(3.0)
    assert prices.cost_usd("whisper", Usage(1, 1), None) is None


def test_litellms_file_is_read_as_it_is(tmp_path: Path) -> None:
    entry = {
        "litellm_provider": "anthropic", "mode": "chat", "max_tokens": 8192, "supports_vision": True,
        "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 3e-07,
        "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
        "input_cost_per_token_above_200k_tokens": 6e-06, "output_cost_per_token_above_200k_tokens": 2.25e-05,
        "input_cost_per_token_batches": 1.5e-06, "output_cost_per_token_batches": 7.5e-06,
        "search_context_cost_per_query": {"search_context_size_low": 0.01},
    }  # fmt: skip
    image = {"litellm_provider": "openai", "mode": "image_generation", "output_cost_per_image": 0.04}
    table = _read(tmp_path, json.dumps({"sample_spec": {"mode": "one of"}, "claude-x": entry, "gpt-image": image}))
    assert list(table.models) == ["claude-x"]
    assert table.cost_usd("anthropic/claude-x", Usage(100_000, 1000, 50_000, 10_000)) == pytest.approx(0.1875)
    assert table.cost_usd("claude-x", Usage(300_000, 1000)) == pytest.approx(1.8225)
    assert table.cost_usd("claude-x", Usage(1000, 1000), "batch") == pytest.approx(0.009)
    assert table.cost_usd("claude-x", Usage(300_000, 1000), "batch") is None
    assert table.read_on == datetime.date.today().isoformat()


@pytest.mark.parametrize("price", ["-1e-6", "5.0", '"1e-6"', "true"])
def test_bad_price_in_litellms_file_is_complained_of(tmp_path: Path, price: str) -> None:
    entry = f'"litellm_provider": "openai", "input_cost_per_token": {price}, "output_cost_per_token": 1e-6'
    with pytest.raises(BadPrices, match="m: input_cost_per_token"):
        _read(tmp_path, f'{{"m": {{{entry}}}}}')


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("models: {m: {input: cheap, output: 1}}", "input", id="no number"),
        pytest.param("models: {m: {input: 1}}", "output", id="no output price"),
        pytest.param("models: [", "YAML", id="no YAML"),
        pytest.param("- 1", "table of prices", id="no mapping"),
        pytest.param("models: {m: {input: 0,25, output: 2,0}}", "table of prices: m", id="decimal comma"),
        pytest.param("models: {m: {input: -1, output: 2}}", "m: .*>= 0", id="negative"),
        pytest.param("models: {m: {input: .nan, output: 2}}", "m: .*>= 0", id="no number at all"),
        pytest.param("models: {m: {input: .inf, output: 2}}", "m: .*<= 1000000", id="infinite"),
        pytest.param("models: {m: {input: 1, output: 2, cached_input: 1}}", "cached_input", id="misspelt kind"),
        pytest.param("models: {m: {input: 1, output: 2, tiers: {flex: {inptu: 1}}}}", "inptu", id="misspelt in a tier"),
        pytest.param("models: {m: {input: 1, output: 2}}\nservice_tier: {}", "service_tier", id="misspelt top key"),
        pytest.param("model: {m: {input: 1, output: 2}}", "model", id="misspelt models"),
        pytest.param("models: {m: {same_as: n}}", "same_as names n", id="the same as nothing"),
        pytest.param(None, "can't be read", id="no file"),
    ],
)
def test_bad_table_is_complained_of(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadPrices, match=complaint):
        read_prices(path)


def test_every_bad_price_of_a_table_is_named(tmp_path: Path) -> None:
    models = (
        "{a: {input: cheap, output: 1}, b: {inptu: 1}, c: {same_as: d}, e: {input: 1, output: 2, tiers: {flex: 3}}}"
    )
    with pytest.raises(BadPrices) as caught:
        _read(tmp_path, f"models: {models}")
    said = str(caught.value)
    assert "a: input: Expected" in said
    assert "b: " in said
    assert "inptu" in said
    assert "e: tiers" in said
    assert said.endswith("c: same_as names d, which has no price here")
