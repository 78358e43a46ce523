"""What one request costs the server, step by step: CPU in µs, each step repeated by itself.

The caches are warm here. In a server under load a step takes two to three times as long,
and the I/O thread, the proxy and the switches between threads come on top.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import zmq
from peers import VALUE

from zkv import protocol, server, values
from zkv.engines.journal import record_line
from zkv.engines.table import Table
from zkv.operations import OPERATIONS
from zkv.transaction import Commit, Completed, Entry, Transaction

REPEATS: Final = 9
TIMES: Final = 5000
BATCHES: Final = 300
KEY: Final = "key:00000001"
SESSION: Final = {"session": "worker-7-of-some", "seq": 12}
ENVELOPE: Final = [b"\0name", b""]
LINE: Final = "{:<24} {:>6} {:>6}"


def show() -> None:
    """Prints the table."""
    get, put = {"key": KEY}, {"key": KEY, "value": VALUE}
    bodies = [protocol.encode_request("get", get), protocol.encode_request("put", put | SESSION)]
    entry = Entry(values.pack(VALUE), 7)
    commit = Commit(7, 1e9, {KEY: entry}, Completed("worker-7-of-some", 12, {"version": 7}))
    replies: list[dict[str, Any]] = [
        {"value": values.Packed(entry.packed), "version": 7},
        {"version": 7},
    ]
    table = Table()
    table.load(KEY, entry.packed, entry.version, None)

    def operate(body: bytes) -> float:
        request = protocol.decode_plain(body)
        assert request is not None
        args = request.args
        return _us(lambda: OPERATIONS[args.op](Transaction(table, 0.0, 8), args))

    print(LINE.format("µs", "get", "put"))
    _row("receive", *map(_receive_us, bodies))
    _row("decode and check", *[_us(partial(protocol.decode_plain, it)) for it in bodies])
    _row("operate", *map(operate, bodies))
    _row("journal: make the line", None, _us(lambda: record_line(commit, 7, 1)))
    _row("encode the reply", *[_us(partial(protocol.encode_reply, 1, 7, it)) for it in replies])
    _row("send", *[_send_us(protocol.encode_reply(1, 7, it)) for it in replies])


def _row(step: str, *figures: float | None) -> None:
    shown = ["" if figure is None else f"{figure:.1f}" for figure in figures]
    print(LINE.format(step, *shown), flush=True)


def _us(call: Callable[[], object]) -> float:
    taken = timeit.repeat(call, number=TIMES, repeat=REPEATS, timer=time.process_time)
    return min(taken) / TIMES * 1e6


def _receive_us(body: bytes) -> float:
    """Of a worker that takes a full batch; a request is three frames."""
    with _ends() as (worker, other):

        def receive() -> float:
            for _ in range(server.BATCH_MAX):
                other.send_multipart(ENVELOPE, zmq.SNDMORE)
                other.send(body)
            began = time.process_time()
            server._receive_batch(worker, stop_name=b"")
            return time.process_time() - began

        return min(receive() for _ in range(BATCHES)) / server.BATCH_MAX * 1e6


def _send_us(reply: bytes) -> float:
    """Of a worker that answers a full batch; a reply is three frames."""
    with _ends() as (worker, other):

        def send() -> float:
            began = time.process_time()
            for _ in range(server.BATCH_MAX):
                server._send(worker, ENVELOPE, reply)
            took = time.process_time() - began
            for _ in range(server.BATCH_MAX):
                other.recv_multipart()
            return took

        return min(send() for _ in range(BATCHES)) / server.BATCH_MAX * 1e6


@contextmanager
def _ends() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as one:
        one.bind("inproc://cost")
        with context.socket(zmq.PAIR) as other:
            other.connect("inproc://cost")
            yield one, other
