"""Draws a report's plots as SVG, which needs nothing but the page it stands in.

Colours are the page's, by class. See also: report (what is drawn).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from openai_gateway.collect.spread import Spread

_WIDTH: Final = 420
_HEIGHT: Final = 132
_BASE: Final = 112
_TOP: Final = 12
_MOST_BARS: Final = 36
_LABELS: Final = 5
_ROW: Final = 22


def draw_spread(spread: Spread, to_text: Callable[[float], str]) -> str:
    """Return a histogram over a logarithmic axis, with the median and the 95th percentile marked."""
    bars = spread.make_bars(_MOST_BARS)
    if not bars:
        return '<p class="none">nothing to show</p>'
    most = max(bar.count for bar in bars)
    width = _WIDTH / len(bars)
    parts = []
    for at, bar in enumerate(bars):
        height = (_BASE - _TOP) * bar.count / most
        told = f"{to_text(bar.low)} to {to_text(bar.high)}: {bar.count:,}"
        parts.append(
            f'<rect class="bar" x="{at * width + 0.5:.1f}" y="{_BASE - height:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{height:.1f}"><title>{escape(told)}</title></rect>'
        )
    low, high = math.log2(bars[0].low), math.log2(bars[-1].high)
    names: dict[float, list[str]] = {}
    for share, name in ((0.5, "p50"), (0.95, "p95")):
        names.setdefault(spread.find_quantile(share), []).append(name)
    for value, equal in names.items():
        if value > 0:
            x = min(max((math.log2(value) - low) / (high - low), 0), 1) * _WIDTH
            anchor = "end" if x > _WIDTH - 60 else "start"
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{_BASE}"/>'
                f'<text class="mark" x="{x + (3 if anchor == "start" else -3):.1f}" y="{_TOP - 2}" '
                f'text-anchor="{anchor}">{", ".join(equal)}</text>'
            )
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_BASE}" y2="{_BASE}"/>')
    for at in range(_LABELS):
        share = at / (_LABELS - 1)
        anchor = "start" if at == 0 else "end" if at == _LABELS - 1 else "middle"
        label = to_text(2 ** (low + share * (high - low)))
        place = f'x="{share * _WIDTH:.1f}" y="{_BASE + 14}" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {place}>{escape(label)}</text>')
    told = (
        f"{spread.count:,} answers; p50 {to_text(spread.find_quantile(0.5))}, "
        f"p95 {to_text(spread.find_quantile(0.95))}, "
        f"most {to_text(spread.most)}, mean {to_text(spread.total / spread.count)}"
    )
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'{svg}<p class="told">{escape(told)}</p>'


def draw_counts(counts: Sequence[tuple[str, int]]) -> str:
    """Return a bar for each name, the longest for the largest count."""
    if not counts:
        return '<p class="none">nothing to show</p>'
    most = max(count for _, count in counts)
    total = sum(count for _, count in counts)
    parts = []
    for at, (name, count) in enumerate(counts):
        y = at * _ROW
        parts.append(
            f'<text class="name" x="0" y="{y + 15}">{escape(_shorten(name))}</text>'
            f'<rect class="bar" x="150" y="{y + 4}" width="{max(170 * count / most, 1):.1f}" height="14"/>'
            f'<text class="tick" x="{156 + 170 * count / most:.1f}" y="{y + 15}">{count:,} '
            f"({100 * count / total:.1f} %)</text>"
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(counts)}" role="img">{"".join(parts)}</svg>'


def _shorten(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
