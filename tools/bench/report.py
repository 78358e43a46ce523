"""What came out: medians, ratios and their spread, as data, as JSON and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any, Final

from trials import Figures
from works import Work

UNITS: Final = {
    "requests_per_s": "requests/s",
    "keys_per_s": "keys/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "p99.9_us": "p99.9 µs",
    "server_cpu_us": "server CPU µs/request",
    "bytes_per_key": "bytes/key",
    "request_us": "request µs",
    "request_p50_us": "request p50 µs",
    "rest_p99_us": "at rest p99 µs",
    "rest_p99.9_us": "at rest p99.9 µs",
    "p99_times": "p99 to that at rest",
    "p99.9_times": "p99.9 to that at rest",
    "put_mb_per_s": "put MB/s",
    "get_mb_per_s": "get MB/s",
    "put_p50_us": "put p50 µs",
    "get_p50_us": "get p50 µs",
    "journal_keys_per_s": "journal keys/s",
    "snapshot_keys_per_s": "snapshot keys/s",
}
"""How each figure's name is shown."""


def summary(work: Work, ours: list[Figures], theirs: list[Figures]) -> dict[str, Any]:
    """One work for the JSON file. Ratios are of zkv to its peer; the spread is of rounds."""
    figures = {}
    for name in ours[0]:
        zkv, peer = [one[name] for one in ours], [one[name] for one in theirs]
        ratios = [a / b if b else 0.0 for a, b in zip(zkv, peer, strict=True)]
        ratio = median(zkv) / median(peer) if median(peer) else 0.0
        figures[name] = {
            "zkv": median(zkv),
            "peer": median(peer),
            "ratio": ratio,
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "rounds": {"zkv": zkv, "peer": peer},
        }
        if target := work.targets.get(name):
            figures[name]["target"] = f"{target.sign} {target.wanted}"
            figures[name]["reached"] = target.reached(median(zkv), ratio)
    return {"what": work.what, "against": work.against, "figures": figures}


def heading(results: dict[str, Any]) -> str:
    """Where and how it was measured, in two lines."""
    shown = [f"{name} {value}" for name, value in results["environment"].items()]
    return (
        f"{', '.join(shown)}\n"
        f"medians of {results['rounds']} alternating rounds; ratio of medians "
        "(least … most of one round)"
    )


def table(name: str, work: dict[str, Any]) -> str:
    """One work as lines to read."""
    lines = [
        f"{name}: {work['what']}",
        f"  {'':24}{'zkv':>12}{work['against'][:17]:>18}{'ratio':>9}",
    ]
    for figure, one in work["figures"].items():
        spread = f"({one['ratio_min']:.2f} … {one['ratio_max']:.2f})"
        judged = ""
        if "target" in one:
            judged = f"{one['target']} {'reached' if one['reached'] else 'MISSED'}"
        lines.append(
            f"  {UNITS[figure]:24}"
            f"{_number(one['zkv']):>12}{_number(one['peer']):>18}{one['ratio']:>9.2f}"
            f"  {spread:18}{judged}".rstrip()
        )
    return "\n".join(lines)


def write(path: Path, results: dict[str, Any]) -> None:
    """Replaces the JSON file."""
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
