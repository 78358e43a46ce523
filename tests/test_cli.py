"""zkv-client: what it writes, byte for byte, and what it exits with."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import zmq
from harness import EXIT_S, ServerProcess, serving

import zkv
from zkv.cli import main

COMMAND = [sys.executable, "-m", "zkv.cli"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: bytes = b""


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of this file."""
    with serving(tmp_path_factory.mktemp("cli") / "data") as running:
        yield running


@pytest.fixture
def store(server: ServerProcess) -> Iterator[zkv.Client]:
    """The server's store, empty."""
    with zkv.Client(server.endpoint) as client:
        client.clear("")
        yield client


@pytest.fixture
def run(server: ServerProcess) -> Run:
    """Runs zkv-client on pipes."""

    def run(*args: str | bytes, stdin: bytes = b"", endpoint: str = server.endpoint) -> Ended:
        ended = subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            capture_output=True,
            env=environment(endpoint),
            timeout=EXIT_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


def environment(endpoint: str) -> dict[str, str]:
    # Unbuffered output would hide what can go wrong when the buffer is written out at the end.
    return {**os.environ, "ZKV_ENDPOINT": endpoint, "COLUMNS": "80", "PYTHONUNBUFFERED": ""}


def on_terminal(endpoint: str, *args: str, typed: bytes = b"") -> tuple[int, bytes]:
    """Runs zkv-client with a terminal as its stdin, stdout and stderr.

    What is typed is there before it starts, so that its echo comes first.
    """
    terminal, its_end = pty.openpty()
    os.write(terminal, typed)
    process = subprocess.Popen(
        [*COMMAND, *args], stdin=its_end, stdout=its_end, stderr=its_end, env=environment(endpoint)
    )
    os.close(its_end)
    shown = b""
    while select.select([terminal], [], [], EXIT_S)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # nobody has the other end any more
            break
    os.close(terminal)
    return process.wait(EXIT_S), shown


@contextmanager
def peer(tmp_path: Path) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """A ROUTER that answers what a test has it answer, and its endpoint."""
    endpoint = f"ipc://{tmp_path}/peer"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.rcvtimeo = EXIT_S * 1000
        socket.bind(endpoint)
        yield socket, endpoint


def one_sentence(err: bytes) -> bool:
    return re.fullmatch(rb"zkv-client: [^\n]+\n", err) is not None


JSON_VALUES: list[tuple[list[str], bytes, Any]] = [
    (["1"], b"", 1),
    (["-5.0"], b"", -5.0),
    (['{"name": "Ada", "tags": [1, null, true]}'], b"", {"name": "Ada", "tags": [1, None, True]}),
    (['"Zoë"'], b"", "Zoë"),
    (['{"$b": "AA=="}'], b"", {"$b": "AA=="}),
    (["18446744073709551615"], b"", 2**64 - 1),
    (["-"], b'{\n  "a": 1\n}\n', {"a": 1}),
]
TEXT_VALUES: list[tuple[list[str], bytes, Any]] = [
    (["hello"], b"", "hello"),
    (["007"], b"", "007"),
    (["NaN"], b"", "NaN"),
    (["[-Infinity]"], b"", "[-Infinity]"),
    ([""], b"", ""),
    (["--", "-x"], b"", "-x"),
    (["--text", "1"], b"", "1"),
    (["-"], "zwei\nZeilen …\n".encode(), "zwei\nZeilen …\n"),
    (["-"], b"", ""),
    (["--text", "-"], b'{"a": 1}\n', '{"a": 1}\n'),
]


@pytest.mark.parametrize(("args", "stdin", "value"), JSON_VALUES + TEXT_VALUES)
def test_put_stores_json_or_else_text(
    run: Run, store: zkv.Client, args: list[str], stdin: bytes, value: Any
) -> None:
    assert run("put", "k", *args, stdin=stdin) == Ended(0, b"")
    assert repr(store.get("k")) == repr(value)


REFUSED_VALUES: list[tuple[list[str], bytes]] = [
    (["18446744073709551616"], b""),
    (["1e999"], b""),
    (["9" * 5000], b""),
    (["-"], b"[" * 100_000),
    (['"\\ud800"'], b""),
    (["-"], b"\xff"),
    (["--text", "-"], b"\xff"),
]


