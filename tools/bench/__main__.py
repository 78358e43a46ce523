"""The bench: every work of the table in `works`, zkv and its peer in turn.

The load comes from Python processes, and such a client costs more than the server that it
asks (redis-py 50 µs of a core a request, redis-server 10 µs), on the cores that the server
wants too. So the works with clients in Python show what their users see; what the server
could do is in the works named echo-…, whose load comes from C.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import cost
import report
import zmq
from peers import Skipped
from trials import FULL, QUICK, Figures, Scale
from works import WORKS, Work

SYNCS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table as it grows, and keeps the JSON file up to date."""
    args = _parser().parse_args(argv)
    if args.cost:
        cost.show()
        return 0
    if args.list:
        print("\n".join(f"{work.name:14} {work.what}" for work in WORKS))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rounds = args.rounds or (1 if args.quick else 5)
    results: dict[str, Any] = {
        "rounds": rounds, "quick": args.quick, "environment": environment(),
        "works": {}, "skipped": {},
    }  # fmt: skip
    print(report.heading(results), flush=True)
    for work in WORKS:
        if args.only and work.name not in args.only:
            continue
        try:
            sides = alternate(work, QUICK if args.quick else FULL, rounds)
        except Skipped as reason:
            results["skipped"][work.name] = str(reason)
            print(f"\n{work.name}: SKIPPED: {reason}", flush=True)
        else:
            results["works"][work.name] = report.summary(work, *sides)
            print("\n" + report.table(work.name, results["works"][work.name]), flush=True)
        report.write(args.json, results)
    return 0


def alternate(work: Work, scale: Scale, rounds: int) -> tuple[list[Figures], list[Figures]]:
    """The figures of zkv's rounds and of its peer's, which were run in turn.

    However it ends, the servers are stopped and their folders gone.
    """
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as name, ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(closing(trial(_subfolder(name, side), scale)))
            for side, trial in (("zkv", work.zkv), ("peer", work.peer))
        )
        pairs = [(next(ours), next(theirs)) for _ in range(min(rounds, work.rounds_max))]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
        "redis": _redis_version(),
        "fdatasync_us": _fdatasync_us(),
        "load_average": round(os.getloadavg()[0], 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _redis_version() -> str:
    program = shutil.which("redis-server")
    if program is None:
        return "missing"
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.split("v=")[1].split()[0]


def _fdatasync_us() -> float:
    """The median time to append 4 KiB to a file and sync it where the servers' data will be."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="zkv-bench-", buffering=0) as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return round(median(times) * 1e6, 1)


def _subfolder(folder: str, name: str) -> Path:
    path = Path(folder, name)
    path.mkdir()
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Measures zkv side by side with its peers.",
        epilog="The servers' data is in $TMPDIR: it says which disk is synced to.",
    )
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", choices=[work.name for work in WORKS],
        help="only these works (default: all of --list)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", metavar="N", type=_positive, help="(default: 5, with --quick 1)"
    )
    parser.add_argument("--quick", action="store_true", help="small and short: does it work?")
    parser.add_argument(
        "--json", metavar="FILE", type=Path, default=Path("bench.json"),
        help="where the figures go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cost", action="store_true", help="what one request costs the server, step by step"
    )
    parser.add_argument("--list", action="store_true", help="name the works, and measure nothing")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
