"""The server under load: `bench`, with the letters of redis-benchmark.

It measures this Python client, too: the clients are threads of one process, which share one
interpreter. A server that is faster than that shows its speed to several benches at once.
"""

from __future__ import annotations

import itertools
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from zkv.cli import output
from zkv.cli.commands import Arguments
from zkv.cli.latency import Latency, measured
from zkv.errors import BadRequest, Error
from zkv.store import Store

PREFIX: Final = "zkv-bench:"
LIST_ITEMS: Final = 100

FILL_KEYS: Final = 500
FILL_BYTES: Final = 2**20

NOTE: Final = (
    "The clients are threads of one Python process, so this measures Python's client as well as "
    "the server."
)


class Test(NamedTuple):
    """`one(store, key, value)` does an operation; `many(store, keys, value)` does several as
    one transaction, if they can be.
    """

    one: Callable[[Store, str, str], object]
    many: Callable[[Store, list[str], str], object] | None = None
    filled: bool = False
    """Whether the keys must be there before."""


def _incr_many(store: Store, keys: list[str], _: str) -> None:
    with store.transaction() as block:
        for key in keys:
            block.incr(key + ":n")


TESTS: Final[dict[str, Test]] = {
    "ping": Test(lambda store, _, __: store.ping()),
    "put": Test(
        lambda store, key, value: store.put(key, value),
        lambda store, keys, value: store.put_many(dict.fromkeys(keys, value)),
    ),
    "get": Test(
        lambda store, key, _: store.get(key),
        lambda store, keys, _: store.get_many(keys),
        filled=True,
    ),
    "incr": Test(lambda store, key, _: store.incr(key + ":n"), _incr_many),
    "list": Test(
        lambda store, key, _: store.page(key.rpartition(":")[0], after=key, limit=LIST_ITEMS),
        filled=True,
    ),
}


class Result(NamedTuple):
    """What one test measured: `latency` is that of requests, each of `batch` operations."""

    test: str
    rate: float
    latency: Latency


def bench(store: Store, args: Arguments) -> None:
    """Runs each test in turn, and removes the keys, also after an error or an interrupt."""
    args.tests = args.tests or list(TESTS)
    if args.batch > 1 and (alone := [name for name in args.tests if not TESTS[name].many]):
        known = ",".join(name for name, test in TESTS.items() if test.many)
        raise BadRequest(f"-P is for -t {known}; no transaction can have {' or '.join(alone)}")
    prefix = f"{PREFIX}{secrets.token_hex(4)}:"
    try:
        _show(_results(store, args, prefix), args)
    finally:
        store.clear(prefix)


def _results(store: Store, args: Arguments, prefix: str) -> Iterator[Result]:
    if any(TESTS[name].filled for name in args.tests):
        _fill(store, args, prefix)
    for name in args.tests:
        yield _Load(store, TESTS[name], args, prefix).run(name)


def _fill(store: Store, args: Arguments, prefix: str) -> None:
    keys = (_key(prefix, number) for number in range(args.keys))
    together = max(1, min(FILL_KEYS, FILL_BYTES // args.bytes))
    while batch := list(itertools.islice(keys, together)):
        store.put_many(dict.fromkeys(batch, "x" * args.bytes))


def _key(prefix: str, number: int) -> str:
    return f"{prefix}{number:012}"


class _Load:
    """One test: threads that share the store and a number of operations to be done."""

    def __init__(self, store: Store, test: Test, args: Arguments, prefix: str) -> None:
        self._store = store
        self._test = test
        self._args = args
        self._prefix = prefix
        self._value = "x" * args.bytes
        self._shares = iter(range(0, args.operations, args.batch))
        self._next = threading.Lock()
        self._ended = threading.Event()
        self._seconds: list[float] = []
        self._error: Error | None = None

    def run(self, name: str) -> Result:
        """Raises what the first failing request did, when all threads have ended."""
        threads = [threading.Thread(target=self._client) for _ in range(self._args.clients)]
        started = time.perf_counter()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._ended.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._error is not None:
            raise self._error
        rate = self._args.operations / (time.perf_counter() - started)
        return Result(name, round(rate, 2), measured(self._seconds))

    def _client(self) -> None:
        while not self._ended.is_set():
            with self._next:
                first = next(self._shares, None)
            if first is None:
                return
            keys = self._keys(min(self._args.batch, self._args.operations - first))
            started = time.perf_counter()
            try:
                if self._test.many and self._args.batch > 1:
                    self._test.many(self._store, keys, self._value)
                else:
                    self._test.one(self._store, keys[0], self._value)
            except Error as error:
                self._error = self._error or error
                self._ended.set()
                return
            self._seconds.append(time.perf_counter() - started)

    def _keys(self, count: int) -> list[str]:
        return [_key(self._prefix, random.randrange(self._args.keys)) for _ in range(count)]


def _show(results: Iterator[Result], args: Arguments) -> None:
    if args.form:
        output.each((_plain(it) for it in results), args.form, str, at_once=True)
    elif args.csv:
        output.line(
            '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",'
            '"p99_latency_ms","max_latency_ms"'
        )
        output.each(results, None, _csv, at_once=True)
    elif args.quiet:
        output.each(results, None, _quiet, at_once=True)
    else:
        _show_table(results, args)


def _show_table(results: Iterator[Result], args: Arguments) -> None:
    together = f", {args.batch} in a transaction" if args.batch > 1 else ""
    output.line(
        f"{args.operations:,} operations a test{together}, {args.clients} clients, "
        f"values of {args.bytes} bytes, {args.keys:,} keys"
    )
    output.line(NOTE)
    output.line("")
    output.line(f"{'':<6}{'per second':>12}" + "".join(f"{it:>9}" for it in _MS) + "  (ms)")
    sys.stdout.flush()
    output.each(results, None, _row, at_once=True)


_MS: Final = ("min", "avg", "p50", "p95", "p99", "max")


def _plain(it: Result) -> dict[str, Any]:
    return {"test": it.test, "rate": it.rate, "latency_ms": it.latency._asdict()}


def _row(it: Result) -> str:
    figures = (getattr(it.latency, name) for name in _MS)
    return f"{it.test:<6}{it.rate:>12,.0f}" + "".join(f"{ms:>9.3f}" for ms in figures)


def _csv(it: Result) -> str:
    latency = it.latency
    figures = (latency.avg, latency.min, latency.p50, latency.p95, latency.p99, latency.max)
    return ",".join([f'"{it.test}"', f'"{it.rate:.2f}"', *(f'"{ms:.3f}"' for ms in figures)])


def _quiet(it: Result) -> str:
    return f"{it.test}: {it.rate:.2f} operations per second, p50={it.latency.p50:.3f} msec"