@pytest.mark.parametrize(("args", "stdin"), REFUSED_VALUES)
def test_put_says_why_a_value_cannot_be_stored(
    run: Run, store: zkv.Client, args: list[str], stdin: bytes
) -> None:
    code, out, err = run("put", "k", *args, stdin=stdin)
    assert (code, out) == (1, b"")
    assert one_sentence(err)
    assert store.count() == 0


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("zwei\nZeilen …", "zwei\nZeilen …\n"),
        (b"\x00\xff\n", b"\x00\xff\n"),
        (2**60, "1152921504606846976\n"),
        (1.0, "1.0\n"),
        (float("nan"), '{"$f":"nan"}\n'),
        (None, "null\n"),
        (True, "true\n"),
        ({"a": [b"\x01"], "b": "ö"}, '{"a":[{"$b":"AQ=="}],"b":"ö"}\n'),
    ],
)
def test_get_writes_the_value_as_it_is(
    run: Run, store: zkv.Client, value: Any, written: str | bytes
) -> None:
    store.put("k", value)
    out = written if isinstance(written, bytes) else written.encode()
    assert run("get", "k") == Ended(0, out)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("zwei\nZeilen …", '"zwei\\nZeilen …"\n'),
        (b"\x00\xff", '{"$b":"AP8="}\n'),
        (2**60, '{"$i":"1152921504606846976"}\n'),
    ],
)
def test_get_writes_json_when_asked(run: Run, store: zkv.Client, value: Any, written: str) -> None:
    store.put("k", value)
    assert run("get", "k", "--json") == Ended(0, written.encode())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"name": "Ada", "n": [1]}, b'{\r\n  "name": "Ada",\r\n  "n": [\r\n    1\r\n  ]\r\n}\r\n'),
        ("Zoë\x1b[31m\x9b1m", '"Zoë\\u001b[31m\\u009b1m"\r\n'.encode()),
        (b"\x00", b'{\r\n  "$b": "AA=="\r\n}\r\n'),
        (2**60, b"1152921504606846976\r\n"),
    ],
)
def test_get_is_readable_on_a_terminal(
    server: ServerProcess, store: zkv.Client, value: Any, shown: bytes
) -> None:
    store.put("k", value)
    assert on_terminal(server.endpoint, "get", "k") == (0, shown)


def test_json_on_a_terminal_is_as_on_a_pipe(server: ServerProcess, store: zkv.Client) -> None:
    store.put("k", {"a": 1})
    assert on_terminal(server.endpoint, "--json", "get", "k") == (0, b'{"a":1}\r\n')


def test_a_key_may_be_any_text(run: Run, store: zkv.Client) -> None:
    for key in ("ключ 🔑", "-"):
        assert run("put", key, "1") == Ended(0, b"")
        assert run("get", key) == Ended(0, b"1\n")
    assert run("put", "--", "--json", "2") == Ended(0, b"")
    assert list(store.keys()) == ["-", "--json", "ключ 🔑"]


def test_put_and_delete_are_silent_or_give_the_version(run: Run, store: zkv.Client) -> None:
    code, out, _ = run("put", "k", "1", "--json")
    version = store.item("k").version
    assert (code, out) == (0, b'{"version":%d}\n' % version)
    assert run("delete", "k", "--json") == Ended(0, b'{"version":%d}\n' % version)
    store.put("k", 1)
    assert run("delete", "k") == Ended(0, b"")
    assert store.count() == 0


def test_incr_prints_the_sum(run: Run, store: zkv.Client) -> None:
    assert run("incr", "n") == Ended(0, b"1\n")
    assert run("incr", "n", "--by", "-3") == Ended(0, b"-2\n")
    assert run("incr", "n", "--by", "0.5") == Ended(0, b"-1.5\n")
    assert run("incr", "m", "--initial", "10", "--json") == Ended(0, b"11\n")
    store.put("text", "1")
    code, out, err = run("incr", "text")
    assert (code, out) == (1, b"")
    assert one_sentence(err)


def test_list_prints_keys_in_order(run: Run, store: zkv.Client) -> None:
    for key, value in {"b:2": [b"\x00"], "b:1": "x\ty", "a": 1, "ä": None}.items():
        store.put(key, value)
    versions = {item.key: item.version for item in store.items()}
    assert run("list") == Ended(0, "a\nb:1\nb:2\nä\n".encode())
    assert run("list", "b:") == Ended(0, b"b:1\nb:2\n")
    assert run("list", "--limit", "2") == Ended(0, b"a\nb:1\n")
    assert run("list", "--after", "b:1") == Ended(0, "b:2\nä\n".encode())
    assert run("list", "b:", "--values") == Ended(0, b'b:1\t"x\\ty"\nb:2\t[{"$b":"AA=="}]\n')
    assert run("list", "ä", "--json") == Ended(
        0, f'{{"key":"ä","version":{versions["ä"]}}}\n'.encode()
    )
    assert run("--json", "list", "b:2", "--values") == Ended(
        0, b'{"key":"b:2","version":%d,"value":[{"$b":"AA=="}]}\n' % versions["b:2"]
    )
    assert run("list", "none") == Ended(0, b"")


