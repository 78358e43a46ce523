"""Who may connect, how many, and what they may leave unread: none keeps others from the server."""

from __future__ import annotations

import socket as tcp
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from harness import ServerProcess, ask, raw_socket, serving, wait_until

import zkv
from zkv.server import Server
from zkv.unread import Unread

MIB = 2**20
PING = msgpack.packb({"op": "ping"})


def connections(server: ServerProcess) -> dict[str, int]:
    with zkv.Client(server.endpoint) as store:
        told: dict[str, int] = store.info()["connections"]
    return told


def connect(server: ServerProcess) -> tcp.socket:
    return tcp.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), timeout=10)


def until_closed(stream: tcp.socket) -> bytes:
    """What the other end says until it closes."""
    said = b""
    with suppress(ConnectionError):
        while received := stream.recv(4096):
            said += received
    return said


# Peers of other protocols

GREETINGS = {
    "HTTP GET": b"GET / HTTP/1.1\r\nHost: localhost:5757\r\n\r\n",
    "HTTP POST": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nping",
    "HTTP OPTIONS": b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://example.org\r\n\r\n",
    "HTTP CONNECT": b"CONNECT localhost:5757 HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "WebSocket": b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "TLS": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(200),
    "RESP": b"*1\r\n$4\r\nPING\r\n",
    "RESP inline": b"PING\r\n",
    "memcached": b"get key\r\n",
    "memcached meta": b"mn\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SMTP": b"EHLO localhost\r\n",
    "PROXY": b"PROXY TCP4 127.0.0.1 127.0.0.1 5000 5757\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", GREETINGS)
def test_a_peer_of_another_protocol_is_closed_and_asks_nothing(
    shared_server: ServerProcess, name: str
) -> None:
    with zkv.Client(shared_server.endpoint) as store:
        store.info()
        before = store.info()["counters"]
        with connect(shared_server) as stream:
            stream.sendall(GREETINGS[name])
            until_closed(stream)
        after = store.info()["counters"]
    assert after["errors"] == before["errors"]
    assert after["requests"] == {**before["requests"], "info": before["requests"]["info"] + 1}


def strangers(server: ServerProcess) -> int:
    told = connections(server)
    return told["accepted"] - told["greeted"]


ZMTP_2 = b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x00\x00"  # of a DEALER without a routing id


def test_an_old_peer_is_refused(shared_server: ServerProcess) -> None:
    with connect(shared_server) as stream:
        with suppress(ConnectionError):
            stream.sendall(ZMTP_2 + bytes((0, len(PING))) + PING)
        assert b"revision" not in until_closed(stream)


def test_an_old_peer_is_let_in_if_asked_to(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data", "--old-zmtp") as server,
        connect(server) as stream,
        stream.makefile("rb") as received,
    ):
        stream.sendall(ZMTP_2 + bytes((0, len(PING))) + PING)
        assert received.read(12)[:1] == b"\xff"
        flags, size, *_ = received.read(2)
        assert (flags, size) == (0, 0)  # its routing id
        flags, size = received.read(2)
        assert msgpack.unpackb(received.read(size))["ok"] is True
        assert "--old-zmtp" in server.log.read_text()


