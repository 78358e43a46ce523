"""What is measured, against what, and what is hoped for: `WORKS`, a literal table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trials
from peers import Course, Echo, Redis, Zkv
from trials import FEW, MANY, Trial

Options = dict[str, Any]


class Target(NamedTuple):
    """What the ratio of zkv's figure to its peer's should be, or zkv's figure itself."""

    sign: str
    wanted: float
    itself: bool = False

    def reached(self, figure: float, ratio: float) -> bool:
        judged = figure if self.itself else ratio
        return judged >= self.wanted if self.sign == "≥" else judged <= self.wanted


class Work(NamedTuple):
    """One row. `rounds_max` is for what is slow and steady."""

    name: str
    what: str
    against: str
    targets: dict[str, Target]
    zkv: Trial
    peer: Trial
    rounds_max: int = 1000


def least(ratio: float) -> Target:
    return Target("≥", ratio)


def most(ratio: float) -> Target:
    return Target("≤", ratio)


def itself_most(figure: float) -> Target:
    return Target("≤", figure, itself=True)


def on(trial: Any, peer: Any, fsync: str | None = None, **options: Any) -> Trial:
    """The trial of a peer, with the durability that it names like that."""
    make = partial(peer, fsync=fsync) if fsync else peer
    return partial(trial, make, **options)


def get(peer: Any, clients: int) -> Trial:
    return on(trials.traffic, peer, script=trials.get, clients=clients)


def put(peer: Any, fsync: str, clients: int) -> Trial:
    return on(trials.traffic, peer, fsync, script=trials.put, clients=clients)


def rewritten_by_hand(folder: Path) -> Redis:
    return Redis(folder, "always", "--auto-aof-rewrite-percentage", "0")


get_many: Options = {"script": trials.get_many, "clients": 1, "keys_each": MANY}
put_many: Options = {"script": trials.put_many, "clients": 1, "keys_each": MANY}
course: Options = {"script": trials.put, "clients": 8, "keys": FEW}
echo = partial(Echo, frames=2)

WORKS: Final = (
    Work("get-8", "8 clients, get 100 B",
         "redis", {"requests_per_s": least(1.0)},
         get(Zkv, 8), get(Redis, 8)),
    Work("put-never-8", "8 clients, put, fsync never",
         "redis", {"requests_per_s": least(1.0)},
         put(Zkv, "never", 8), put(Redis, "no", 8)),
    Work("put-always-8", "8 clients, put, fsync always",
         "redis", {"requests_per_s": least(0.85), "p99_us": most(1.0)},
         put(Zkv, "always", 8), put(Redis, "always", 8)),
    Work("put-always-24", "24 clients, put, fsync always",
         "redis", {"requests_per_s": least(1.1), "p99_us": most(1.0)},
         put(Zkv, "always", 24), put(Redis, "always", 24)),
    Work("get-1", "one client, get",
         "redis", {"p50_us": most(0.75)},
         get(Zkv, 1), get(Redis, 1)),
    Work("get-2", "two clients, get",
         "redis", {"p50_us": most(0.75)},
         get(Zkv, 2), get(Redis, 2)),
    Work("put-always-1", "one client, put, fsync always",
         "redis", {"p50_us": most(1.1)},
         put(Zkv, "always", 1), put(Redis, "always", 1)),
    Work("txn-500", "txn of 500 puts, fsync always / MULTI pipeline of 500",
         "redis", {"keys_per_s": least(4.0)},
         on(trials.traffic, Zkv, "always", **{**put_many, "script": trials.txn}),
         on(trials.traffic, Redis, "always", **put_many)),
    Work("put-many-500", "put_many of 500, fsync always / MULTI pipeline of 500",
         "redis", {"keys_per_s": least(4.0)},
         on(trials.traffic, Zkv, "always", **put_many),
         on(trials.traffic, Redis, "always", **put_many)),
    Work("get-many-500", "get_many of 500 / pipeline of 500",
         "redis", {"keys_per_s": least(4.5)},
         on(trials.traffic, Zkv, **get_many), on(trials.traffic, Redis, **get_many)),
    Work("echo-50x1", "50 native connections, 1 in flight, get",
         "echo", {"requests_per_s": least(0.95)},
         on(trials.native, Zkv, in_flight=1), on(trials.native, echo, in_flight=1)),
    Work("echo-50x16", "50 native connections, 16 in flight, get",
         "echo", {"requests_per_s": least(0.6)},
         on(trials.native, Zkv, in_flight=16), on(trials.native, echo, in_flight=16)),
    Work("echo-100x128", "100 native connections, 128 in flight, get",
         "echo", {},
         on(trials.native, Zkv, in_flight=128, connections=100),
         on(trials.native, echo, in_flight=128, connections=100)),
    Work("cpu-8", "the server's CPU a request, 8 clients, get",
         "echo", {"server_cpu_us": most(1.25)},
         get(Zkv, 8), get(Echo, 8)),
    Work("memory", "memory a key, 1 M keys × 100 B",
         "redis", {"bytes_per_key": most(1.6)},
         on(trials.memory, Zkv, "never"), on(trials.memory, Redis, "no"), rounds_max=2),
    Work("put-growth", "put, put and delete with 1 M keys, against 1 k keys",
         "zkv with 1 k keys", {"request_us": most(1.15)},
         partial(trials.growth, many=True), partial(trials.growth, many=False)),
    Work("values-1mib", "one client, values of 1 MiB, fsync never",
         "redis", {"put_mb_per_s": least(1.0), "get_mb_per_s": least(1.0)},
         on(trials.blobs, Zkv, "never"), on(trials.blobs, Redis, "no")),
    Work("course", "8 clients, put, 1 k keys, fsync always / HTTP, one lock, one JSON file",
         "course", {"requests_per_s": least(20)},
         on(trials.traffic, Zkv, "always", **course), on(trials.traffic, Course, **course)),
    Work("course-never", "the same, fsync never, as the course design has none",
         "course", {"requests_per_s": least(20)},
         on(trials.traffic, Zkv, "never", **course), on(trials.traffic, Course, **course)),
    Work("compaction", "8 clients, put, 1 M keys, fsync always: at rest / while compacted",
         "redis", {"p99_times": itself_most(2.0), "p99.9_times": itself_most(2.0)},
         partial(trials.compaction, partial(Zkv, compact_at=trials.NEVER)),
         partial(trials.compaction, rewritten_by_hand), rounds_max=3),
    Work("load", "start on 1 M keys × 100 B: journal / AOF, snapshot / rewritten AOF",
         "redis", {}, trials.load_zkv, trials.load_redis),
)  # fmt: skip