def test_list_keeps_each_key_on_a_line_of_its_own(run: Run, store: zkv.Client) -> None:
    for key in ("a\nb", '"a"', "tab\t\x9b", 'in "quotes"'):
        store.put(key, 1)
    assert run("list") == Ended(0, b'"\\"a\\""\n"a\\nb"\nin "quotes"\n"tab\\t\\u009b"\n')


def test_list_and_count_know_all_keys_of_many_pages(run: Run, store: zkv.Client) -> None:
    keys = [f"k{number:05}" for number in range(2500)]
    for first in range(0, 2500, 500):
        store.put_many(dict.fromkeys(keys[first : first + 500]))
    assert run("list") == Ended(0, "".join(f"{key}\n" for key in keys).encode())
    assert run("list", "--after", "k00009", "--limit", "1500") == Ended(
        0, "".join(f"{key}\n" for key in keys[10:1510]).encode()
    )
    assert run("count") == Ended(0, b"2500\n")
    assert run("count", "k000") == Ended(0, b"100\n")
    assert run("count", "none", "--json") == Ended(0, b'{"count":0}\n')


def test_clear_on_a_pipe_does_not_ask(run: Run, store: zkv.Client) -> None:
    for key in ("a:1", "a:2", "b"):
        store.put(key, 1)
    assert run("clear", "a:") == Ended(0, b"2\n")
    assert run("clear", "", "--json") == Ended(0, b'{"count":1}\n')
    assert run("clear").code == 2


def test_clear_on_a_terminal_asks(server: ServerProcess, store: zkv.Client) -> None:
    store.put("a:1", 1)
    question = b'Remove 1 key with the prefix "a:"? [y/N] '
    refused = b"zkv-client: nothing was removed\r\n"
    for answer in (b"n\n", b"\n", b"\x04"):
        code, shown = on_terminal(server.endpoint, "clear", "a:", typed=answer)
        assert (code, shown.endswith(question + refused)) == (1, True)
    assert store.count() == 1
    code, shown = on_terminal(server.endpoint, "clear", "a:", typed=b"y\n")
    assert (code, shown) == (0, b"y\r\n" + question + b"1\r\n")
    assert on_terminal(server.endpoint, "clear", "", "--yes") == (0, b"0\r\n")


def test_ping_prints_the_round_trip_time(run: Run) -> None:
    code, out, err = run("ping")
    assert (code, err) == (0, b"")
    assert re.fullmatch(rb"\d+\.\d{3} ms\n", out)
    code, out, err = run("ping", "--json")
    assert list(json.loads(out)) == ["ms"]


def test_info_prints_every_fact(run: Run, store: zkv.Client) -> None:
    store.put("k", 1)
    code, out, err = run("info")
    assert (code, err) == (0, b"")
    lines = out.decode().splitlines()
    assert {"name: zkv", f"version: {zkv.__version__}", "keys: 1"} <= set(lines)
    assert "limits.key_bytes: 1024" in lines
    assert any(re.fullmatch(r"started: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", it) for it in lines)
    code, out, err = run("info", "--json")
    assert (code, out.count(b"\n"), err) == (0, 1, b"")
    assert json.loads(out).keys() == store.info().keys()


VALUES_BEYOND_JSON: dict[str, Any] = {
    "bin": b"\x00\xff",
    "nan": float("nan"),
    "minus": [float("-inf"), -0.0],
    "int": [2**53, 2**64 - 1, -(2**63)],
    "time": msgpack.Timestamp(1_795_377_851, 999_999_999),
    "ext": msgpack.ExtType(42, b"\x01"),
    "map": {1: "one", b"k": {"$b": "no tag"}, None: []},
    "line\nbreak": "ü",
    "text": "plain",
}


