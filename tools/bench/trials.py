"""How each work is measured: scripts, which are what a client repeats, and trials.

A trial measures one side of a work: a generator that starts its peer, and then yields the
figures of one round each time it is asked. Closing it stops the peer.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from peers import VALUE, Echo, Peer, Redis, Zkv, names, running, wait_until
from traffic import Script, drive, drive_native, native_load

import zkv
from zkv import protocol

KEYS: Final = 10_000
"""How many keys a store holds where it does not matter."""
FEW: Final = 1_000
MANY: Final = 500
"""Keys of one get_many or put_many."""
MIB: Final = 2**20
NEVER: Final = 2**62
"""Journal bytes at which a store is not compacted while it is measured."""
SETTLE_S: Final = 0.5
REST_TIMES, COMPACTION_TIMES = 5, 20
"""How much longer than another load: what is rare is to be seen often, and a compaction whole."""

Figures = dict[str, float]


class Scale(NamedTuple):
    """How much of it: seconds of load a round, keys where many are wanted, MiB a round."""

    seconds: float
    keys: int
    mib: int


FULL: Final = Scale(seconds=2.0, keys=1_000_000, mib=256)
QUICK: Final = Scale(seconds=0.3, keys=20_000, mib=8)

Rounds = Generator[Figures, None, None]
Trial = Callable[[Path, Scale], Rounds]
MakePeer = Callable[[Path], Peer]

Call = Callable[[], object]
KeyScript = Callable[[Any, Iterator[str]], Call]
"""From a client, and all keys in an order of its own for ever, to the call it repeats."""


def get(client: Any, every: Iterator[str]) -> Call:
    return lambda: client.get(next(every))


def put(client: Any, every: Iterator[str]) -> Call:
    return lambda: client.put(next(every), VALUE)


def get_many(client: Any, every: Iterator[str]) -> Call:
    lists = _lists(every)
    return lambda: client.get_many(next(lists))


def put_many(client: Any, every: Iterator[str]) -> Call:
    dicts = cycle([dict.fromkeys(islice(every, MANY), VALUE) for _ in range(KEYS // MANY)])
    return lambda: client.put_many(next(dicts))


def txn(client: zkv.Client, every: Iterator[str]) -> Call:
    lists = _lists(every)

    def call() -> None:
        with client.transaction() as block:
            for key in next(lists):
                block.put(key, VALUE)

    return call


def _lists(every: Iterator[str]) -> Iterator[list[str]]:
    """MANY keys at a time, for ever."""
    return cycle([list(islice(every, MANY)) for _ in range(KEYS // MANY)])


def put_and_delete(client: Any, every: Iterator[str]) -> Call:
    """Three requests that leave as many keys as there were."""

    def call() -> None:
        new = next(every) + ":new"
        client.put(next(every), VALUE)
        client.put(new, VALUE)
        client.delete(new)

    return call


def put_blob(client: Any, every: Iterator[str]) -> Call:
    blob, few = os.urandom(MIB), cycle(islice(every, 16))
    return lambda: client.put(next(few), blob)


def get_blob(client: Any, every: Iterator[str]) -> Call:
    few = cycle(islice(every, 16))
    return lambda: client.get(next(few))


def traffic(
    make: MakePeer,
    folder: Path,
    scale: Scale,
    *,
    script: KeyScript,
    clients: int,
    keys: int = KEYS,
    keys_each: int = 1,
) -> Rounds:
    """Client processes that all repeat one script. Each call handles `keys_each` keys."""
    with running(peer := make(folder)):
        peer.fill(keys)
        while True:
            load = drive(peer, _shuffled(script, keys), clients=clients, seconds=scale.seconds)
            figures = load.figures()
            if keys_each > 1:
                figures = {"keys_per_s": load.requests_per_s * keys_each, **figures}
            yield figures


def compaction(make: Callable[[Path], Zkv | Redis], folder: Path, scale: Scale) -> Rounds:
    """Client processes that put, at rest and while one snapshot after the other is made."""
    with running(peer := make(folder)):
        peer.fill(scale.keys)
        measure = partial(drive, peer, _shuffled(put, KEYS), clients=8)
        while True:
            rest = measure(seconds=REST_TIMES * scale.seconds)
            busy = measure(seconds=COMPACTION_TIMES * scale.seconds, beside=peer.rewrite)
            figures: Figures = {"requests_per_s": busy.requests_per_s}
            for name, percent in (("p99", 99.0), ("p99.9", 99.9)):
                at_rest, during = rest.percentile_us(percent), busy.percentile_us(percent)
                figures |= {f"rest_{name}_us": at_rest, f"{name}_us": during}
                figures[f"{name}_times"] = during / at_rest
            yield figures


def native(
    make: Callable[[Path], Zkv | Echo],
    folder: Path,
    scale: Scale,
    *,
    in_flight: int,
    connections: int = 50,
) -> Rounds:
    """Connections from C that get."""
    native_load()  # skips the work where it cannot be made
    bodies = [protocol.encode_request("get", {"key": key}) for key in names(KEYS)]
    with running(peer := make(folder)):
        peer.fill(KEYS)
        while True:
            yield drive_native(
                peer,
                bodies,
                connections=connections,
                in_flight=in_flight,
                seconds=scale.seconds,
            ).figures()


def blobs(make: MakePeer, folder: Path, scale: Scale) -> Rounds:
    """Values of 1 MiB, put and then got by one client."""
    measure = partial(drive, clients=1, seconds=scale.seconds, requests_max=scale.mib)
    with running(peer := make(folder)):
        while True:
            puts = measure(peer, _shuffled(put_blob, KEYS))
            gets = measure(peer, _shuffled(get_blob, KEYS))
            yield {
                "put_mb_per_s": puts.requests_per_s * MIB / 1e6,
                "get_mb_per_s": gets.requests_per_s * MIB / 1e6,
                "put_p50_us": puts.percentile_us(50),
                "get_p50_us": gets.percentile_us(50),
            }


def growth(folder: Path, scale: Scale, *, many: bool) -> Rounds:
    """One client that changes a store of many keys, or of few."""
    keys = scale.keys if many else FEW
    with running(peer := Zkv(folder, "never", compact_at=NEVER)):
        peer.fill(keys)
        while True:
            load = drive(peer, _shuffled(put_and_delete, keys), clients=1, seconds=scale.seconds)
            figures = load.figures()
            yield {
                "request_us": load.mean_us() / 3,
                "request_p50_us": figures["p50_us"] / 3,
                "server_cpu_us": figures["server_cpu_us"] / 3,
            }


def memory(make: MakePeer, folder: Path, scale: Scale) -> Rounds:
    """What a new server has grown by when it holds many keys."""
    for number in count():
        with running(peer := make(_subfolder(folder, str(number)))):
            before = peer.process.resident_bytes()
            peer.fill(scale.keys)
            time.sleep(SETTLE_S)
            grown = peer.process.resident_bytes() - before
        yield {"bytes_per_key": grown / scale.keys}


def load_zkv(folder: Path, scale: Scale) -> Rounds:
    """A restart on a journal of one put a line, and on the snapshot made of it."""
    journal, snapshot = _subfolder(folder, "journal"), folder / "snapshot"
    with running(peer := Zkv(journal, "never", compact_at=NEVER)):
        peer.fill(scale.keys)
    shutil.copytree(journal, snapshot)
    with running(peer := Zkv(snapshot, "never", compact_at=0)), peer.client() as client:
        wait_until(lambda: client.info()["journal_bytes"] == 0)
    yield from _restarts(Zkv(journal, "never", compact_at=NEVER), Zkv(snapshot), scale.keys)


def load_redis(folder: Path, scale: Scale) -> Rounds:
    """A restart on an append-only file of SETs, and on the same file rewritten."""
    journal, snapshot = _subfolder(folder, "journal"), folder / "snapshot"
    options = ("no", "--auto-aof-rewrite-percentage", "0")
    with running(peer := Redis(journal, *options)):
        peer.fill(scale.keys)
    shutil.copytree(journal, snapshot)
    with running(peer := Redis(snapshot, *options)):
        peer.rewrite()
    yield from _restarts(Redis(journal, *options), Redis(snapshot, *options), scale.keys)


def _restarts(journal: Peer, snapshot: Peer, keys: int) -> Rounds:
    while True:
        figures = {}
        for name, peer in (("journal", journal), ("snapshot", snapshot)):
            began = time.perf_counter()
            with running(peer):
                figures[f"{name}_keys_per_s"] = keys / (time.perf_counter() - began)
        yield figures


def _subfolder(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def _shuffled(script: KeyScript, keys: int) -> Script:
    """The script for a client by its number: each goes through all keys in its own order."""

    def numbered(client: Any, number: int) -> Call:
        every = names(keys)
        Random(number).shuffle(every)
        return script(client, cycle(every))

    return numbered
