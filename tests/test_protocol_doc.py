"""PROTOCOL.md says nothing that is not so: its tables are compared, its examples are run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from harness import ServerProcess, ask, raw_socket, serving
from languages import LANGUAGES
from relay import Relay
from vectors import ANY, VECTORS, as_json, body, matches

from zkv import protocol
from zkv.errors import BY_CODE
from zkv.fields import ABSENT
from zkv.requests import OPS

TEXT = (Path(__file__).resolve().parent.parent / "zkv" / "PROTOCOL.md").read_text()
PING = body({"op": "ping"})
IN_FLIGHT = 64
EXAMPLES = re.findall(r"^C: (.*?)^S: (.*?)(?=^C:|^```)", TEXT, re.DOTALL | re.MULTILINE)
TYPE_OF_KIND = {
    "key": "key", "prefix": "str", "value": "value", "flag": "bool", "int": "int", "limit": "int",
    "number": "int or float", "ttl": "int or float", "conditions": "map", "guards": "array",
    "ops": "array", "keys": "array", "items": "map",
}  # fmt: skip
TYPE_OF_JSON = {
    type(None): "nil", bool: "bool", int: "int", float: "float", str: "str", list: "array",
    dict: "map",
}  # fmt: skip
TYPE_OF_TAG = {"$b": "bin", "$i": "int", "$f": "float"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for the tests that do not care what it holds."""
    with serving(tmp_path_factory.mktemp("protocol") / "data") as server:
        yield server