def test_a_dump_loads_into_an_equal_store(run: Run, store: zkv.Client, tmp_path: Path) -> None:
    for key, value in VALUES_BEYOND_JSON.items():
        store.put(key, value)
    before = [(item.key, repr(item.value)) for item in store.items()]
    dumped = run("dump")
    assert (dumped.code, dumped.err) == (0, b"")
    first = b'{"key":"bin","value":{"$b":"AP8="}}\n'
    assert dumped.out.startswith(first)

    store.clear("")
    code, out, err = run("load", stdin=dumped.out)
    assert (code, out) == (0, b"")
    assert re.fullmatch(rb"loaded 9 keys in \d+\.\d\d s\n", err)
    assert [(item.key, repr(item.value)) for item in store.items()] == before

    file = tmp_path / "dump.jsonl"
    code, out, err = run("dump", str(file))
    assert (code, out) == (0, b"")
    assert re.fullmatch(rb"dumped 9 keys in \d+\.\d\d s\n", err)
    assert file.read_bytes() == dumped.out
    assert os.listdir(tmp_path) == ["dump.jsonl"]

    assert run("dump", "-", "--prefix", "bi") == Ended(0, first)


def test_a_dump_of_nothing_is_empty(run: Run, store: zkv.Client) -> None:
    assert run("dump") == Ended(0, b"")
    code, out, err = run("load")
    assert (code, out) == (0, b"")
    assert re.fullmatch(rb"loaded 0 keys in \d+\.\d\d s\n", err)


def test_a_dump_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "dump.jsonl"
    file.write_text("old\n")
    with peer(tmp_path) as (socket, endpoint):
        process = subprocess.Popen(
            [*COMMAND, "dump", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(endpoint),
        )
        page = {"ok": True, "revision": 1, "items": [["k", 1, "value"]], "more": True}
        for reply in (msgpack.packb({"ok": True, "revision": 1, "count": 2}),
                      msgpack.packb(page), b"junk"):  # fmt: skip
            *envelope, _ = socket.recv_multipart()
            socket.send_multipart([*envelope, reply])
        out, err = process.communicate(timeout=EXIT_S)
    assert (process.returncode, out) == (1, b"")
    assert one_sentence(err)
    assert file.read_text() == "old\n"
    assert os.listdir(folder) == ["dump.jsonl"]


def test_a_dump_follows_a_link_and_writes_to_a_pipe(
    run: Run, store: zkv.Client, tmp_path: Path
) -> None:
    store.put("k", 1)
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to("target")
    assert run("dump", str(link)).code == 0
    assert link.is_symlink()
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    assert run("dump", str(fifo)).code == 0
    reader.join()
    assert read == [(tmp_path / "target").read_bytes()] == [b'{"key":"k","value":1}\n']


def test_load_takes_the_lines_of_a_snapshot(run: Run, store: zkv.Client, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(
        '{"key":"a","value":{"$i":"9007199254740993"},"version":3,"crc":"5d1f0a3e"}\n'
        "\n"
        ' {"version":4,"value":null,"key":"b"}\r\n'
        '{"key":"a b","value":[1]}'
    )
    code, out, err = run("load", str(file))
    assert (code, out) == (0, b"")
    assert re.fullmatch(rb"loaded 3 keys in \d+\.\d\d s\n", err)
    assert [item[:2] for item in store.items()] == [("a", 2**53 + 1), ("a b", [1]), ("b", None)]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "$b": {"$b": "AA=="}}',
        '\n\n{\n  "a": 1,\n\n  "$b": {\n    "$b": "AA=="\n  }\n}\n',
        '{"a": 1,\n"$b": {"$b": "AA=="}}\n\n',
    ],
)
def test_load_takes_one_object_of_plain_json(run: Run, store: zkv.Client, text: str) -> None:
    code, out, err = run("load", stdin=text.encode())
    assert (code, out) == (0, b"")
    assert re.fullmatch(rb"loaded 2 keys in \d+\.\d\d s\n", err)
    assert [item[:2] for item in store.items()] == [("$b", {"$b": "AA=="}), ("a", 1)]


def test_load_keeps_the_last_of_equal_keys(run: Run, store: zkv.Client) -> None:
    lines = "".join(f'{{"key":"k{number % 7}","value":{number}}}\n' for number in range(1201))
    assert run("load", "-", stdin=lines.encode()).code == 0
    assert {item.key: item.value for item in store.items()} == {
        f"k{number % 7}": number for number in range(1194, 1201)
    }


