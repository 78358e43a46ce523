"""zkv-client: what it writes, byte for byte, and what it exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zmq
from command_line import COMMAND, Ended, Run, environment, on_terminal, one_sentence, peer
from harness import EXIT_S, ServerProcess

import zkv
from zkv.cli import main
from zkv.cli.arguments import COMMANDS

COLOURS = {"BLUE": "\x1b[34m", "GREEN": "\x1b[32m", "CYAN": "\x1b[36m",
           "MAGENTA": "\x1b[35m", "END": "\x1b[0m"}  # fmt: skip


def terminal_bytes(shown: str, colours: dict[str, str]) -> bytes:
    for name, sequence in {**colours, "\n": "\r\n"}.items():
        shown = shown.replace(name, sequence)
    return shown.encode()


JSON_VALUES: list[tuple[list[str], bytes, Any]] = [
    (["1"], b"", 1),
    (["-5.0"], b"", -5.0),
    (['{"name": "Ada", "tags": [1, null, true]}'], b"", {"name": "Ada", "tags": [1, None, True]}),
    (['"Zoë"'], b"", "Zoë"),
    (['{"$b": "AA=="}'], b"", {"$b": "AA=="}),
    (["18446744073709551615"], b"", 2**64 - 1),
    (["-"], b'{\n  "a": 1\n}\n', {"a": 1}),
    (["-x"], b"[1]", [1]),
    (["--ttl", "60", "[1]"], b"", [1]),
]
TEXT_VALUES: list[tuple[list[str], bytes, Any]] = [
    (["hello"], b"", "hello"),
    (["007"], b"", "007"),
    (["NaN"], b"", "NaN"),
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


@pytest.mark.parametrize("text", ['{"a": 1,}', "[-Infinity]", " ["])
def test_put_says_when_what_looks_like_json_is_text(run: Run, store: zkv.Client, text: str) -> None:
    code, out, err = run("put", "k", text)
    assert (code, out) == (0, b"")
    assert err.startswith(b"zkv-client: taken as text, since it is not JSON: ")
    assert store.get("k") == text
    assert run("put", "k", "--text", text) == Ended(0, b"")


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
        ("zwei\nZeilen …", '"zwei\\nZeilen …"'),
        (b"\x00\xff", '{"$b":"AP8="}'),
        (2**60, '{"$i":"1152921504606846976"}'),
    ],
)
def test_get_writes_json_when_asked(run: Run, store: zkv.Client, value: Any, written: str) -> None:
    version = store.put("k", value)
    shown = f'{{"key":"k","value":{written},"version":{version}}}\n'
    assert run("get", "k", "--json") == run("get", "k", "--jsonl") == Ended(0, shown.encode())
    store.expire("k", 60)
    assert 0 < json.loads(run("get", "k", "--json").out)["ttl"] <= 60


def test_bytes_go_in_and_out_as_they_are(run: Run, store: zkv.Client) -> None:
    assert run("put", "k", "-x", "--bytes", stdin=b"\x00\xff\n") == Ended(0, b"")
    assert store.get("k") == b"\x00\xff\n"
    assert run("get", "k") == Ended(0, b"\x00\xff\n")
    assert run("put", "-x", "--", "-x", stdin=b"1").code == 0
    assert store.get("-x") == 1
    assert run("put", "k", "--bytes", "ö").code == 0
    assert store.get("k") == "ö".encode()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (
            {"name": "Ada", "n": [1, None]},
            '{\n  BLUE"name"END: GREEN"Ada"END,\n  BLUE"n"END: [\n    CYAN1END,\n'
            "    MAGENTAnullEND\n  ]\n}\n",
        ),
        ("Zoë\x1b[31m\x9b1m", 'GREEN"Zoë\\u001b[31m\\u009b1m"END\n'),
        (b"\x00", '{\n  BLUE"$b"END: GREEN"AA=="END\n}\n'),
        (2**60, "1152921504606846976\n"),
    ],
)
def test_get_is_readable_on_a_terminal(
    shared_server: ServerProcess,
    store: zkv.Client,
    monkeypatch: pytest.MonkeyPatch,
    value: Any,
    shown: str,
) -> None:
    store.put("k", value)
    monkeypatch.setenv("TERM", "xterm")
    assert on_terminal(shared_server.endpoint, "get", "k") == (0, terminal_bytes(shown, COLOURS))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = dict.fromkeys(COLOURS, "")
    assert on_terminal(shared_server.endpoint, "get", "k") == (0, terminal_bytes(shown, plain))


def test_json_on_a_terminal_is_as_on_a_pipe(
    shared_server: ServerProcess, store: zkv.Client
) -> None:
    version = store.put("k", {"a": 1})
    shown = b'{"key":"k","value":{"a":1},"version":%d}\r\n' % version
    assert on_terminal(shared_server.endpoint, "--json", "get", "k") == (0, shown)


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
    assert run("list", "ä", "--jsonl") == Ended(
        0, f'{{"key":"ä","version":{versions["ä"]}}}\n'.encode()
    )
    assert run("--jsonl", "list", "b:2", "--values") == Ended(
        0, b'{"key":"b:2","version":%d,"value":[{"$b":"AA=="}]}\n' % versions["b:2"]
    )
    assert run("list", "none") == run("list", "none", "--jsonl") == Ended(0, b"")


def test_list_is_one_json_array_or_json_lines(run: Run, store: zkv.Client) -> None:
    store.put_many({"a": [1], "b": [1]})
    code, out, err = run("list", "--json", "--values")
    assert (code, err) == (0, b"")
    items = [{"key": key, "version": store.item(key).version, "value": [1]} for key in "ab"]
    assert json.loads(out) == items
    lines = run("list", "--json", "--jsonl", "--values").out.splitlines()  # the last word counts
    assert [json.loads(line) for line in lines] == items
    assert run("list", "none", "--json") == Ended(0, b"[]\n")


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


def test_clear_on_a_terminal_asks(shared_server: ServerProcess, store: zkv.Client) -> None:
    store.put("a:1", 1)
    question = b'Remove 1 key with the prefix "a:"? [y/N] '
    refused = b"zkv-client: nothing was removed\r\n"
    for answer in (b"n\n", b"\n", b"\x04"):
        code, shown = on_terminal(shared_server.endpoint, "clear", "a:", typed=answer)
        assert (code, shown.endswith(question + refused)) == (1, True)
    assert store.count() == 1
    code, shown = on_terminal(shared_server.endpoint, "clear", "a:", typed=b"y\n")
    assert (code, shown) == (0, b"y\r\n" + question + b"1\r\n")
    assert on_terminal(shared_server.endpoint, "clear", "", "--yes") == (0, b"0\r\n")


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


def test_a_missing_key_exits_with_3(run: Run, store: zkv.Client) -> None:
    said = "zkv-client: no such key: schlüssel\n".encode()
    assert run("get", "schlüssel") == run("delete", "schlüssel") == Ended(3, b"", said)


def test_a_usage_error_exits_with_2(run: Run) -> None:
    for args in (["get", b"\xff"], ["--endpoint", "localhost", "ping"]):
        code, out, err = run(*args)
        assert (code, out) == (2, b"")
        assert re.fullmatch(rb"usage: zkv-client .*\nzkv-client: error: [^\n]+\n", err, re.DOTALL)


@pytest.mark.parametrize(
    "args",
    [
        ["set", "k", "1"],
        ["get"],
        ["put", "k"],
        ["put", "k", "v", "-x"],
        ["put", "k", "v", "--text", "--bytes"],
        ["expire", "k", "soon"],
        ["bench", "-t", "put,fly"],
        ["bench", "-c", "257"],
        ["stat", "-n", "0"],
        ["completion", "csh"],
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
        code, out, err = run("--timeout", "0.5", "get", "k", endpoint=endpoint)
    assert (code, out) == (5, b"")
    assert one_sentence(err)


def test_no_server_exits_with_6(run: Run, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/nobody"
    code, out, err = run("get", "k", "--timeout", "0.1", endpoint=endpoint)
    assert (code, out) == (6, b"")
    assert one_sentence(err)
    assert f"nothing listens at {endpoint}".encode() in err
    assert endpoint.encode() in err
    assert b"start one with zkv-server, or name another with --endpoint" in err


def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    with peer(tmp_path) as (router, endpoint):
        process = subprocess.Popen(
            [*COMMAND, "get", "k"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(endpoint),
        )
        router.recv_multipart()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=EXIT_S) == (b"", b"")
    assert process.returncode == 130


def test_a_pipe_that_is_closed_early_is_no_noise(
    shared_server: ServerProcess, store: zkv.Client
) -> None:
    store.put_many({f"{number}:{'x' * 900}": None for number in range(500)})
    process = subprocess.Popen(
        [*COMMAND, "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(shared_server.endpoint),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(EXIT_S) == 141


def test_nobody_reads_the_little_that_is_written(
    shared_server: ServerProcess, store: zkv.Client
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*COMMAND, "count"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(shared_server.endpoint),
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
    with peer(tmp_path) as (router, endpoint):
        process = subprocess.Popen(
            [*COMMAND, "ping"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(endpoint),
        )
        *envelope, _ = router.recv_multipart()
        router.send_multipart([*envelope, b"HTTP/1.1 400 Bad Request"])
        out, err = process.communicate(timeout=EXIT_S)
    assert (process.returncode, out) == (1, b"")
    assert one_sentence(err)


def test_a_web_server_is_an_error_and_no_wait(run: Run) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}).start()
        endpoint = f"tcp://127.0.0.1:{web.server_port}"
        code, out, err = run("ping", "--timeout", "1", endpoint=endpoint)
        web.shutdown()
    assert (code, out) == (6, b"")
    assert one_sentence(err)
    assert endpoint.encode() in err


def test_something_that_only_listens_is_an_error_and_no_wait(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        code, out, err = run("ping", "--timeout", "1", endpoint=endpoint)
    assert (code, out) == (6, b"")
    assert one_sentence(err)


def test_an_echo_is_an_error_and_no_reply(run: Run) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as echo:
        echo.linger = 0
        echo.rcvtimeo = EXIT_S * 1000
        port = echo.bind_to_random_port("tcp://127.0.0.1")
        echoing = threading.Thread(target=lambda: echo.send_multipart(echo.recv_multipart()))
        echoing.start()
        code, out, err = run("put", "k", "1", endpoint=f"tcp://127.0.0.1:{port}")
        echoing.join()
    assert (code, out) == (1, b"")
    assert one_sentence(err)
    assert b"does not answer as zkv does" in err


def test_common_options_stand_before_or_behind_the_command(
    run: Run, shared_server: ServerProcess, store: zkv.Client, tmp_path: Path
) -> None:
    store.put("k", "v")
    nobody = f"ipc://{tmp_path}/nobody"
    given = ["--endpoint", shared_server.endpoint, "--timeout", "3", "--json"]
    shown = Ended(0, b'{"count":1}\n')
    assert run(*given, "count", "k", endpoint=nobody) == shown
    assert run("count", *given, "k", endpoint=nobody) == shown
    assert run("count", "k", *given, endpoint=nobody) == shown
    assert run("--endpoint", nobody, "get", "k", "--endpoint", shared_server.endpoint) == Ended(
        0, b"v\n"
    )


def test_version_and_help(run: Run) -> None:
    version = Ended(0, f"zkv {zkv.__version__}\n".encode())
    assert run("--version") == run("get", "--version") == version
    code, out, err = run("--help")
    assert (code, err) == (0, b"")
    words = re.findall(rb"^    (\w+)  ", out, re.MULTILINE)
    assert words == [name.encode() for name in COMMANDS]
    assert b"\nExit codes: 0 done, " in out


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lsit", "list"), ("GET", "get"), ("set", "put"), ("del", "delete"), ("keys", "list")],
)
def test_what_may_be_meant_by_a_word_that_is_no_command(run: Run, word: str, meant: str) -> None:
    code, out, err = run(word, "k")
    assert (code, out) == (2, b"")
    assert err.endswith(f"no such command: {word} (did you mean {meant}?)\n".encode())


def test_of_an_unknown_argument_the_usage_of_its_command_is_shown(run: Run) -> None:
    code, out, err = run("put", "a", "1", "--tll", "3")
    assert (code, out) == (2, b"")
    assert err.startswith(b"usage: zkv-client put KEY")
    assert err.endswith(b"zkv-client put: error: no such argument: --tll 3\n")


def test_an_endpoint_of_the_environment_is_named_as_such(run: Run) -> None:
    code, out, err = run("ping", endpoint="foo")
    assert (code, out) == (2, b"")
    assert b"error: $ZKV_ENDPOINT: cannot use the endpoint 'foo'" in err


def test_put_on_a_condition_and_for_a_time(run: Run) -> None:
    assert run("put", "once", "1", "--if-version", "0") == Ended(0, b"", b"")
    ended = run("put", "once", "2", "--if-version", "0")
    assert (ended.code, ended.out) == (4, b"")
    assert re.fullmatch(rb"zkv-client: once exists already, with version \d+\n", ended.err)
    assert run("delete", "once", "--if-version", "99").code == 4
    assert run("put", "once", "3", "--ttl", "0.001").code == 0
    assert run("get", "once").code == 3
