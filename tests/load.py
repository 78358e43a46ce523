"""One process of load, and what it saw; also the state of a store as a raw client lists it.

python load.py ENDPOINT WRITER THREADS OPERATIONS SEED

It says that it is ready, waits for a line, makes random requests on keys that all processes
share, and prints its events as JSON: [op, key, begin, end, version, value]. `version` is the
one read or made, or for a key that is gone the revision at which it was; the times are of
the clock that all processes share. It needs no zkv: any client could do the same.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

import msgpack
import zmq

KEYS = 20
COUNTERS = 4


def everything(socket: zmq.Socket[bytes]) -> list[list[Any]]:
    """[key, version, value] of every key, in order."""
    items: list[list[Any]] = []
    more = True
    while more:
        after = items[-1][0] if items else ""
        socket.send(msgpack.packb({"op": "list", "after": after, "values": True}))
        reply = msgpack.unpackb(socket.recv())
        items += reply["items"]
        more = reply["more"]
    return items


def random_request(rng: random.Random, value: Any) -> dict[str, Any]:
    key = f"key:{rng.randrange(KEYS)}"
    op = rng.choice(("put", "put", "get", "get", "get", "delete", "incr", "incr"))
    if op == "incr":
        return {"op": op, "key": f"counter:{rng.randrange(COUNTERS)}"}
    return {"op": op, "key": key, **({"value": value} if op == "put" else {})}


def load(endpoint: str, writer: str, operations: int, seed: str, events: list[Any]) -> None:
    rng = random.Random(f"{seed} {writer}")
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.rcvtimeo = 30_000
        socket.connect(endpoint)
        for number in range(operations):
            request = random_request(rng, [writer, number])
            begin = time.monotonic_ns()
            socket.send(msgpack.packb(request))
            reply = msgpack.unpackb(socket.recv())
            end = time.monotonic_ns()
            assert reply["ok"] or reply["error"] == "not_found", reply
            gone = request["op"] == "delete" or not reply["ok"]
            version = reply["revision"] if gone else reply["version"]
            value = None if gone else reply.get("value", request.get("value"))
            events.append([request["op"], request["key"], begin, end, version, value])


def main(endpoint: str, writer: str, threads: str, operations: str, seed: str) -> None:
    events: list[Any] = []
    running = [
        threading.Thread(
            target=load, args=(endpoint, f"{writer}.{number}", int(operations), seed, events)
        )
        for number in range(int(threads))
    ]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    print(json.dumps(events))


if __name__ == "__main__":
    main(*sys.argv[1:])