GOOD_LINES = [f'{{"key":"k{number:04}","value":{number}}}' for number in range(1, 1101)]
BAD_LINES = [
    ('{"key":"k","value":oops}', "Expecting value, column 20"),
    ('{"key":"k"', "Expecting ',' delimiter, column 11"),
    ('{"key":"k","value":NaN}', "NaN is not JSON"),
    ('{"key":"k"}', 'a line must be {"key":…,"value":…}'),
    ("[1]", 'a line must be {"key":…,"value":…}'),
    ('{"key":1,"value":1}', "key must be a str"),
    ('{"key":"k","value":{"$q":1}}', "not a value that zkv wrote: $q"),
    ('{"key":"","value":1}', "key must be a str of 1..1024 bytes"),
    (f'{{"key":"{"k" * 1025}","value":1}}', "key has 1025 bytes, the limit is 1024"),
    ('{"key":"k","value":18446744073709551616}',
     "msgpack cannot carry this: Integer value out of range"),
    ('{"key":"k","value":' + "[" * 600 + "]" * 600 + "}", "the value nests too deep"),
    ('{"key":"k","value":"\udcff"}',
     "'utf-8' codec can't decode byte 0xff in position 20: invalid start byte"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_load_stops_at_a_bad_line(
    run: Run, store: zkv.Client, tmp_path: Path, bad: str, reason: str
) -> None:
    file = tmp_path / "lines.jsonl"
    lines = "\n".join([*GOOD_LINES, bad, '{"key":"later","value":1}'])
    file.write_bytes(lines.encode(errors="surrogateescape"))
    sentence = f"zkv-client: {file}:1101: {reason} (loaded 1100 keys before)\n"
    assert run("load", str(file)) == Ended(1, b"", sentence.encode())
    assert store.count() == store.count("k") == 1100


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("oops\n", "stdin:1: Expecting value, column 1"),
        ('{"a": 1}\n{"b": 2}\n', 'stdin:1: a line must be {"key":…,"value":…}'),
        ('\n{\n  "a": 1,\n  "b": oops\n}\n', "stdin:4: Expecting value, column 8"),
        ('{\n  "a": [NaN]\n}\n', "stdin: NaN is not JSON"),
        ("[\n1\n]\n", "stdin: neither JSON Lines nor one JSON object"),
        ('{\n  "": 1}\n', 'stdin: "": key must be a str of 1..1024 bytes'),
    ],
)
def test_load_says_where_an_object_is_bad(
    run: Run, store: zkv.Client, text: str, sentence: str
) -> None:
    said = f"zkv-client: {sentence} (loaded 0 keys before)\n"
    assert run("load", stdin=text.encode()) == Ended(1, b"", said.encode())
    assert store.count() == 0


def test_load_and_dump_show_a_bar_on_a_terminal(
    server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(f"{line}\n" for line in GOOD_LINES))
    bar = rb"(\r\x1b\[K\[#* *\] +\d+%  \d+ keys?)+\r\x1b\[K"
    code, shown = on_terminal(server.endpoint, "load", str(file))
    assert code == 0
    assert re.fullmatch(bar + rb"loaded 1100 keys in \d+\.\d\d s\r\n", shown)
    code, shown = on_terminal(server.endpoint, "dump", str(tmp_path / "dump"))
    assert code == 0
    assert re.fullmatch(bar + rb"dumped 1100 keys in \d+\.\d\d s\r\n", shown)
    assert (tmp_path / "dump").read_bytes() == file.read_bytes()


def test_a_missing_key_exits_with_3(run: Run, store: zkv.Client) -> None:
    said = "zkv-client: no such key: schlüssel\n".encode()
    assert run("get", "schlüssel") == run("delete", "schlüssel") == Ended(3, b"", said)


def test_a_usage_error_exits_with_2(run: Run) -> None:
    for args in ([], ["get", b"\xff"], ["--endpoint", "localhost", "ping"]):
        code, out, err = run(*args)
        assert (code, out) == (2, b"")
        assert re.fullmatch(rb"usage: zkv-client .*\nzkv-client: error: [^\n]+\n", err, re.DOTALL)


