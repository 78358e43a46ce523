"""zkv-client stat, latency, bigkeys and bench: what they measure, and what they leave behind."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
from io import StringIO
from typing import Any

import msgpack
import pytest
from command_line import COMMAND, Run, environment, one_sentence
from harness import EXIT_S, ServerProcess, wait_until

import zkv
from zkv.cli.bench import PREFIX, TESTS

PERCENTILES = ("min", "p50", "p95", "p99", "max")


def ordered(latency: dict[str, float]) -> bool:
    figures = [latency[name] for name in PERCENTILES]
    return figures == sorted(figures) and figures[0] <= latency["avg"] <= figures[-1]


def test_stat_prints_a_line_a_tick(run: Run, store: zkv.Client) -> None:
    store.put("k", 1)
    code, out, err = run("stat", "-i", "0.01", "-n", "21")
    assert (code, err) == (0, b"")
    lines = out.decode().splitlines()
    heads = [at for at, line in enumerate(lines) if "requests/s" in line]
    assert (len(lines), heads) == (23, [0, 21])  # the head comes again
    figures = dict(zip(lines[0].split(), lines[1].split(), strict=True))
    assert figures["keys"] == "1"
    assert figures["revision"] == f"{store.info()['revision']:,}"


def test_stat_tells_what_others_do(run: Run, store: zkv.Client) -> None:
    process = subprocess.Popen(
        [*COMMAND, "stat", "--interval", "0.01", "--jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(store.endpoint),
    )
    assert process.stdout is not None
    before = json.loads(process.stdout.readline())
    store.put("k", 1)
    assert run("get", "nobody").code == 3

    def told() -> bool:
        assert process.stdout is not None
        now = json.loads(process.stdout.readline())
        return bool(now["keys"] == 1 and now["errors"] == before["errors"] + 1)

    wait_until(told)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=EXIT_S)
    assert (process.returncode, err) == (130, b"")


def test_stat_as_one_document(run: Run, store: zkv.Client) -> None:
    assert run("get", "nobody").code == 3
    code, out, _ = run("stat", "-i", "0.01", "--count", "3", "--json")
    ticks = json.loads(out)
    assert (code, len(ticks)) == (0, 3)
    assert all(tick["errors"] > 0 and tick["errors/s"] == 0 for tick in ticks)
    assert all(tick["requests/s"] > 0 for tick in ticks)
    requests = [tick["requests"] for tick in ticks]
    assert [it - requests[0] for it in requests] == [0, 1, 2]  # its own


def test_latency_sums_up_round_trips(run: Run) -> None:
    code, out, err = run("latency", "-n", "20", "-i", "0.001")
    assert (code, err) == (0, b"")
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        rf"20 round trips: min {number}, avg {number}, p50 {number}, p99 {number}, "
        rf"max {number} ms\n",
        out.decode(),
    )
    found = json.loads(run("latency", "-n", "20", "-i", "0.001", "--json").out)
    assert found["requests"] == 20
    assert ordered(found)


def test_latency_says_what_it_has_when_interrupted(shared_server: ServerProcess) -> None:
    process = subprocess.Popen(
        [*COMMAND, "latency", "-n", "1000000", "-i", "0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(shared_server.endpoint),
    )
    with zkv.Client(shared_server.endpoint) as client:
        pings = client.info()["counters"]["requests"].get("ping", 0)
        wait_until(lambda: client.info()["counters"]["requests"].get("ping", 0) > pings + 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=EXIT_S)
    assert (process.returncode, err) == (130, b"")
    assert re.match(rb"\d+ round trips: min ", out)


BIG: dict[str, tuple[Any, str, int]] = {
    "blob": (b"\x00" * 5000, "bin", 5003),
    "text": ("ö" * 1000, "str", 2003),
    "list": ([1] * 100, "array", 103),
    "map": ({"a": 1}, "map", 4),
    "float": (0.5, "float", 9),
    "nil": (None, "nil", 1),
    "true": (True, "bool", 1),
    "one": (1, "int", 1),
    "when": (msgpack.Timestamp(1, 1), "timestamp", 10),
    "ext": (msgpack.ExtType(5, b"ab"), "ext", 4),
}


def test_bigkeys_weighs_every_value(run: Run, store: zkv.Client) -> None:
    for key, (value, _, _) in BIG.items():
        store.put(key, value)
    found = json.loads(run("bigkeys", "--json").out)
    assert found["keys"] == len(BIG)
    assert found["bytes"] == sum(size for _, _, size in BIG.values())
    assert found["largest"][:3] == [
        {"bytes": size, "key": key, "type": BIG[key][1]}
        for key, size in (("blob", 5003), ("text", 2003), ("list", 103))
    ]
    assert {name: it["largest"] for name, it in found["types"].items()} == {
        type_: key for key, (_, type_, _) in BIG.items()
    }
    assert len(json.loads(run("bigkeys", "-n", "2", "--json").out)["largest"]) == 2
    assert json.loads(run("bigkeys", "t", "--json").out)["keys"] == 2


def test_bigkeys_in_words(run: Run, store: zkv.Client) -> None:
    for first in range(0, 1500, 500):
        numbers = range(first, first + 500)
        store.put_many({f"k{number:04}": "x" * number for number in numbers})
    store.put("b", b"")
    code, out, err = run("bigkeys", "-n", "2")
    assert (code, err) == (0, b"")
    lines = [line.split() for line in out.decode().splitlines()]
    assert lines[:3] == [
        ["largest", "values", "type", "size"],
        ["k1499", "str", "1.5", "KiB"],
        ["k1498", "str", "1.5", "KiB"],
    ]
    assert [line[:2] for line in lines[4:7]] == [["type", "keys"], ["bin", "1"], ["str", "1,500"]]
    assert lines[-1][:2] == ["1501", "keys,"]
    assert run("bigkeys", "none").out.endswith(b"\n0 keys, 0 B of values\n")


@pytest.mark.parametrize("batch", ["1", "7"])
def test_bench_measures_and_leaves_nothing(run: Run, store: zkv.Client, batch: str) -> None:
    store.put("mine", 1)
    tests = [name for name, test in TESTS.items() if batch == "1" or test.many]
    code, out, err = run(
        "bench", "-c", "3", "-n", "50", "-d", "10", "-r", "20", "-P", batch, "-t", ",".join(tests),
        "--json",
    )  # fmt: skip
    assert (code, err) == (0, b"")
    results = json.loads(out)
    assert [it["test"] for it in results] == tests
    for result in results:
        assert result["latency_ms"].pop("requests") == -(-50 // int(batch))
        assert result["rate"] > 0
        assert ordered(result["latency_ms"])
    assert list(store.keys()) == ["mine"]


def test_bench_does_as_many_operations_as_it_says(run: Run, store: zkv.Client) -> None:
    def done() -> dict[str, int]:
        counters: dict[str, int] = store.info()["counters"]["requests"]
        return {op: counters.get(op, 0) for op in ("put", "incr", "txn")}

    before = done()
    assert run("bench", "-n", "40", "-t", "put,incr", "-q").code == 0
    assert done()["put"] - before["put"] == done()["incr"] - before["incr"] == 40


def test_bench_writes_tables_lines_and_csv(run: Run, store: zkv.Client) -> None:
    table = run("bench", "-n", "20", "-t", "put,get").out.decode()
    assert "20 operations a test, 8 clients, values of 100 bytes" in table
    assert "this measures Python's client as well as the server" in table
    assert re.search(r"^put +[\d,]+( +\d+\.\d{3}){6}$", table, re.MULTILINE)
    quiet = run("bench", "-n", "20", "-t", "put,get", "-q").out.decode()
    assert re.fullmatch(
        r"(?:(?:put|get): [\d.]+ operations per second, p50=\d+\.\d{3} msec\n){2}", quiet
    )
    rows = list(
        csv.DictReader(StringIO(run("bench", "-n", "20", "-t", "ping", "--csv").out.decode()))
    )
    assert [row["test"] for row in rows] == ["ping"]
    assert set(rows[0]) == {"test", "rps", "avg_latency_ms"} | {
        f"{name}_latency_ms" for name in PERCENTILES
    }


def test_bench_tidies_up_when_interrupted(store: zkv.Client) -> None:
    process = subprocess.Popen(
        [*COMMAND, "bench", "-n", "100000000", "-c", "2", "-t", "put"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(store.endpoint),
    )
    wait_until(lambda: store.count(PREFIX) > 10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=EXIT_S)
    assert (process.returncode, err) == (130, b"")
    assert store.count() == 0


def test_bench_refuses_what_no_transaction_can_hold(run: Run, store: zkv.Client) -> None:
    code, out, err = run("bench", "-P", "2", "-t", "ping,put")
    assert (code, out) == (1, b"")
    assert one_sentence(err)
    assert b"-P is for -t put,get,incr" in err


def test_bench_of_a_server_that_goes_says_so(run: Run, shared_server: ServerProcess) -> None:
    nobody = shared_server.endpoint.rpartition(":")[0] + ":9"
    code, out, err = run("bench", "-q", "--timeout", "0.2", endpoint=nobody)
    assert (code, out) == (6, b"")
    assert one_sentence(err)


def test_the_help_of_bench_names_every_test(run: Run) -> None:
    assert f"some of {','.join(TESTS)} (default: all)" in run("help", "bench").out.decode()
