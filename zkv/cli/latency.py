"""Round trips, and what many of them say: `latency`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from zkv.cli import output
from zkv.cli.commands import Arguments
from zkv.store import Store


class Latency(NamedTuple):
    """Of so many round trips, in milliseconds."""

    requests: int
    min: float
    avg: float
    p50: float
    p95: float
    p99: float
    max: float


def measured(seconds: Sequence[float]) -> Latency:
    """What some durations, at least one, say. A percentile is one of them (nearest rank)."""
    ms = sorted(1000 * it for it in seconds)
    p50, p95, p99 = (ms[math.ceil(len(ms) * part) - 1] for part in (0.5, 0.95, 0.99))
    avg = sum(ms) / len(ms)
    return Latency(len(ms), *(round(it, 3) for it in (ms[0], avg, p50, p95, p99, ms[-1])))


def latency(store: Store, args: Arguments) -> None:
    """Sends a ping at a time. An interrupt ends it early, with what was measured until then."""
    store.ping()  # the first one also waits for the connection
    seconds: list[float] = []
    try:
        while len(seconds) < args.count:
            if seconds:
                time.sleep(args.interval)
            started = time.perf_counter()
            store.ping()
            seconds.append(time.perf_counter() - started)
    finally:
        if seconds:
            _show(measured(seconds), args)


def _show(found: Latency, args: Arguments) -> None:
    if args.form:
        output.json_line(found._asdict())
        return
    output.line(
        f"{found.requests} round trips: min {found.min:.3f}, avg {found.avg:.3f}, "
        f"p50 {found.p50:.3f}, p99 {found.p99:.3f}, max {found.max:.3f} ms"
    )