def section(title: str) -> str:
    """What stands between a heading and the next one."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def rows(text: str) -> dict[str, bool]:
    """The names in the first column of a table, each with whether it has to be there."""
    cells = re.findall(r"^\| (\[?`.*?) \|", text, re.MULTILINE)
    return {name: cell[0] != "[" for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def column(text: str, number: int, name: str = r"\[?`.*?") -> dict[str, str]:
    """A column of a table, by the names in the first."""
    lines = re.findall(rf"^\| ({name}) \| (.*) ?\|$", text, re.MULTILINE)
    cells = [(first, f"{first} | {rest}".split("|")[number - 1].strip()) for first, rest in lines]
    return {word: cell for first, cell in cells for word in re.findall(r"\w+", first)}


def replies_to(op: str) -> Iterator[dict[str, Any]]:
    """What successful replies to an operation are said to be, as tagged JSON."""
    for request, reply in EXAMPLES:
        if json.loads(request)["op"] == op and (got := json.loads(reply))["ok"]:
            yield got
    for step in (step for conversation in VECTORS for step in conversation["steps"]):
        if step.get("request", {}).get("op") == op and step["expect"]["ok"]:
            yield step["expect"]


def json_type(tagged: Any) -> str:
    """The type of a value in tagged JSON, as the tables name it."""
    if type(tagged) is dict and len(tagged) == 1 and (tag := next(iter(tagged))) in TYPE_OF_TAG:
        return TYPE_OF_TAG[tag]
    return TYPE_OF_JSON[type(tagged)]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_every_operation_is_described() -> None:
    assert {*re.findall(r"^### `(\w+)`$", TEXT, re.MULTILINE)} == OPS.keys()


@pytest.mark.parametrize("op", OPS)
def test_every_field_of_an_operation_is_described(op: str) -> None:
    requested, _, replied = section(f"`{op}`").partition("| reply |")
    assert rows(requested) == {name: it.required for name, it in OPS[op].fields.items()}
    assert rows(replied).keys() >= OPS[op].replies.keys()
    assert rows(replied).keys() == OPS[op].replies.keys() or op == "info"


@pytest.mark.parametrize("op", OPS)
def test_every_field_of_a_request_has_its_type_and_its_default(op: str) -> None:
    requested, _, _ = section(f"`{op}`").partition("| reply |")
    types, defaults = column(requested, 2), column(requested, 3)
    for name, described in OPS[op].fields.items():
        assert types[name].partition(",")[0] == TYPE_OF_KIND[described.kind], name
        if described.default is not ABSENT:
            default = [] if described.default == () else described.default
            assert json.loads(defaults[name].strip("`")) == default, name
        else:
            assert (defaults[name] == "") is described.required, name


@pytest.mark.parametrize("op", sorted(OPS.keys() - {"ping", "compact"}))
def test_every_field_of_a_reply_has_its_type(op: str) -> None:
    """Those of the replies that the vectors promise, and of the examples."""
    _, _, replied = section(f"`{op}`").partition("| reply |")
    seen = set()
    for got in replies_to(op):
        for name, type_ in column(replied, 2).items():
            if name in got:
                seen.add(name)
                known = type_ != "value" and got[name] not in (ANY, "…")
                assert not known or json_type(got[name]) in type_.split(" or "), name
    assert seen >= OPS[op].always or op == "read_snapshot"


def test_what_a_language_does_not_keep_is_described() -> None:
    """The same languages as are tried, and something to be said of the same of them."""
    table = column(section("Values in other languages"), 3, r"\w+")
    assert {name: bool(it) for name, it in table.items() if name != "language"} == {
        language.name: bool(language.loses) for language in LANGUAGES
    }


def test_every_error_is_described() -> None:
    table = re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section("Errors"), re.MULTILINE)
    assert [code for code, _ in table] == [*BY_CODE]
    for code, outcome in table:
        assert (outcome == "**not known**") is not BY_CODE[code].outcome_known, code


def test_every_further_field_of_an_error_is_described() -> None:
    table = column(section("Errors"), 3)
    for step in (step for conversation in VECTORS for step in conversation["steps"]):
        if not (expected := step["expect"])["ok"]:
            further = {*expected, *step.get("any", ())} - {"ok", "error", "revision", "id"}
            assert further <= {
                "message",
                "index",
                *re.findall(r"`(\w+)`", table[expected["error"]]),
            }


def test_every_limit_is_described() -> None:
    table = re.findall(r"\| ([\d,]+)\D* \| `(\w+)` \|$", section("Messages"), re.MULTILINE)
    assert {name: int(limit.replace(",", "")) for limit, name in table} == protocol.LIMITS


def test_the_contents_are_the_headings() -> None:
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert re.findall(r"\[([^\]]*)\]\(#", TEXT.partition("## ")[0])[-len(headings) :] == headings


def test_the_examples_are_so(server: ServerProcess) -> None:
    """One after another, as they stand."""
    shown = set()
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        for request, reply in EXAMPLES:
            asked = json.loads(request)
            wanted = json.loads(re.sub(r'(?<=: )"…"', json.dumps(ANY), reply))
            got = as_json(ask(socket, body(asked)))
            assert matches(wanted, got), (request, reply, got)
            shown.add(asked["op"])
    assert shown == OPS.keys()


def test_the_exchange_in_hex_is_real(server: ServerProcess) -> None:
    text = section("A worked exchange")
    shown = re.findall(r"^(Request|Reply): `(.*)`$", text, re.MULTILINE)
    dumps = [re.findall(r"^ *((?:[0-9a-f]{2} )+) +(.*)$", it, re.M) for it in blocks("hex", text)]
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        for (who, said), lines in zip(shown, dumps, strict=True):
            bytes_ = bytes.fromhex("".join(part for part, _ in lines))
            assert bytes_ == body(json.loads(said))
            for part, note in lines:
                if not note.startswith(("map of", "array of")):
                    assert bytes.fromhex(part) == body(json.loads(note))
            if who == "Request":
                socket.send(bytes_)
            else:
                assert socket.recv() == bytes_


def test_ten_lines_count_right_though_replies_get_lost(server: ServerProcess) -> None:
    ten_lines, counter = blocks("python", section("Sessions"))
    assert len(ten_lines.splitlines()) == 10
    with Relay(server.endpoint, lost=0.6, seed=1) as relay:
        counter = counter.replace("tcp://127.0.0.1:5757", relay.endpoint).replace("1000", "50")
        names: dict[str, Any] = {}
        exec(ten_lines + counter, names)
        incr = {"op": "incr", "key": "visits"}
        replies = [names["ask"](seq, dict(incr)) for seq in range(3, 8)]
        names["context"].destroy(linger=0)
    assert relay.dropped > 8
    assert [reply["value"] for reply in replies] == [2, 3, 4, 5, 6]


def test_a_kept_reply_survives_kill_9(tmp_path: Path) -> None:
    request = {"op": "incr", "key": "visits", "session": "s", "seq": 1}
    with serving(tmp_path / "data") as server, raw_socket(zmq.REQ, server.endpoint) as socket:
        first = ask(socket, request)
    with serving(tmp_path / "data") as server, raw_socket(zmq.REQ, server.endpoint) as socket:
        assert ask(socket, {**request, "retry": True}) == first
        assert ask(socket, {"op": "get", "key": "visits"})["value"] == 1


@pytest.mark.parametrize("envelope", [[], [b""], [b"one"], [b"one", b"two", b""]])
def test_an_envelope_is_echoed_whole(running: ServerProcess, envelope: list[bytes]) -> None:
    with raw_socket(zmq.DEALER, running.endpoint) as socket:
        socket.send_multipart([*envelope, PING])
        *echoed, reply = socket.recv_multipart()
        assert (echoed, msgpack.unpackb(reply)["ok"]) == (envelope, True)


@pytest.mark.parametrize("frames", [[b""], [b"", b""], [b"", PING, PING]])
def test_anything_but_one_body_is_a_bad_request(
    running: ServerProcess, frames: list[bytes]
) -> None:
    with raw_socket(zmq.DEALER, running.endpoint) as socket:
        socket.send_multipart(frames)
        assert msgpack.unpackb(socket.recv_multipart()[-1])["error"] == "bad_request"


def test_a_req_may_correlate(running: ServerProcess) -> None:
    with raw_socket(zmq.REQ, running.endpoint) as socket:
        socket.setsockopt(zmq.REQ_CORRELATE, 1)
        assert ask(socket, PING)["ok"]


def test_a_frame_over_twice_the_limit_is_not_answered(running: ServerProcess) -> None:
    limit = protocol.MESSAGE_BYTES_MAX
    with raw_socket(zmq.REQ, running.endpoint) as socket:
        assert ask(socket, bytes(limit))["error"] == "bad_request"
        assert ask(socket, bytes(limit + 1))["error"] == "too_large"
        assert ask(socket, bytes(2 * limit))["error"] == "too_large"
        socket.send(bytes(2 * limit + 1))
        assert socket.poll(300) == 0


def test_64_requests_may_be_under_way_though_replies_are_read_slowly(
    running: ServerProcess,
) -> None:
    with raw_socket(zmq.REQ, running.endpoint) as socket:
        ask(socket, {"op": "put", "key": "k", "value": bytes(100_000)})
    get = body({"op": "get", "key": "k"})
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvhwm, socket.rcvbuf, socket.rcvtimeo = 0, 1, 4096, 5000
        socket.connect(running.endpoint)
        for _ in range(IN_FLIGHT):
            socket.send(get)
        for _ in range(5 * IN_FLIGHT):
            socket.recv()
            socket.send(get)
        for _ in range(IN_FLIGHT):
            socket.recv()
