"""The wire, byte by byte: what a client says to a peer that is no libzmq, and makes of what
it hears. With libzmq at the other end, every other test of the client is a test of it.
"""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness import serving

import zkv
from zkv import protocol, values
from zkv.fields import ABSENT
from zkv.zmtp import Link, NotZeroMQ

GREETING = b"\xff" + bytes(8) + b"\x7f\3\1" + b"NULL" + bytes(48)
READY = b"\4\x1c\5READY\x0bSocket-Type\0\0\0\6ROUTER"
PING = b"\4\7\4PING\0\0"
ASKED = 64 + 2 + len(b"\5READY\x0bSocket-Type\0\0\0\6DEALER\x08Identity\0\0\0\0")
"""Bytes of a client's greeting and READY."""

Talk = Callable[[socket.socket], object]


@contextmanager
def peer(*talks: Talk) -> Iterator[str]:
    """Takes one connection after the other, and has each of these talks on one."""

    def follow() -> None:
        for talk in talks:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join()


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the client has closed the connection"
        data += part
    return data


def greet(connection: socket.socket) -> None:
    connection.sendall(GREETING + READY)
    exactly(connection, ASKED)


def request(connection: socket.socket) -> bytes:
    """The body of a short request."""
    flags, size = exactly(connection, 2)
    assert flags == 0
    return exactly(connection, size)


def reply_to(body: bytes) -> bytes:
    """The reply to a put, or to the txn that opens a session."""
    fields: dict[str, Any] = {"put": {"version": 7}, "txn": {"success": True, "results": []}}[
        values.unpack(body)["op"]
    ]
    return message(protocol.encode_reply(ABSENT, 7, fields))


def message(body: bytes) -> bytes:
    if len(body) < 256:
        return b"\0%c" % len(body) + body
    return b"\2" + len(body).to_bytes(8, "big") + body


@pytest.mark.parametrize("size", [1, 60, 200, 255, 256, 70_000, 2**20])
def test_bodies_of_any_size_go_there_and_back(size: int) -> None:
    body = bytes(itertools.islice(itertools.cycle(range(251)), size))

    def echo(connection: socket.socket) -> None:
        greet(connection)
        assert exactly(connection, len(message(body))) == message(body)
        connection.sendall(message(body))

    with peer(echo) as endpoint:
        link = Link(endpoint, 5)
        assert link.ask(body, 5) == [body]
        link.close()


def test_a_reply_keeps_nothing_of_another() -> None:
    """Though the memory that a large one came in is used again."""
    replies = [b"a" * 100_000, b"b" * 50_000, b"c" * 5_000_000, b"d" * 99_999, b"e"]

    def answer(connection: socket.socket) -> None:
        greet(connection)
        for reply in replies:
            request(connection)
            connection.sendall(message(reply))
        request(connection)
        connection.sendall(b"\3" + message(replies[0])[1:] + message(replies[1]))

    with peer(answer) as endpoint:
        link = Link(endpoint, 5)
        for reply in replies:
            assert link.ask(b"?", 5) == [reply]
        assert link.ask(b"?", 5) == replies[:2]
        link.close()


def test_a_value_does_not_change_when_another_comes(tmp_path: Path) -> None:
    written: dict[str, Any] = {"a": b"a" * 200_000, "b": "b" * 200_000, "c": ["c" * 100_000] * 2}
    with serving(tmp_path / "data") as server, zkv.Client(server.endpoint) as client:
        client.put_many(written)
        assert {key: client.get(key) for key in written} == written


def in_pieces(connection: socket.socket, data: bytes, size: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(data), size):
        connection.sendall(data[at : at + size])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_what_the_peer_says_may_come_in_pieces(size: int) -> None:
    def slow(connection: socket.socket) -> None:
        in_pieces(connection, GREETING + READY, size)
        exactly(connection, ASKED)
        for body in (b"", b"short", b"x" * 300):
            request(connection)
            in_pieces(connection, message(body), size)
            request(connection)
            in_pieces(connection, b"\1\1x\0%c" % min(len(body), 255) + body[:255], size)

    with peer(slow) as endpoint:
        link = Link(endpoint, 5)
        for body in (b"", b"short", b"x" * 300):
            assert link.ask(b"?", 5) == [body]
            assert link.ask(b"?", 5) == [b"x", body[:255]]
        link.close()


def test_commands_between_messages_are_no_replies() -> None:
    def pings(connection: socket.socket) -> None:
        greet(connection)
        request(connection)
        connection.sendall(PING + message(b"a"))
        request(connection)
        connection.sendall(PING + b"\1\1b" + PING + b"\0\1c")

    with peer(pings) as endpoint:
        link = Link(endpoint, 5)
        assert link.ask(b"?", 5) == [b"a"]
        assert link.ask(b"?", 5) == [b"b", b"c"]
        link.close()


@pytest.mark.parametrize(
    "hello",
    {
        "old": b"\xff" + bytes(8) + b"\x7f\1" + bytes(53),
        "encrypted": GREETING.replace(b"NULL\0", b"CURVE") + READY,
        "text": b"HTTP/1.0 400 Bad Request\r\n" * 4,
        "PUB": GREETING + b"\4\x19\5READY\x0bSocket-Type\0\0\0\3PUB",
        "REP": GREETING + b"\4\x19\5READY\x0bSocket-Type\0\0\0\3REP",
        "no READY": GREETING + b"\0\1x",
    }.items(),
    ids=lambda it: it[0],
)
def test_a_peer_that_cannot_answer_is_refused(hello: tuple[str, bytes]) -> None:
    with (
        peer(lambda connection: connection.sendall(hello[1])) as endpoint,
        pytest.raises(NotZeroMQ),
    ):
        Link(endpoint, 5)


