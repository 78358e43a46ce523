"""What the server does, line by line: `stat`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from zkv.cli import output
from zkv.cli.commands import Arguments
from zkv.store import Store

HEAD_EVERY: Final = 20
COLUMNS: Final = ("requests/s", "errors/s", "requests", "errors", "keys", "revision", "sessions")
"""The rates are those since the line before. The request that asks for them counts, too."""


def stat(store: Store, args: Arguments) -> None:
    """Prints `count` lines, or lines until interrupted, one every `interval` seconds."""
    output.each(_ticks(store, args), args.form, _as_lines(), at_once=True)


def _ticks(store: Store, args: Arguments) -> Iterator[dict[str, Any]]:
    before = store.info()
    asked = started = time.monotonic()
    tick = 0
    while args.count is None or tick < args.count:
        tick += 1
        time.sleep(max(0, started + tick * args.interval - time.monotonic()))
        now, asked_before = store.info(), asked
        asked = time.monotonic()
        yield _figures(before, now, asked - asked_before)
        before = now


def _figures(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, Any]:
    totals = {name: sum(now["counters"][name].values()) for name in ("requests", "errors")}
    grown = {
        # Counters that fell are those of a server that has started anew.
        name: max(0, total - sum(before["counters"][name].values()))
        for name, total in totals.items()
    }
    rates = {f"{name}/s": round(grown[name] / seconds, 1) for name in totals}
    facts = {name: now.get(name) for name in ("keys", "revision", "sessions")}
    return {name: (rates | totals | facts)[name] for name in COLUMNS}


def _as_lines() -> Callable[[dict[str, Any]], str]:
    lines = 0

    def text(figures: dict[str, Any]) -> str:
        nonlocal lines
        head = "".join(f"{name:>12}" for name in COLUMNS) + "\n" if lines % HEAD_EVERY == 0 else ""
        lines += 1
        shown = ("-" if it is None else f"{it:,}" for it in figures.values())
        return head + "".join(f"{it:>12}" for it in shown)

    return text
