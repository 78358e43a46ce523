#!/usr/bin/env python3
"""Draws the main comparison of a bench as an SVG picture, readable in light and dark:

python3 tools/chart.py [bench.json] [bench.svg]

A bar says how many times as fast as redis-server zkv is: 2 is half the time, or twice
as many in the same time. The hairline through it is the spread of the rounds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

ROWS: Final = (
    ("get-1", "p50_us", "get, 1 client, median latency"),
    ("get-8", "requests_per_s", "get, 8 clients"),
    ("put-never-8", "requests_per_s", "put, 8 clients, not synced"),
    ("put-always-1", "p50_us", "put, 1 client, synced, median latency"),
    ("put-always-8", "requests_per_s", "put, 8 clients, synced"),
    ("put-always-24", "requests_per_s", "put, 24 clients, synced"),
    ("get-many-500", "keys_per_s", "get 500 keys at a time"),
    ("put-many-500", "keys_per_s", "put 500 keys at a time, synced"),
)
WIDTH: Final = 760
LEFT: Final = 270
RIGHT: Final = 70
TOP: Final = 58
ROW: Final = 30
BAR: Final = 16

STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.bar { fill: #3b82c4 } .line { stroke: #57606a } .one { stroke: #57606a; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b3 }
  .bar { fill: #4f9be0 } .line, .one { stroke: #9da7b3 }
}"""


class Bar(NamedTuple):
    """How many times as fast zkv is, and within what."""

    label: str
    times: float
    least: float
    most: float


def bars(results: dict[str, Any]) -> list[Bar]:
    """A bar for each row that was measured; latencies are turned round."""
    found = []
    for work, figure, label in ROWS:
        if one := results["works"].get(work, {}).get("figures", {}).get(figure):
            times = [one["ratio"], one["ratio_min"], one["ratio_max"]]
            if figure.endswith("_us"):
                times = [1 / ratio for ratio in times]
            found.append(Bar(label, times[0], min(times[1:]), max(times[1:])))
    return found


def svg(bars: list[Bar], about: str) -> str:
    """The picture."""
    height = TOP + ROW * len(bars) + 34
    scale = (WIDTH - LEFT - RIGHT) / max([1.0, *(bar.most for bar in bars)])
    one, bottom = LEFT + scale, TOP + ROW * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        f"<title>zkv against Redis</title><style>{STYLE}</style>",
        '<text class="title" x="12" y="24">How many times as fast as Redis, '
        "from Python (longer is better)</text>",
        f'<line class="one" x1="{one:.1f}" y1="{TOP - 8}" x2="{one:.1f}" y2="{bottom}"/>',
        f'<text class="small" x="{one:.1f}" y="{TOP - 12}" text-anchor="middle">as fast</text>',
        *(_row(bar, TOP + ROW * n, scale) for n, bar in enumerate(bars)),
        f'<text class="small" x="12" y="{height - 12}">{about}</text>',
        "</svg>\n",
    ]
    return "\n".join(parts)


def _row(bar: Bar, y: int, scale: float) -> str:
    middle, most = y + BAR / 2, LEFT + bar.most * scale
    return (
        f'<text x="{LEFT - 10}" y="{y + 12.5}" text-anchor="end">{bar.label}</text>'
        f'<rect class="bar" x="{LEFT}" y="{y}" width="{bar.times * scale:.1f}" '
        f'height="{BAR}" rx="2"/>'
        f'<line class="line" x1="{LEFT + bar.least * scale:.1f}" y1="{middle}" '
        f'x2="{most:.1f}" y2="{middle}"/>'
        f'<text x="{max(most, LEFT + bar.times * scale) + 8:.1f}" y="{y + 12.5}">'
        f"{bar.times:.2f} ×</text>"
    )


def main() -> None:
    names = [*sys.argv[1:], "bench.json", "bench.svg"]
    source, target = (names[0], names[1]) if len(sys.argv) != 2 else (names[0], "bench.svg")
    results = json.loads(Path(source).read_text())
    seen = results["environment"]
    about = (
        f"zkv and redis-server {seen['redis']}, redis-py with hiredis; Python {seen['python']}, "
        f"{seen['cores']} cores; medians of {results['rounds']} rounds"
    )
    Path(target).write_text(svg(bars(results), about))


if __name__ == "__main__":
    main()