def test_a_frame_that_no_memory_holds_is_not_waited_for() -> None:
    def boast(connection: socket.socket) -> None:
        greet(connection)
        request(connection)
        connection.sendall(b"\2" + b"\x7f" * 8)

    with peer(boast) as endpoint:
        link = Link(endpoint, 5)
        with pytest.raises(NotZeroMQ, match="a frame of 9187201950435737471 bytes"):
            link.ask(b"?", 5)
        link.close()


def greet_late(connection: socket.socket) -> None:
    """In 0.3 s, of which no step takes more than 0.15."""
    connection.sendall(GREETING[:32])
    time.sleep(0.15)
    connection.sendall(GREETING[32:])
    time.sleep(0.15)
    connection.sendall(READY)
    exactly(connection, ASKED)


@pytest.mark.parametrize("said", [PING, b"\2"], ids=["commands", "a byte at a time"])
def test_a_peer_that_says_little_but_often_has_no_more_time(said: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        greet(connection)
        request(connection)
        with suppress(OSError):  # the client has gone
            for _ in range(40):
                connection.sendall(said)
                time.sleep(0.05)

    with peer(drip) as endpoint:
        link = Link(endpoint, 5)
        with pytest.raises(TimeoutError):
            link.ask(b"?", 0.3)
        link.close()


def test_a_peer_that_greets_little_by_little_has_no_more_time() -> None:
    def drip(connection: socket.socket) -> None:
        with suppress(OSError):
            for n in range(len(GREETING)):
                connection.sendall(GREETING[n : n + 1])
                time.sleep(0.05)

    with peer(drip) as endpoint, pytest.raises(TimeoutError):
        Link(endpoint, 0.3)


def test_nothing_is_sent_when_its_time_is_over() -> None:
    def late(connection: socket.socket) -> None:
        greet_late(connection)
        assert connection.recv(1) == b""

    with (
        peer(late) as endpoint,
        zkv.Client(endpoint, timeout_s=0.25) as client,
        pytest.raises(zkv.CannotConnect),
    ):
        client.put("k", 1)


def test_a_connection_that_came_late_is_used_next() -> None:
    def late(connection: socket.socket) -> None:
        greet_late(connection)
        for _ in range(2):
            connection.sendall(reply_to(request(connection)))

    with peer(late) as endpoint, zkv.Client(endpoint, timeout_s=9, resend_after_s=0.25) as client:
        assert client.put("k", 1) == 7


def test_a_session_may_take_all_the_time_there_is() -> None:
    def drip(connection: socket.socket) -> None:
        greet(connection)
        data = reply_to(request(connection))
        time.sleep(0.15)
        connection.sendall(data[:5])
        time.sleep(0.15)
        connection.sendall(data[5:])
        assert connection.recv(1) == b""

    with (
        peer(drip) as endpoint,
        zkv.Client(endpoint, timeout_s=0.25) as client,
        pytest.raises(zkv.Timeout, match=r"within 0\.25 s"),
    ):
        client.put("k", 1)


def test_a_server_that_goes_away_does_not_end_a_process_by_a_signal() -> None:
    def leave(connection: socket.socket) -> None:
        greet(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    program = """if True:
        import signal, sys, time, zkv
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        client = zkv.Client(sys.argv[1], exactly_once=False)
        try:
            client.put("k", bytes(4_000_000))
        except zkv.Timeout as error:
            print(error)
    """
    with peer(leave) as endpoint:
        ended = subprocess.run(
            [sys.executable, "-c", program, endpoint], capture_output=True, text=True, check=True
        )
    assert "closed the connection" in ended.stdout


def hang_up(connection: socket.socket) -> None:
    """Takes a request, and ends in the middle of its reply."""
    greet(connection)
    request(connection)
    connection.sendall(b"\0\5x")


def test_a_reply_that_is_cut_off_is_asked_for_again() -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        greet(connection)
        for _ in range(2):
            asked.append(request(connection))
            connection.sendall(reply_to(asked[-1]))

    with peer(hang_up, answer) as endpoint, zkv.Client(endpoint) as client:
        assert client.put("k", 1) == 7
    first, second = map(values.unpack, asked)
    assert first["op"] == "txn"
    assert second["op"] == "put"


def test_a_write_that_must_not_be_repeated_is_not() -> None:
    with peer(hang_up) as endpoint, zkv.Client(endpoint, exactly_once=False) as client:
        with pytest.raises(
            zkv.Timeout, match=r"closed the connection .* outcome unknown"
        ) as raised:
            client.put("k", 1)
        assert not raised.value.outcome_known


def test_a_connection_that_ended_while_nobody_used_it_is_not_used() -> None:
    """Or a write that must not be repeated would go nowhere."""

    def answer_once(connection: socket.socket) -> None:
        greet(connection)
        connection.sendall(reply_to(request(connection)))

    with (
        peer(answer_once, answer_once) as endpoint,
        zkv.Client(endpoint, exactly_once=False) as client,
    ):
        assert client.put("k", 1) == 7
        time.sleep(0.05)  # until the end of the first connection has come
        assert client.put("k", 1) == 7


def test_a_socket_file_is_an_endpoint(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data", "--listen", endpoint := f"ipc://{tmp_path}/socket"),
        zkv.Client(endpoint) as client,
    ):
        client.put("k", 1)
        assert client.get("k") == 1
