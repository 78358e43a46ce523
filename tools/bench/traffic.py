"""Load on a server: from Python processes, as users have them, or from one program in C.

Every client is a process of its own, forked before it opens a socket. They wait for each
other, then each repeats its call for a time and keeps how long every one took.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final, NamedTuple

from peers import Echo, Peer, Skipped, Zkv

Script = Callable[[Any, int], Callable[[], object]]
"""From a client and its number to the call that it repeats."""

FORK: Final = multiprocessing.get_context("fork")
WARM_UP: Final = 20
"""Calls that each client makes before it is measured."""
PATIENCE_S: Final = 30.0
"""How much longer than asked a load may take before the bench gives up."""


class Load(NamedTuple):
    """What a load came to."""

    requests_per_s: float
    latencies_ns: list[int]
    server_cpu_s: float

    def percentile_us(self, percent: float) -> float:
        at = min(len(self.latencies_ns) - 1, int(len(self.latencies_ns) * percent / 100))
        return self.latencies_ns[at] / 1000

    def mean_us(self) -> float:
        return sum(self.latencies_ns) / len(self.latencies_ns) / 1000

    def figures(self) -> dict[str, float]:
        """The figures that every such work shows."""
        return {
            "requests_per_s": self.requests_per_s,
            "p50_us": self.percentile_us(50),
            "p99_us": self.percentile_us(99),
            "p99.9_us": self.percentile_us(99.9),
            "server_cpu_us": self.server_cpu_s * 1e6 / len(self.latencies_ns),
        }


def drive(
    peer: Peer,
    script: Script,
    *,
    clients: int,
    seconds: float,
    requests_max: int = 10**9,
    beside: Callable[[], object] | None = None,
) -> Load:
    """So many client processes at once, each for so long or until it has made its requests.

    All that was written before is on disk first, so that no load pays for another's page cache.
    `beside` is called again and again meanwhile. Raises RuntimeError when a process fails;
    none outlives the call.
    """
    os.sync()
    barrier = FORK.Barrier(clients + 1)
    limits = (seconds, requests_max)
    started = [_start(peer, script, number, barrier, limits) for number in range(clients)]
    try:
        barrier.wait(PATIENCE_S)
        before_s = peer.process.cpu_s()
        with _again_and_again(beside):
            results = [_result(pipe, seconds + PATIENCE_S) for _, pipe in started]
        return _load(results, peer.process.cpu_s() - before_s)
    except (EOFError, TimeoutError, threading.BrokenBarrierError):
        raise RuntimeError("a client of the bench failed") from None
    finally:
        for process, pipe in started:
            process.kill()
            process.join()
            pipe.close()


def drive_native(
    peer: Zkv | Echo, bodies: Sequence[bytes], *, connections: int, in_flight: int, seconds: float
) -> Load:
    """The load of load.c: bodies of one size, sent in turn. Raises Skipped without a compiler."""
    sizes = {len(body) for body in bodies}
    assert len(sizes) == 1, "bodies of several sizes"
    numbers = (connections, in_flight, int(seconds * 1000), *sizes)
    before_s = peer.process.cpu_s()
    done = subprocess.run(
        [native_load(), peer.endpoint, *map(str, numbers)],
        input=b"".join(bodies),
        stdout=subprocess.PIPE,
        timeout=seconds + PATIENCE_S,
        check=True,
    )
    cpu_s = peer.process.cpu_s() - before_s
    return _load([array("Q", done.stdout)], cpu_s)


@functools.cache
def native_load() -> str:
    """The program made of load.c, in a folder that goes with the bench."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skipped("no C compiler (Debian: apt-get install gcc libzmq3-dev)")
    folder = tempfile.TemporaryDirectory(prefix="zkv-bench-load-")
    atexit.register(folder.cleanup)
    program = str(Path(folder.name, "load"))
    source = str(Path(__file__).with_name("load.c"))
    command = [compiler, "-O2", "-o", program, source, "-lzmq"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise Skipped(
            f"load.c cannot be compiled (Debian: apt-get install libzmq3-dev): {made.stderr[:300]}"
        )
    return program


@contextmanager
def _again_and_again(call: Callable[[], object] | None) -> Iterator[None]:
    """Has a thread call it until the block ends."""
    if call is None:
        yield
        return
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            call()

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield
        finally:
            over.set()
            repeating.result()


def _start(
    peer: Peer, script: Script, number: int, barrier: Barrier, limits: tuple[float, int]
) -> tuple[ForkProcess, Connection]:
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(
        target=_run, args=(peer, script, number, barrier, limits, theirs), daemon=True
    )
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return process, ours


def _run(
    peer: Peer,
    script: Script,
    number: int,
    barrier: Barrier,
    limits: tuple[float, int],
    pipe: Connection,
) -> None:
    """A client process."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    try:
        call = script(peer.client(), number)
        for _ in range(WARM_UP):
            call()
        barrier.wait(PATIENCE_S)
        pipe.send_bytes(_repeat(call, *limits))
    except BaseException:
        barrier.abort()
        raise


def _repeat(call: Callable[[], object], seconds: float, requests_max: int) -> array[int]:
    """The nanoseconds that it took, then those of each request."""
    clock = time.perf_counter_ns
    latencies = array("Q", [0])
    began = now = clock()
    end = began + int(seconds * 1e9)
    while now < end and len(latencies) <= requests_max:
        call()
        before, now = now, clock()
        latencies.append(now - before)
    latencies[0] = now - began
    return latencies


def _result(pipe: Connection, timeout_s: float) -> array[int]:
    if not pipe.poll(timeout_s):
        raise TimeoutError
    return array("Q", pipe.recv_bytes())


def _load(results: Sequence[array[int]], cpu_s: float) -> Load:
    rate = sum((len(result) - 1) / (result[0] / 1e9) for result in results)
    return Load(rate, sorted(ns for result in results for ns in result[1:]), cpu_s)
