"""zkv-client without a command on a pipe: commands from standard input, one a line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, Ended, Run, environment
from harness import EXIT_S, ServerProcess

import zkv


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("put k 1", 1),
        ('put k {"a": [1, {"b": "}"}], "c": "x y"}', {"a": [1, {"b": "}"}], "c": "x y"}),
        ('put k {\n  "a": [\n    1\n  ],\n\n  "b": "\\"{"\n}', {"a": [1], "b": '"{'}),
        ("put k [1, 2] --ttl 60", [1, 2]),
        ('put k {"a": "}\n"}', '{"a": "}\n"}'),  # a string goes on, too; but then it is no JSON
        ("  put   'k'   'two  words' ", "two  words"),
        ('put k "a \\"b\\" \\\\ $c"', 'a "b" \\ $c'),
        ("put k 'two\nlines'", "two\nlines"),
        ("put k a\\ b\\'c", "a b'c"),
        ("put k it''s\"ö\"'…'", "itsö…"),
        ("put \\\nk 1", 1),
        ("put k 1\\\n2", 12),
        ("put k \\\n  a\\\\", "a\\"),
        ("put k ''", ""),
        ("put k '{\"a\": 1}'", {"a": 1}),
        ("put k --text '[1]'", "[1]"),
        ("put k #1", "#1"),
    ],
)
def test_a_line_is_read_as_sh_would_and_json_needs_no_quotes(
    run: Run, store: zkv.Client, typed: str, value: Any
) -> None:
    script = f"# a comment, and then an empty line\n\n{typed}\ncount\n"
    code, out, err = run(stdin=script.encode())
    looks_like_json = type(value) is str and value.startswith("{")
    assert (code, out, b"taken as text" in err) == (0, b"1\n", looks_like_json)
    assert repr(store.get("k")) == repr(value)


def test_what_fails_does_not_stop_the_rest(run: Run, store: zkv.Client) -> None:
    script = (
        "put a 1\n"
        "get nobody\n"
        "lsit\n"
        "put b\n"
        "put c {\n"
        '"x": 1}\n'
        "load /nowhere\n"
        "put d -\n"
        "count\n"
        "put e \xff\n"
        "put f {'\n"
        "put g 1"
    )
    code, out, err = run(stdin=script.encode("latin-1"))
    assert (code, out) == (3, b"2\n")  # the code of the first that failed
    assert err.decode().splitlines() == [
        "zkv-client: line 2: no such key: nobody",
        "zkv-client: line 3: no such command: lsit (did you mean list?)",
        "usage: put KEY (VALUE | -x) [--text | --bytes] [--ttl SECONDS] [--if-version N]",
        "put: error: the following arguments are required: VALUE",
        "zkv-client: line 4: not run",
        "zkv-client: line 7: /nowhere: No such file or directory",
        "zkv-client: line 8: standard input holds the commands here; a value or a file is needed",
        "zkv-client: line 10: the command is not UTF-8",
        "zkv-client: line 11: a bracket or a quote is never closed",
    ]
    assert list(store.keys()) == ["a", "c"]


def test_options_before_hold_for_every_line(run: Run, store: zkv.Client, tmp_path: Path) -> None:
    store.put("k", "v")
    nobody = f"ipc://{tmp_path}/nobody"
    script = f"count\ncount --jsonl\ncount --endpoint {store.endpoint}\n".encode()
    assert run("--json", stdin=script) == Ended(0, b'{"count":1}\n' * 3)
    elsewhere = f"count --endpoint {nobody} --timeout 0.1\n".encode()
    assert run(stdin=elsewhere).code == 6
    assert run("--endpoint", store.endpoint, stdin=b"count\n", endpoint=nobody).out == b"1\n"


def test_without_a_server_the_first_line_is_the_last(run: Run, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/nobody"
    code, out, err = run("--timeout", "0.1", stdin=b"count\ncount\n", endpoint=endpoint)
    assert (code, out) == (6, b"")
    first, last = err.decode().splitlines()
    assert first.startswith(f"zkv-client: line 1: nothing listens at {endpoint};")
    assert last == "zkv-client: stopped at line 1"


def test_a_second_end_of_options_is_a_usage_error(run: Run, store: zkv.Client) -> None:
    code, out, err = run(stdin=b"put k -- --\ncount\n")
    assert (code, out) == (2, b"0\n")
    assert b"-- cannot be an argument" in err


def test_nothing_to_do_is_no_error(run: Run) -> None:
    assert run(stdin=b"") == run(stdin=b"\n# nothing\n") == Ended(0, b"")


def test_clear_in_a_script_does_not_ask(run: Run, store: zkv.Client) -> None:
    store.put("k", 1)
    assert run(stdin=b"clear ''\n") == Ended(0, b"1\n")


def test_a_reader_that_has_gone_ends_it(shared_server: ServerProcess, store: zkv.Client) -> None:
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(shared_server.endpoint),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"count\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    _, err = process.communicate(b"count\nput k 1\n", timeout=EXIT_S)
    assert (process.returncode, err) == (141, b"")
    assert store.count() == 0