@pytest.mark.parametrize(
    "args",
    [
        ["set", "k", "1"],
        ["get"],
        ["put", "k"],
        ["put", "k", "--", "--"],
        ["list", "--limit", "0"],
        ["list", "--limit", "9" * 30],
        ["incr", "k", "--by", "NaN"],
        ["ping", "--timeout", "0"],
        ["ping", "--timeout", "inf"],
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"\nzkv-client( \w+)?: error: [^\n]+\n$", err)


def test_no_reply_exits_with_5(run: Run, tmp_path: Path) -> None:
    with peer(tmp_path) as (_, endpoint):
        code, out, err = run("--timeout", "0.1", "get", "k", endpoint=endpoint)
    assert (code, out) == (5, b"")
    assert one_sentence(err)


def test_no_server_exits_with_6(run: Run, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/nobody"
    code, out, err = run("get", "k", "--timeout", "0.1", endpoint=endpoint)
    assert (code, out) == (6, b"")
    assert one_sentence(err)
    assert f"nothing listens at {endpoint}".encode() in err


def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    with peer(tmp_path) as (socket, endpoint):
        process = subprocess.Popen(
            [*COMMAND, "get", "k"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(endpoint),
        )
        socket.recv_multipart()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=EXIT_S) == (b"", b"")
    assert process.returncode == 130


def test_a_pipe_that_is_closed_early_is_no_noise(server: ServerProcess, store: zkv.Client) -> None:
    store.put_many({f"{number}:{'x' * 900}": None for number in range(500)})
    process = subprocess.Popen(
        [*COMMAND, "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(server.endpoint),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(EXIT_S) == 141


def test_nobody_reads_the_little_that_is_written(server: ServerProcess, store: zkv.Client) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*COMMAND, "count"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(server.endpoint),
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_file_that_cannot_be_used_is_named(run: Run, store: zkv.Client, tmp_path: Path) -> None:
    missing = tmp_path / "none" / "file"
    code, out, err = run("load", str(missing))
    assert (code, out, err) == (
        1, b"", f"zkv-client: {missing}: No such file or directory\n".encode()
    )  # fmt: skip
    code, out, err = run("dump", str(tmp_path))
    assert (code, out, err) == (1, b"", f"zkv-client: {tmp_path}: Is a directory\n".encode())
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [*COMMAND, "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(store.endpoint),
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, b"zkv-client: No space left on device\n")


def test_a_server_that_is_not_zkv_is_an_error(tmp_path: Path) -> None:
    with peer(tmp_path) as (socket, endpoint):
        process = subprocess.Popen(
            [*COMMAND, "ping"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(endpoint),
        )
        *envelope, _ = socket.recv_multipart()
        socket.send_multipart([*envelope, b"HTTP/1.1 400 Bad Request"])
        out, err = process.communicate(timeout=EXIT_S)
    assert (process.returncode, out) == (1, b"")
    assert one_sentence(err)


def test_common_options_stand_before_or_behind_the_command(
    run: Run, server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    store.put("k", "v")
    nobody = f"ipc://{tmp_path}/nobody"
    given = ["--endpoint", server.endpoint, "--timeout", "3", "--json"]
    assert run(*given, "get", "k", endpoint=nobody) == Ended(0, b'"v"\n')
    assert run("get", *given, "k", endpoint=nobody) == Ended(0, b'"v"\n')
    assert run("get", "k", *given, endpoint=nobody) == Ended(0, b'"v"\n')
    assert run("--endpoint", nobody, "get", "k", "--endpoint", server.endpoint) == Ended(0, b"v\n")


def test_version_and_help(run: Run) -> None:
    version = Ended(0, f"zkv {zkv.__version__}\n".encode())
    assert run("--version") == run("get", "--version") == version
    code, out, err = run("--help")
    assert (code, err) == (0, b"")
    words = re.findall(rb"^    (\w+)  ", out, re.MULTILINE)
    assert b" ".join(words) == (
        b"get put delete incr list count clear ping info load dump compact backup"
    )
    assert b"\nExit codes: 0 done, " in out


def test_put_on_a_condition_and_for_a_time(run: Run) -> None:
    assert run("put", "once", "1", "--if-version", "0") == Ended(0, b"", b"")
    ended = run("put", "once", "2", "--if-version", "0")
    assert ended == Ended(4, b"", b"zkv-client: the version is not the expected one\n")
    assert run("delete", "once", "--if-version", "99").code == 4
    assert run("put", "once", "3", "--ttl", "0.001").code == 0
    assert run("get", "once").code == 3


def test_backup_makes_a_folder_that_can_be_opened(run: Run, tmp_path: Path) -> None:
    run("put", "k", '{"a": 1}')
    folder = str(tmp_path / "backup")
    ended = run("backup", folder, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["revision"] >= 2
    with zkv.open(folder) as copy:
        assert copy.get("k") == {"a": 1}
    ended = run("backup", folder)
    assert (ended.code, ended.out) == (1, b"")
    assert b"cannot make the folder" in ended.err
    assert run("compact") == Ended(0, b"", b"")