def test_peers_that_do_not_greet_are_counted_and_logged(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        for _ in range(5):
            with connect(server) as stream:
                stream.sendall(GREETINGS["HTTP GET"])
                until_closed(stream)
        wait_until(lambda: strangers(server) == 5)
        wait_until(lambda: "did not greet as ZMTP 3 does" in server.log.read_text())


# How many

MANY = 5


def test_connections_beyond_the_most_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--connections-max", str(MANY)) as server, ExitStack() as open_:
        sockets = [open_.enter_context(raw_socket(zmq.REQ, server.endpoint)) for _ in range(MANY)]
        for socket in sockets:
            assert ask(socket, {"op": "ping"})["ok"]
        with connect(server) as one_more:
            assert until_closed(one_more)[:1] in (b"", b"\xff")
        told = ask(sockets[0], {"op": "info"})["connections"]
        assert (told["open_max"], told["refused"]) == (MANY, 1)
        for socket in sockets:
            assert ask(socket, {"op": "ping"})["ok"]
        sockets.pop().close()
        wait_until(lambda: ask(sockets[0], {"op": "info"})["connections"]["open"] < MANY)
        with raw_socket(zmq.REQ, server.endpoint) as another:
            assert ask(another, {"op": "ping"})["ok"]
        wait_until(lambda: "1 connections were refused" in server.log.read_text())


def test_connections_leave_files_for_the_server(tmp_path: Path) -> None:
    """With as many connections as there can be files, it compacts."""
    limited = ["prlimit", "--nofile=128:128"]
    with serving(tmp_path / "data", before=limited) as server, ExitStack() as open_:
        with zkv.Client(server.endpoint) as store:
            store.put("k", 1)
            for _ in range(200):
                open_.enter_context(connect(server))
            wait_until(lambda: store.info()["connections"]["refused"] >= 100)
            store.compact()
            wait_until(lambda: store.info()["snapshot_revision"] > 0)
            told = store.info()["connections"]
        assert told["open"] <= told["open_max"] < 128


# Replies that nobody reads


def deaf(endpoint: str, context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """A socket that takes little before its owner reads."""
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.rcvhwm, socket.rcvbuf, socket.reconnect_ivl = 0, 1, 4096, -1
    socket.connect(endpoint)
    return socket


@contextmanager
def with_a_large_value(data: Path, *options: str) -> Iterator[ServerProcess]:
    with serving(data, "--workers", "1", *options) as server:
        with zkv.Client(server.endpoint) as store:
            store.put("large", bytes(2 * MIB))
        yield server


GET = msgpack.packb({"op": "get", "key": "large"})


def test_replies_that_one_leaves_unread_are_bounded_and_none_is_lost(tmp_path: Path) -> None:
    with (
        with_a_large_value(tmp_path / "data") as server,
        zmq.Context() as context,
        deaf(server.endpoint, context) as socket,
        zkv.Client(server.endpoint) as store,
    ):
        for _ in range(100):
            socket.send(GET)
        wait_until(lambda: store.info()["connections"]["unread_bytes"] > 30 * MIB)
        for _ in range(20):
            assert store.get("large") == bytes(2 * MIB)
            assert store.info()["connections"]["unread_bytes"] < 45 * MIB
        for _ in range(100):
            assert msgpack.unpackb(socket.recv())["value"] == bytes(2 * MIB)
        wait_until(lambda: store.info()["connections"]["unread_bytes"] < MIB)
        assert store.info()["connections"]["dropped"] == 0


def test_replies_that_many_leave_unread_are_bounded(tmp_path: Path) -> None:
    """Beyond that a large reply is refused by name, and a small one is not."""
    most = 16 * MIB
    with (
        with_a_large_value(tmp_path / "data", "--unread-bytes-max", str(most)) as server,
        zkv.Client(server.endpoint) as store,
    ):
        with zmq.Context() as context, ExitStack() as sockets:
            for _ in range(10):
                socket = sockets.enter_context(deaf(server.endpoint, context))
                for _ in range(10):
                    socket.send(GET)
            wait_until(lambda: store.info()["connections"]["unread_bytes"] > most - 4 * MIB)
            refused = 0
            for _ in range(20):
                with suppress(zkv.Unavailable):
                    store.get("large")
                    continue
                refused += 1
            assert refused > 0
            assert store.put("small", 1) > 0
            assert store.get("small") == 1
            assert store.info()["connections"]["unread_bytes"] <= most
        wait_until(lambda: store.info()["connections"]["unread_bytes"] < MIB)
        assert store.get("large") == bytes(2 * MIB)


def test_small_replies_that_many_leave_unread_are_bounded(tmp_path: Path) -> None:
    """They are never refused, so who has any unread gets no more."""
    most, each = 4 * MIB, 100
    get = msgpack.packb({"op": "get", "key": "small"})
    with (
        serving(tmp_path / "data", "--workers", "1", "--unread-bytes-max", str(most)) as server,
        zkv.Client(server.endpoint) as store,
        zmq.Context() as context,
        ExitStack() as open_,
    ):
        store.put("small", bytes(60_000))
        sockets = [open_.enter_context(deaf(server.endpoint, context)) for _ in range(6)]
        for socket in sockets:
            for _ in range(each):
                socket.send(get)
        wait_until(lambda: store.info()["connections"]["unread_bytes"] > most)
        for _ in range(50):
            assert len(store.get("small")) == 60_000
            assert store.info()["connections"]["unread_bytes"] < most + 16 * MIB
        for socket in sockets:
            for _ in range(each):
                assert msgpack.unpackb(socket.recv())["ok"]
        assert store.info()["connections"]["dropped"] == 0


def test_what_a_reply_repeats_is_counted_as_unread(shared_server: ServerProcess) -> None:
    with (
        zkv.Client(shared_server.endpoint) as store,
        zmq.Context() as context,
        deaf(shared_server.endpoint, context) as socket,
    ):
        for _ in range(5000):
            socket.send_multipart([bytes(3000), PING])
        wait_until(lambda: store.info()["connections"]["unread_bytes"] > 2 * MIB)


def test_connections_that_have_gone_are_not_remembered() -> None:
    unread = Unread(MIB, MIB)
    for number in range(50_000):
        unread.since_mark[b"%d" % number] = 100
        unread.look()
    assert len(unread.since_mark) <= 10_001


def test_two_workers_may_mark_the_replies_of_a_connection_at_the_same_time() -> None:
    """The later one then finds nothing to count."""
    unread = Unread(MIB, MIB)
    unread.since_mark[b"connection"] = 1000
    marks = [unread.mark(b"connection", b"reply") for _ in range(2)]
    assert unread.bytes == 1000
    marks.clear()

    def all_have_left() -> bool:
        unread.look()
        return unread.bytes == 0 and not unread._marks

    wait_until(all_have_left)


@contextmanager
def answering_at_length() -> Iterator[Server]:
    """A server in this process, each of whose replies has 1 MiB."""

    def handle(bodies: Sequence[bytes], room: int) -> list[bytes]:
        return [bytes(MIB)] * len(bodies)

    server = Server(
        ["tcp://127.0.0.1:*"],
        handle,
        workers=1, message_bytes_max=MIB, unread_bytes_max=64 * MIB, connections_max=100,
        on_crash=lambda _: None,
    )  # fmt: skip
    server.start()
    try:
        yield server
    finally:
        assert server.stop()


def test_a_connection_that_takes_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkv.connections.STALLED_S", 0.3)
    monkeypatch.setattr("zkv.connections.LOOK_S", 0.05)
    monkeypatch.setattr("zkv.server.CONNECTION_UNREAD_BYTES_MAX", 4 * MIB)
    with (
        answering_at_length() as server,
        zmq.Context() as context,
        deaf(server.endpoints[0], context) as socket,
        raw_socket(zmq.REQ, server.endpoints[0]) as honest,
    ):
        for _ in range(20):
            socket.send(b"request")
        wait_until(lambda: server.info()["stalled"] == 1)
        honest.send(b"request")
        assert len(honest.recv()) == MIB
        wait_until(lambda: server.info()["open"] == 1)
        honest.send(b"request")
        assert len(honest.recv()) == MIB
        wait_until(lambda: server.info()["unread_bytes"] < 4 * MIB)
        assert server.info()["stalled"] == 1


@pytest.mark.parametrize(
    ("limit", "most", "request_"),
    [("TURNS_MAX", 16, b"request"), ("TURNS_BYTES_MAX", MIB, bytes(MIB // 8))],
    ids=["many", "large"],
)
def test_requests_of_a_connection_that_reads_nothing_keep_no_others_out(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, request_: bytes
) -> None:
    monkeypatch.setattr("zkv.connections.STALLED_S", 3600)
    monkeypatch.setattr("zkv.server.CONNECTION_UNREAD_BYTES_MAX", 4 * MIB)
    monkeypatch.setattr(f"zkv.server.{limit}", most)
    with (
        answering_at_length() as server,
        zmq.Context() as context,
        deaf(server.endpoints[0], context) as socket,
        raw_socket(zmq.REQ, server.endpoints[0]) as honest,
    ):
        for _ in range(100):
            socket.send(request_)
        wait_until(lambda: server.info()["unread_bytes"] > 4 * MIB)
        for _ in range(10):
            honest.send(b"request")
            assert len(honest.recv()) == MIB
        wait_until(lambda: server.info()["dropped"] > 0)
        assert server.info()["stalled"] == 0


def test_replies_to_a_peer_that_has_gone_leave_nothing(tmp_path: Path) -> None:
    with with_a_large_value(tmp_path / "data") as server, zkv.Client(server.endpoint) as store:
        for _ in range(5):
            with zmq.Context() as context, deaf(server.endpoint, context) as socket:
                for _ in range(10):
                    socket.send(GET)
                wait_until(lambda: store.info()["connections"]["open"] == 2)
        wait_until(lambda: store.info()["connections"]["unread_bytes"] < MIB)
        assert store.info()["connections"]["open"] == 1
