"""zkv-client load, dump and backup: whole stores, in and out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from command_line import COMMAND, Ended, Run, environment, on_terminal, one_sentence, peer
from harness import EXIT_S, ServerProcess

import zkv

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


def test_a_dump_says_when_keys_expire_and_load_keeps_it(run: Run, store: zkv.Client) -> None:
    store.put("lock", 1, ttl=1000)
    store.put("soon", 1, ttl=2)
    store.put("for ever", 1)
    dumped = run("dump")
    expires = {
        line["key"]: line.get("expires") for line in map(json.loads, dumped.out.splitlines())
    }
    assert expires["for ever"] is None
    assert time.time() + 900 < expires["lock"] < time.time() + 1001

    store.clear("")
    time.sleep(max(0, expires["soon"] - time.time()) + 0.01)
    code, out, err = run("load", stdin=dumped.out)
    assert (code, out) == (0, b"")
    assert re.fullmatch(rb"loaded 2 keys in \d+\.\d\d s, 1 key had expired\n", err)
    assert [item.key for item in store.items()] == ["for ever", "lock"]
    assert 900 < (store.item("lock").ttl or 0) <= 1000
    assert store.item("for ever").ttl is None


@pytest.mark.parametrize("expires", ['"soon"', "true", "[1]"])
def test_load_says_what_expires_must_be(run: Run, store: zkv.Client, expires: str) -> None:
    line = f'{{"key":"k","value":1,"expires":{expires}}}\n'
    code, _, err = run("load", stdin=line.encode())
    assert code != 0
    assert b"stdin:1: expires must be seconds since 1970" in err
    assert store.count() == 0


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
     "value cannot be sent: an int in it is not -9223372036854775808..18446744073709551615"),
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
    shared_server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(f"{line}\n" for line in GOOD_LINES))
    bar = rb"(\r\x1b\[K\[#* *\] +\d+%  \d+ keys?)+\r\x1b\[K"
    code, shown = on_terminal(shared_server.endpoint, "load", str(file))
    assert code == 0
    assert re.fullmatch(bar + rb"loaded 1100 keys in \d+\.\d\d s\r\n", shown)
    code, shown = on_terminal(shared_server.endpoint, "dump", str(tmp_path / "dump"))
    assert code == 0
    assert re.fullmatch(bar + rb"dumped 1100 keys in \d+\.\d\d s\r\n", shown)
    assert (tmp_path / "dump").read_bytes() == file.read_bytes()


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


def test_load_goes_on_after_what_is_bad_and_names_it(
    run: Run, store: zkv.Client, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    lines = ['{"key":"a","value":1}', "oops", '{"key":"b","value":2}', '{"key":"","value":0}']
    file.write_text("\n".join([*lines, *GOOD_LINES, '{"key":"torn"']))
    code, out, err = run("load", str(file), "--skip-bad")
    assert (code, out) == (1, b"")
    said = err.decode().splitlines()
    assert said[:3] == [
        f"zkv-client: {file}:2: Expecting value, column 1",
        f"zkv-client: {file}:4: key must be a str of 1..1024 bytes",
        f"zkv-client: {file}:1105: Expecting ',' delimiter, column 14",
    ]
    assert re.fullmatch(r"loaded 1102 keys in \d+\.\d\d s", said[3])
    assert said[4:] == [f"zkv-client: {file}: 3 could not be loaded and were left out"]
    assert (store.count("k"), store.get("a"), store.get("b")) == (1100, 1, 2)


@pytest.mark.parametrize("first", ['{"key":"a"}', "{}", '{"key":"a","value":', '{"key":"a","va'])
@pytest.mark.parametrize("blank", ["", "\n\n"])
def test_load_goes_on_after_a_first_line_that_is_bad(
    run: Run, store: zkv.Client, first: str, blank: str
) -> None:
    good = '{"key":"b","value":1}\n\n{"key":"c","value":2}\n'
    code, _, err = run("load", "--skip-bad", stdin=f"{blank}{first}\n{blank}{good}".encode())
    said = err.decode().splitlines()
    assert (code, len(said)) == (1, 3)
    assert said[0].startswith(f"zkv-client: stdin:{1 + len(blank)}: ")
    assert said[1].startswith("loaded 2 keys")
    assert store.get_many(["a", "b", "c"]) == {"b": 1, "c": 2}


@pytest.mark.parametrize(
    "text", ['{"a":1}', '{"a":1}\n\n', '\n{\n\n"a":\n1}', '{"a":[\n{"key":"k","value":1}\n]}']
)
def test_one_object_may_stand_on_many_lines(run: Run, store: zkv.Client, text: str) -> None:
    assert run("load", stdin=text.encode()).code == 0
    assert store.get("a") == json.loads(text)["a"]
    assert store.count() == 1


def test_an_object_that_is_cut_short_is_not_taken_for_lines(run: Run, store: zkv.Client) -> None:
    text = b'{"users":[\n{"key":"a","value":1},\n{"key":"b","value":2}\n]\n'
    code, _, err = run("load", "--skip-bad", stdin=text)
    assert (code, store.count()) == (1, 0)
    assert err.startswith(b"zkv-client: stdin:5: ")


def test_load_with_nothing_to_skip_exits_with_0(run: Run, store: zkv.Client) -> None:
    assert run("load", "--skip-bad", stdin=b'{"key":"a","value":1}\n').code == 0
    assert run("load", "--skip-bad", stdin=b"[\n1\n]\n").code == 1  # not a line of it is an entry


def test_backup_shows_on_a_terminal_what_it_copies(
    shared_server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    store.put("k", 1)
    folder = str(tmp_path / "backup")
    code, shown = on_terminal(shared_server.endpoint, "backup", folder)
    assert code == 0
    assert re.fullmatch(
        rb"(\r\x1b\[K[\d.]+ [KMG]?i?B)*\r\x1b\[K" + re.escape(folder).encode()
        + rb": revision \d+\r\n", shown
    )  # fmt: skip
