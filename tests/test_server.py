"""The wire, in raw frames: every request gets one reply, and nobody can spoil it for the rest.

How many may come, and who, is in test_connections.
"""

from __future__ import annotations

import random
import socket as tcp
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from harness import ServerProcess, ask, raw_socket, serving, wait_until

import zkv
from zkv.requests import OPS
from zkv.server import Server

MIB = 2**20
PING = msgpack.packb({"op": "ping"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the attacks of this file: each has to leave it as good as it was."""
    with serving(tmp_path_factory.mktemp("server") / "data") as running:
        yield running
        assert running.process.poll() is None


def reply_to(server: ServerProcess, *frames: bytes) -> dict[str, Any]:
    """The one reply to these frames; the next request on the connection is answered too."""
    with raw_socket(zmq.DEALER, server.endpoint) as socket:
        socket.send_multipart(frames)
        reply: dict[str, Any] = msgpack.unpackb(socket.recv_multipart()[-1])
        socket.send_multipart([b"honest", b"", PING])
        assert socket.recv_multipart()[:2] == [b"honest", b""]
    return reply


def reply_to_map(server: ServerProcess, **request: Any) -> dict[str, Any]:
    return reply_to(server, b"", msgpack.packb(request))


def assert_refused(reply: dict[str, Any], code: str, field: str | None = None) -> None:
    assert (reply["ok"], reply["error"], reply.get("field")) == (False, code, field)
    message = reply["message"]
    assert " " in message
    assert "\n" not in message
    assert type(reply["revision"]) is int


# Kinds of clients


def test_a_req_is_answered(server: ServerProcess) -> None:
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        assert ask(socket, {"op": "ping"})["ok"] is True


def test_a_relaxed_req_gets_the_reply_to_its_last_request(server: ServerProcess) -> None:
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        socket.req_relaxed = socket.req_correlate = 1
        for number in range(5):
            socket.send(msgpack.packb({"op": "ping", "id": number}))
        assert msgpack.unpackb(socket.recv())["id"] == 4


ENVELOPES = [[], [b""], [b"1"], [b"1", b""], [b"1", b"a" * 300, b"\x00", b""]]


@pytest.mark.parametrize(("frames", "ok"), [(64, True), (65, False), (100_000, False)])
@pytest.mark.parametrize("delimiter", [[], [b""]], ids=["", "delimiter"])
def test_an_envelope_of_many_frames_is_echoed_whole_or_refused(
    server: ServerProcess, delimiter: list[bytes], frames: int, ok: bool
) -> None:
    with raw_socket(zmq.DEALER, server.endpoint) as socket:
        for _ in range(2):
            envelope = [b"1"] * (frames - len(delimiter)) + delimiter
            socket.send_multipart([*envelope, PING])
            *echoed, reply = socket.recv_multipart()
            assert msgpack.unpackb(reply).get("error") == (None if ok else "bad_request")
            assert echoed == (envelope if ok else [])


@pytest.mark.parametrize("envelope", ENVELOPES, ids=len)
def test_an_envelope_is_echoed_whole(server: ServerProcess, envelope: list[bytes]) -> None:
    with raw_socket(zmq.DEALER, server.endpoint) as socket:
        socket.send_multipart([*envelope, PING])
        *echoed, reply = socket.recv_multipart()
    assert echoed == envelope
    assert msgpack.unpackb(reply)["ok"] is True


def test_each_of_many_requests_in_flight_is_answered_once(server: ServerProcess) -> None:
    envelopes = {number: ENVELOPES[number % len(ENVELOPES)] for number in range(100)}
    answered = {}
    with raw_socket(zmq.DEALER, server.endpoint) as socket:
        for number, envelope in envelopes.items():
            socket.send_multipart([*envelope, msgpack.packb({"op": "ping", "id": number})])
        for _ in envelopes:
            *envelope, reply = socket.recv_multipart()
            answered[msgpack.unpackb(reply)["id"]] = envelope
        assert answered == envelopes
        assert socket.poll(0) == 0


# Requests that are none

NOT_ONE_BODY = {
    "an empty body": [b"", b""],
    "no delimiter, and empty": [b""],
    "two bodies": [b"", PING, PING],
    "twenty frames": [b"", *[PING] * 19],
    "twenty empty frames": [b""] * 20,
    "an empty body behind a frame": [b"1", b""],
}


@pytest.mark.parametrize("frames", NOT_ONE_BODY.values(), ids=NOT_ONE_BODY)
def test_a_request_is_one_body(server: ServerProcess, frames: list[bytes]) -> None:
    assert_refused(reply_to(server, *frames), "bad_request")


@pytest.mark.parametrize("frames", [[bytes(5000)], [bytes(3000), bytes(3000), b""]], ids=len)
def test_an_envelope_is_small(server: ServerProcess, frames: list[bytes]) -> None:
    with raw_socket(zmq.DEALER, server.endpoint) as socket:
        socket.send_multipart([*frames, PING])
        (reply,) = socket.recv_multipart()
        assert_refused(msgpack.unpackb(reply), "bad_request")
        socket.send_multipart([bytes(3000), b"", PING])
        *envelope, reply = socket.recv_multipart()
        assert envelope == [bytes(3000), b""]
        assert msgpack.unpackb(reply)["ok"]


def put_of(packed: bytes, levels: int = 0) -> bytes:
    """A put of this msgpack, inside so many arrays."""
    return b"\x83\xa2op\xa3put\xa3key\xa1k\xa5value" + b"\x91" * levels + packed


NOT_A_MAP = {
    "garbage": b"\xc1\xff\x00garbage",
    "trailing bytes": PING + b"\x00",
    "cut short": PING[:-1],
    "an array": msgpack.packb(["ping"]),
    "nil": b"\xc0",
    "a key of the map is an int": msgpack.packb({"op": "ping", 1: 2}),
    "a key of the map is a bin": msgpack.packb({"op": "ping", b"op": "ping"}),
    "nested without end": put_of(b"", levels=100_000),
    "an array of 4 G items": put_of(b"\xdd\xff\xff\xff\xff"),
    "a map of 4 G items": put_of(b"\xdf\xff\xff\xff\xff"),
    "a str of 4 GiB": put_of(b"\xdb\xff\xff\xff\xff"),
    "a bin of 4 GiB": put_of(b"\xc6\xff\xff\xff\xff"),
    "headers of 1 GiB each": put_of(b"\xdd\x07\xff\xff\xff" * 200_000),
    "headers of 1 MiB each": put_of(b"\xdd\x00\x02\x00\x00" * 200_000),
    "headers of 64 MiB each": put_of(b"\xdd\x00\x79\xff\xff" * 1_600_000),
}


@pytest.mark.parametrize("body", NOT_A_MAP.values(), ids=NOT_A_MAP)
def test_a_body_is_one_map(server: ServerProcess, body: bytes) -> None:
    assert_refused(reply_to(server, b"", body), "bad_request")


PUT = {"op": "put", "key": "k", "value": 1}
BAD_FIELDS = [
    *[("op", bad) for bad in ({}, {"op": 1}, {"op": None})],
    *[("id", {"op": "ping", "id": bad}) for bad in (None, True, 1.5, "", "x" * 65, b"", [1])],
    *[("key", {"op": "get", "key": bad}) for bad in ("", None, 1, b"k", ["k"], {"k": 1})],
    *[("limit", {"op": "list", "limit": bad}) for bad in (0, -1, 10_001, True, 1.0)],
    *[("by", {"op": "incr", "key": "k", "by": bad}) for bad in ("1", True, None, float("nan"))],
    *[("initial", {"op": "incr", "key": "k", "initial": bad}) for bad in ("1", float("inf"))],
    *[("session", PUT | {"session": bad, "seq": 1}) for bad in (None, 1, "", "x" * 65, b"")],
    *[("seq", PUT | {"session": "s", "seq": bad}) for bad in (None, 0, -1, True, 1.0, "1")],
    ("seq", PUT | {"session": "s"}),
    ("seq", PUT | {"seq": 1}),
    ("retry", PUT | {"session": "s", "seq": 1, "retry": 1}),
    ("session", {"op": "ping", "session": "s", "seq": 1}),
    ("colour", {"op": "ping", "colour": "red"}),
    ("key", {"op": "get"}),
    ("value", {"op": "put", "key": "k"}),
    ("prefix", {"op": "clear"}),
]


@pytest.mark.parametrize(("field", "request_"), BAD_FIELDS)
def test_a_bad_field_is_named(server: ServerProcess, field: str, request_: dict[str, Any]) -> None:
    assert_refused(reply_to_map(server, **request_), "bad_request", field)


@pytest.mark.parametrize(
    ("op", "field"),
    [(op, field) for op in OPS for field in OPS[op].fields if field not in ("value", "default")],
)
def test_no_field_takes_just_anything(server: ServerProcess, op: str, field: str) -> None:
    good = {"key": "k", "value": 1, "prefix": "k", "ttl": 1, "then": [], "revision": 1}
    good |= {"keys": ["k"], "items": {"k": 1}}
    needed = {name: good[name] for name, it in OPS[op].fields.items() if it.required}
    request = {"op": op, **needed, field: msgpack.ExtType(9, b"?")}
    assert_refused(reply_to_map(server, **request), "bad_request", field)


def test_an_unknown_op_is_named(server: ServerProcess) -> None:
    assert_refused(reply_to_map(server, op="pong"), "unknown_op", "op")


def test_a_key_is_utf8(server: ServerProcess) -> None:
    reply = reply_to(server, b"", b"\x82\xa2op\xa3get\xa3key\xa2k\xff")
    assert_refused(reply, "bad_request", "key")


@pytest.mark.parametrize("letter", ["k", "é", "漢", "😀"])
def test_a_key_is_1024_bytes_at_most(server: ServerProcess, letter: str) -> None:
    count, left = divmod(1024, len(letter.encode()))
    longest = letter * count + "k" * left
    assert reply_to_map(server, op="put", key=longest, value=1)["ok"] is True
    reply = reply_to_map(server, op="put", key=longest + "k", value=1)
    assert_refused(reply, "too_large", "key")
    assert (reply["limit"], reply["size"]) == (1024, 1025)


def test_a_value_is_32_levels_deep_at_most(server: ServerProcess) -> None:
    assert reply_to(server, b"", put_of(b"\x01", levels=32))["ok"] is True
    reply = reply_to(server, b"", put_of(b"\x01", levels=33))
    assert_refused(reply, "bad_request", "value")
    assert reply["limit"] == 32


@pytest.mark.parametrize(
    "one",
    [
        b"\x90", b"\x80", b"\x91\x01", b"\x81\xc0\xc0",
        b"\xc4\x00", b"\xd4\x00a", b"\xd6\xff\0\0\0\1",
    ],
)  # fmt: skip
def test_arrays_maps_bins_and_exts_are_bounded_in_all(server: ServerProcess, one: bytes) -> None:
    """However few bytes they are. Nothing is made of them."""
    assert reply_to(server, b"", put_of(many(one, 1)))["ok"] is True
    before = server.resident_bytes()
    reply = reply_to(server, b"", put_of(many(one, 2)))
    assert_refused(reply, "bad_request", "value")
    assert (reply["limit"], reply["size"]) == (2**18, 2**18 + 3)
    reply = reply_to(server, b"", put_of(many(one, 10)))
    assert_refused(reply, "bad_request", "value")
    assert server.resident_bytes() < before + 100 * MIB


def many(one: bytes, times: int) -> bytes:
    """Arrays of 131,072 of these, so many in an array."""
    full = b"\xdd\0\2\0\0" + one * 2**17
    return bytes((0x90 + times,)) + full * times


def test_keys_that_collide_are_refused_and_the_server_goes_on(server: ServerProcess) -> None:
    """Also where the request has another fault, which is told first."""
    value = msgpack.packb([dict.fromkeys([n << 44 for n in range(2**17)])] * 6)
    assert_refused(reply_to(server, b"", put_of(value)), "bad_request")
    text = b"\x84\xa2op\xa3put\xa3key\xa1k\xa1t\xa1\xff\xa5value" + value
    reply = reply_to(server, b"", text)
    assert_refused(reply, "bad_request", "?")
    assert "UTF-8" in reply["message"]


def test_large_values_without_many_containers_pass(server: ServerProcess) -> None:
    ints, text = list(range(-32, 0)) * 2**12, "\u0800" * 2**20
    for value in (ints, [ints] * 15, text, text.encode(), {"k": text}, [{}] * 100_000):
        with zkv.Client(server.endpoint) as store:
            store.put("large", value)
            assert store.get("large") == value


def test_a_message_is_8_mib_at_most(server: ServerProcess) -> None:
    header = put_of(b"\xc6\x00\x7f\xff\x00")
    header = put_of(b"\xc6" + (8 * MIB - len(header)).to_bytes(4, "big"))
    largest = header.ljust(8 * MIB, b"\x00")
    assert reply_to(server, b"", largest)["ok"] is True
    reply = reply_to(server, b"", largest + b"\x00")
    assert_refused(reply, "too_large")
    assert (reply["limit"], reply["size"]) == (8 * MIB, 8 * MIB + 1)


def test_a_peer_that_sends_more_than_16_mib_is_dropped_alone(server: ServerProcess) -> None:
    with raw_socket(zmq.REQ, server.endpoint) as honest:
        assert ask(honest, {"op": "ping"})["ok"]
        with (
            raw_socket(zmq.DEALER, server.endpoint) as greedy,
            greedy.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor,
        ):
            greedy.send_multipart([b"", bytes(16 * MIB + 1)])
            assert monitor.poll(10_000)
        assert ask(honest, {"op": "ping"})["ok"]


@pytest.mark.parametrize("held", ["1", True, None, [1], b"1"], ids=repr)
def test_incr_adds_to_numbers_only(server: ServerProcess, held: Any) -> None:
    assert reply_to_map(server, op="put", key="held", value=held)["ok"] is True
    assert_refused(reply_to_map(server, op="incr", key="held"), "wrong_type")


@pytest.mark.parametrize(("held", "by"), [(2**64 - 1, 1), (-(2**63), -1), (1.7e308, 1.7e308)])
def test_incr_stays_within_64_bits(server: ServerProcess, held: Any, by: Any) -> None:
    assert reply_to_map(server, op="put", key="held", value=held)["ok"] is True
    assert_refused(reply_to_map(server, op="incr", key="held", by=by), "overflow")
    assert reply_to_map(server, op="get", key="held")["value"] == held


# Attacks by the thousand

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"


def random_frame(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(rng.choice((0, 1, 300)))
    honest = bytearray(msgpack.packb({"op": rng.choice([*OPS]), "key": "k", "value": [{}, "x"]}))
    honest[rng.randrange(len(honest))] = rng.randrange(256)
    return bytes(honest)


def random_frames(rng: random.Random) -> list[bytes]:
    if rng.random() < 0.5:
        return [b"", random_frame(rng)]
    return [random_frame(rng) for _ in range(rng.randint(0, 20))] or [b""]


def random_stream(rng: random.Random) -> bytes:
    """What someone sends to the port who does not speak ZeroMQ, or only pretends to."""
    return rng.choice(
        (
            rng.randbytes(rng.randrange(2000)),
            b"GET / HTTP/1.1\r\nHost: zkv\r\n\r\n",
            GREETING[: rng.randrange(len(GREETING))],
            GREETING[:10] + b"\x01" + rng.randbytes(60),
            GREETING + rng.randbytes(rng.randrange(200)),
            GREETING + READY + rng.randbytes(rng.randrange(200)),
            GREETING + READY + b"\x02" + (2**62).to_bytes(8, "big"),
        )
    )


def test_attacks_by_the_thousand_leave_nothing_behind(
    tmp_path: Path, seed: int, long: bool
) -> None:
    rng, before = random.Random(seed), 0
    with serving(tmp_path / "data") as server, raw_socket(zmq.REQ, server.endpoint) as honest:
        address = ("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
        for _ in range(50 if long else 3):
            with raw_socket(zmq.DEALER, server.endpoint) as socket, ExitStack() as streams:
                for _ in range(50):
                    for _ in range(20):
                        socket.send_multipart(random_frames(rng))
                    stream = streams.enter_context(tcp.create_connection(address))
                    with suppress(ConnectionError):
                        stream.sendall(random_stream(rng))
                    for _ in range(20):
                        assert type(msgpack.unpackb(socket.recv_multipart()[-1])["ok"]) is bool
                    assert ask(honest, {"op": "ping"})["ok"]
            before = before or server.resident_bytes()
        wait_until(lambda: server.resident_bytes() < before + 20 * MIB)
        assert server.process.poll() is None


# The server alone, with a handler of our own


def new_server(
    handle: Callable[[Sequence[bytes], int], list[bytes]],
    endpoints: Sequence[str],
    workers: int,
    on_crash: Any = None,
) -> Server:
    return Server(
        endpoints,
        handle,
        workers=workers,
        message_bytes_max=MIB,
        unread_bytes_max=64 * MIB,
        connections_max=5000,
        on_crash=on_crash,
    )


@contextmanager
def running(
    handle: Callable[[Sequence[bytes], int], list[bytes]],
    *endpoints: str,
    workers: int = 2,
    on_crash: Any = None,
) -> Iterator[Server]:
    server = new_server(handle, endpoints, workers=workers, on_crash=on_crash)
    server.start()
    try:
        yield server
    finally:
        assert server.stop()


def echo(bodies: Sequence[bytes], room: int) -> list[bytes]:
    return list(bodies)


def assert_echoes(endpoint: str) -> None:
    with raw_socket(zmq.REQ, endpoint) as socket:
        socket.send(b"echo")
        assert socket.recv() == b"echo"


def test_every_endpoint_is_served(tmp_path: Path) -> None:
    with running(echo, "tcp://127.0.0.1:*", f"ipc://{tmp_path}/zkv.ipc") as server:
        assert len(server.endpoints) == 2
        for endpoint in server.endpoints:
            assert_echoes(endpoint)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", "ipc://{folder}/zkv.ipc"])
def test_an_endpoint_in_use_is_refused_and_not_stolen(tmp_path: Path, address: str) -> None:
    with running(echo, address.format(folder=tmp_path)) as first:
        endpoint = first.endpoints[0]
        with pytest.raises(OSError, match="in use") as refused, running(echo, endpoint):
            pass
        assert refused.value.filename == endpoint
        assert_echoes(endpoint)


def test_the_ipc_path_of_a_dead_server_is_taken_over(tmp_path: Path) -> None:
    with tcp.socket(tcp.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/zkv.ipc")
    with running(echo, f"ipc://{tmp_path}/zkv.ipc") as server:
        assert_echoes(server.endpoints[0])


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_an_ipc_path_that_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "mine", tmp_path / "target"
    target.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(OSError, match="ocket") as refused, running(echo, f"ipc://{path}"):
        pass
    assert refused.value.filename == f"ipc://{path}"
    assert path.is_dir() if kind == "folder" else path.read_text() == "precious"


def test_an_abstract_ipc_name_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"@zkv-test-{tmp_path.name}"
    with running(echo, f"ipc://{name}") as server:
        assert_echoes(server.endpoints[0])
        (tmp_path / name).write_text("precious")
    with pytest.raises(OSError, match="ocket"), running(echo, f"ipc://{name}"):
        pass
    assert (tmp_path / name).read_text() == "precious"


def test_a_handler_that_raises_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        raise ValueError("a defect")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    crashes: list[BaseException] = []
    with (
        running(handle, "tcp://127.0.0.1:*", on_crash=crashes.append) as server,
        raw_socket(zmq.REQ, server.endpoints[0]) as socket,
    ):
        socket.send(b"request")
        wait_until(lambda: crashes)
    assert [str(crash) for crash in crashes] == ["a defect"]


def test_stop_delivers_the_replies_of_requests_under_way() -> None:
    reached, go_on = threading.Semaphore(0), threading.Event()

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        reached.release()
        assert go_on.wait(10)
        return list(bodies)

    with ExitStack() as sockets:
        with running(handle, "tcp://127.0.0.1:*") as server:
            clients = [
                sockets.enter_context(raw_socket(zmq.REQ, server.endpoints[0])) for _ in range(2)
            ]
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
                assert reached.acquire(timeout=10)
            threading.Timer(0.1, go_on.set).start()
        assert [client.recv() for client in clients] == [b"0", b"1"]


def test_stop_goes_on_sending_to_a_slow_client() -> None:
    handled: list[bytes] = []

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        handled.extend(bodies)
        return list(bodies)

    with zmq.Context() as context, context.socket(zmq.DEALER) as slow:
        slow.linger, slow.rcvtimeo, slow.rcvhwm, slow.rcvbuf = 0, 5000, 1, 4096
        with running(handle, "tcp://127.0.0.1:*") as server:
            slow.connect(server.endpoints[0])
            for _ in range(100):
                slow.send_multipart([b"", bytes(MIB // 8)])
            wait_until(lambda: len(handled) == 100)
            replies: list[list[bytes]] = []
            read = threading.Timer(
                0.2, lambda: replies.extend(slow.recv_multipart() for _ in range(100))
            )
            read.start()
        read.join()
    assert len(replies) == 100


def test_stop_delivers_every_reply_that_was_made() -> None:
    handled: list[bytes] = []
    answered: list[bytes] = []
    stopped = threading.Event()

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        handled.extend(bodies)
        return list(bodies)

    def load(endpoint: str, writer: int) -> None:
        with raw_socket(zmq.REQ, endpoint) as socket:
            for number in range(100_000):
                socket.send(b"%d.%d" % (writer, number))
                while not socket.poll(100):
                    if stopped.is_set():
                        return
                answered.append(socket.recv())

    for _ in range(5):
        stopped.clear()
        with running(handle, "tcp://127.0.0.1:*") as server:
            clients = [
                threading.Thread(target=load, args=(server.endpoints[0], writer))
                for writer in range(4)
            ]
            for client in clients:
                client.start()
            enough = len(handled) + 200
            wait_until(lambda enough=enough: len(handled) > enough)
        stopped.set()
        for client in clients:
            client.join()
        assert sorted(answered) == sorted(handled)


@pytest.mark.timeout(30)
def test_stop_ends_though_a_worker_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkv.server.STOP_S", 0.2)
    reached, go_on = threading.Event(), threading.Event()

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        reached.set()
        go_on.wait(8)
        return list(bodies)

    server = new_server(handle, ["tcp://127.0.0.1:*"], workers=1)
    server.start()
    with raw_socket(zmq.DEALER, server.endpoints[0]) as socket:
        socket.send(b"request")
        assert reached.wait(10)
        assert server.stop() is False
        go_on.set()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("workers", [1, 2])
def test_stop_ends_though_more_wait_than_the_workers_take(workers: int) -> None:
    handled: list[bytes] = []
    answered: list[bytes] = []

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        time.sleep(0.02)
        handled.extend(bodies)
        return list(bodies)

    with zmq.Context() as context, ExitStack() as sockets:
        with running(handle, "tcp://127.0.0.1:*", workers=workers) as server:
            clients = [sockets.enter_context(context.socket(zmq.DEALER)) for _ in range(8)]
            for client in clients:
                client.linger = 0
                client.connect(server.endpoints[0])
                for number in range(120):
                    client.send(b"%d" % number)
            wait_until(lambda: handled)
        assert len(handled) < 8 * 120
        for client in clients:
            while client.poll(100):
                answered.append(client.recv())
    assert sorted(answered) == sorted(handled)


# Many requests under way


def all_answered(endpoint: str, connections: int, each: int, body: bytes) -> None:
    """Sends all of it at once, and fails unless every request is answered."""
    with zmq.Context() as context, ExitStack() as sockets:
        context.max_sockets = connections + 1
        poller = zmq.Poller()
        waiting = {}
        for _ in range(connections):
            socket = sockets.enter_context(context.socket(zmq.DEALER))
            socket.linger, socket.sndhwm, socket.rcvhwm = 0, 0, 0
            socket.connect(endpoint)
            poller.register(socket, zmq.POLLIN)
            waiting[socket] = each
        for socket in waiting:
            for _ in range(each):
                socket.send(body)
        while waiting:
            readable = poller.poll(20_000)
            assert readable, f"{sum(waiting.values())} of {connections * each} not answered"
            for socket, _ in readable:
                with suppress(zmq.Again):
                    while True:
                        socket.recv(zmq.NOBLOCK)
                        waiting[socket] -= 1
                if not waiting[socket]:
                    poller.unregister(socket)
                    del waiting[socket]


UNDER_WAY = [(9, 128), (20, 128), (100, 128), (200, 8), (1500, 1)]


@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize(("connections", "each"), UNDER_WAY)
def test_requests_under_way_are_all_answered(
    tmp_path: Path, connections: int, each: int, workers: str
) -> None:
    put = msgpack.packb({"op": "put", "key": "k", "value": 1})
    with serving(tmp_path / "data", "--workers", workers) as server:
        for body in (put, PING):
            all_answered(server.endpoint, connections, each, body)
        server.stop()


def test_large_requests_and_replies_under_way_are_all_answered(tmp_path: Path) -> None:
    put = msgpack.packb({"op": "put", "key": "k", "value": bytes(MIB)})
    get = msgpack.packb({"op": "get", "key": "k"})
    with serving(tmp_path / "data", "--fsync", "never") as server:
        for body in (put, get):
            all_answered(server.endpoint, 10, 20, body)
        server.stop()


def test_a_reply_leaves_while_others_wait_for_slow_requests() -> None:
    """Of a connection that has sent many, and of one that comes later: it gets its turn."""
    handled: list[bytes] = []

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        time.sleep(0.002)
        handled.append(bodies[0])
        return [bodies[0]]  # one that takes long ends the turn

    with (
        running(handle, "tcp://127.0.0.1:*", workers=1) as server,
        raw_socket(zmq.DEALER, server.endpoints[0]) as busy,
        raw_socket(zmq.DEALER, server.endpoints[0]) as honest,
    ):
        honest.send(b"hello")
        assert honest.recv() == b"hello"
        for number in range(1000):
            busy.send(b"%d" % number)
        wait_until(lambda: len(handled) > 20)
        before = len(handled)
        honest.send(b"hello")
        assert honest.recv() == b"hello"
        assert len(handled) - before < 100
        assert busy.recv() == b"0"
        answers = [b"0"] + [busy.recv() for _ in range(999)]
    assert answers == [b"%d" % number for number in range(1000)]
