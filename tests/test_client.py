"""The client against peers that follow a script: what it raises, and that it recovers."""

from __future__ import annotations

import gc
import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq
from awaited import Connect
from harness import ServerProcess, ask, raw_socket, serving, wait_until
from relay import Relay

import zkv
from zkv.errors import BY_CODE, DataLost

Frames = list[bytes]
Script = Callable[[list[Frames]], list[Frames]]
"""What a peer sends, given every message that it has received."""

GOOD = msgpack.packb({"ok": True, "revision": 1, "value": "good", "version": 1})
OPENED = msgpack.packb({"ok": True, "revision": 1, "success": True, "results": []})


@contextmanager
def peer(script: Script) -> Iterator[str]:
    """Something on a free port that speaks ZeroMQ, and otherwise follows its script."""
    stopped, received = threading.Event(), list[Frames]()

    def follow() -> None:
        while not stopped.is_set():
            if router.poll(20):
                received.append(router.recv_multipart())
                for frames in script(received):
                    router.send_multipart(frames)

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind("tcp://127.0.0.1:*")
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield router.getsockopt_string(zmq.LAST_ENDPOINT)
        finally:
            stopped.set()
            thread.join()


def replying(*bodies: bytes) -> Script:
    """Answers the first request with the first body, and so on; the rest with GOOD."""

    def script(received: list[Frames]) -> list[Frames]:
        number = len(received) - 1
        body = bodies[number] if number < len(bodies) else GOOD
        return [[*received[-1][:-1], body]]

    return script


def silent(received: list[Frames]) -> list[Frames]:
    return []


# Peers that do not answer


def test_no_reply_is_a_timeout(connect: Connect) -> None:
    with peer(silent) as endpoint, connect(endpoint, timeout_s=0.2) as client:
        with pytest.raises(zkv.Timeout) as raised:
            client.put("k", 1)
        assert isinstance(raised.value, TimeoutError)
        assert not raised.value.outcome_known


def test_nothing_there_is_cannot_connect(connect: Connect, unused: str) -> None:
    with connect(unused, timeout_s=0.2) as client:
        with pytest.raises(zkv.CannotConnect, match=unused) as raised:
            client.put("k", 1)
        assert isinstance(raised.value, ConnectionError)
        assert raised.value.outcome_known


def test_something_else_there_is_cannot_connect(connect: Connect) -> None:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        try:
            client = connect(f"tcp://127.0.0.1:{web.server_port}", timeout_s=0.3)
            with client, pytest.raises(zkv.CannotConnect):
                client.ping()
        finally:
            web.shutdown()
            thread.join()


def test_a_server_may_come_up_later_and_come_back(
    connect: Connect, unused: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tmp_path_factory.mktemp("later") / "data"
    with connect(unused, timeout_s=0.2) as client:
        with pytest.raises(zkv.CannotConnect):
            client.ping()
        client.timeout_s = 5
        for expected in (1, 2):
            with serving(data, "--listen", unused):
                assert client.incr("k") == expected


def test_a_late_reply_goes_to_nobody(connect: Connect) -> None:
    def script(received: list[Frames]) -> list[Frames]:
        if b"second" not in received[-1][-1]:
            return []
        return [
            [*frames[:-1], GOOD.replace(b"good", b"%.4s" % frames[-1][-6:])] for frames in received
        ]

    with peer(script) as endpoint, connect(endpoint, timeout_s=0.3) as client:
        with pytest.raises(zkv.Timeout):
            client.get(".first")
        client.timeout_s = 5
        assert client.get("second") == "seco"
        assert client.get("second") == "seco"


def test_a_connection_that_has_fallen_silent_is_replaced(connect: Connect) -> None:
    """As when a firewall forgets it: what goes through it goes nowhere, without a sign."""

    def script(received: list[Frames]) -> list[Frames]:
        return replying()(received) if received[-1][0] != received[0][0] else []

    with (
        peer(script) as endpoint,
        connect(endpoint, timeout_s=20, resend_after_s=0.05) as client,
    ):
        for _ in range(3):
            assert client.get("k") == "good"


# Peers that answer with something else

NOT_A_REPLY = {
    "nothing": b"",
    "garbage": b"\xc1",
    "trailing bytes": GOOD + b"\x00",
    "cut short": GOOD[:-1],
    "not a map": msgpack.packb([1]),
    "no ok": msgpack.packb({"revision": 1}),
    "ok is no bool": msgpack.packb({"ok": 1, "revision": 1}),
    "no revision": msgpack.packb({"ok": True, "value": 1, "version": 1}),
    "revision is no int": msgpack.packb({"ok": True, "revision": "1", "value": 1, "version": 1}),
    "no value": msgpack.packb({"ok": True, "revision": 1}),
    "a failure without revision": msgpack.packb({"ok": False, "error": "stale", "message": "m"}),
    "no error": msgpack.packb({"ok": False, "message": "a sentence", "revision": 1}),
    "no message": msgpack.packb({"ok": False, "error": "conflict", "revision": 1}),
    "a key is no str": msgpack.packb({"ok": False, "error": "stale", "message": "m", 1: 2}),
}


@pytest.mark.parametrize("body", NOT_A_REPLY.values(), ids=NOT_A_REPLY)
def test_what_is_no_reply_is_a_protocol_error(connect: Connect, body: bytes) -> None:
    with peer(replying(body)) as endpoint, connect(endpoint) as client:
        with pytest.raises(zkv.ProtocolError) as raised:
            client.get("k")
        assert not raised.value.outcome_known
        assert client.get("k") == "good"


@pytest.mark.parametrize("before", [[], [OPENED]], ids=["at once", "after opening its session"])
def test_what_is_no_reply_to_a_write_is_a_protocol_error(
    connect: Connect, before: list[bytes]
) -> None:
    with peer(replying(*before, b"\xc1")) as endpoint, connect(endpoint) as client:
        with pytest.raises(zkv.ProtocolError) as raised:
            client.put("k", 1)
        assert not raised.value.outcome_known
        assert client.get("k") == "good"


def test_a_reply_of_two_frames_is_a_protocol_error(connect: Connect) -> None:
    def script(received: list[Frames]) -> list[Frames]:
        return [[*received[-1][:-1], GOOD, *[b"more"][len(received) - 1 :]]]

    with peer(script) as endpoint, connect(endpoint) as client:
        with pytest.raises(zkv.ProtocolError):
            client.get("k")
        assert client.get("k") == "good"


@pytest.mark.parametrize("code", BY_CODE)
def test_each_code_has_its_class_and_keeps_its_details(connect: Connect, code: str) -> None:
    details = {"version": 7, "limit": 9, "more": [1]}
    reply = {"ok": False, "revision": 3, "error": code, "message": "a sentence", **details}
    with (
        peer(replying(msgpack.packb(reply))) as endpoint,
        connect(endpoint) as client,
        pytest.raises(zkv.Error) as raised,
    ):
        client.get("k")
    assert type(raised.value) is BY_CODE[code]
    assert str(raised.value) == "a sentence"
    assert details.items() <= raised.value.details.items()


def test_a_code_of_a_newer_server_is_still_an_error(connect: Connect) -> None:
    failure = {"ok": False, "revision": 3, "error": "too_blue", "message": "it is too blue"}
    reply = failure | {"self": "a detail that is an argument's name"}
    with (
        peer(replying(msgpack.packb(reply))) as endpoint,
        connect(endpoint) as client,
        pytest.raises(zkv.Error, match="too blue"),
    ):
        client.get("k")


def test_a_revision_that_goes_back_is_data_lost(connect: Connect) -> None:
    newer, older = (
        msgpack.packb({"ok": True, "revision": revision, "version": 1, "value": "k"})
        for revision in (5, 4)
    )
    with peer(replying(newer, newer, older)) as endpoint, connect(endpoint) as client:
        client.get("k")
        client.get("k")
        with pytest.raises(DataLost):
            client.get("k")


# Against a server


def test_errors_are_also_those_of_python(connect: Connect, server: ServerProcess) -> None:
    with connect(server.endpoint) as client:
        client.put("text", "t")
        client.put("number", 2**64 - 1)
        with pytest.raises(KeyError, match=r"^no such key: missing$"):
            client.get("missing")
        with pytest.raises(KeyError):
            client.delete("missing")
        with pytest.raises(TypeError):
            client.incr("text")
        with pytest.raises(OverflowError):
            client.incr("number")
        for bad in ("", "k" * 1025, 1, None, b"k"):
            with pytest.raises((ValueError, TypeError)):
                client.put(bad, 1)  # type: ignore[arg-type]
        for bad in (object(), {1, 2}, 2**64, [object()]):
            with pytest.raises((ValueError, TypeError)):
                client.put("k", bad)
        for mib in (9, 17):  # the server answers the one, and drops the sender of the other
            with pytest.raises(zkv.TooLarge):
                client.put("k", bytes(mib * 2**20))
        assert client.get("missing", None) is None
        assert client.count() == 2


def test_threads_share_a_client(connect: Connect, server: ServerProcess) -> None:
    done = []

    def use(writer: int) -> None:
        for number in range(50):
            client.put(f"{writer}", [writer, number])
            assert client.get(f"{writer}") == [writer, number]
            client.incr("all")
        done.append(writer)

    with connect(server.endpoint) as client:
        threads = [threading.Thread(target=use, args=(writer,)) for writer in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == list(range(16))
        assert client.get("all") == 16 * 50


FORK = """
import os, signal, sys, threading, zkv

def use(client, number):
    while not stopped.is_set():
        assert client.put(f"{number}", number) and client.get(f"{number}") == number

stopped = threading.Event()
with zkv.Client(sys.argv[1]) as client:
    threads = [threading.Thread(target=use, args=(client, n), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    client.put("parent", 1)
    for number in range(10):
        if not (child := os.fork()):
            signal.alarm(30)  # one that hangs ends by itself
            try:
                if number % 2:
                    client.put("child", client.get("parent") + client.incr("children"))
                client.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    stopped.set()
    for thread in threads:
        thread.join()
    assert (client.get("child"), client.get("children")) == (6, 5)
"""


def test_a_forked_child_goes_on_using_it(server: ServerProcess) -> None:
    """Or closes it, while threads of the parent use it."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_handler_may_break_off_a_call() -> None:
    """The reply that then comes is nobody's."""

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    def script(received: list[Frames]) -> list[Frames]:
        if len(received) == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return []
        return [[*frames[:-1], GOOD.replace(b"good", frames[-1][-4:])] for frames in received]

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with peer(script) as endpoint, zkv.Client(endpoint) as client:
            with pytest.raises(Alarm):
                client.get("-one")
            assert client.get("-two") == "-two"
    finally:
        signal.signal(signal.SIGALRM, before)


# Lost replies


def test_a_write_whose_reply_is_lost_takes_effect_once(
    connect: Connect, server: ServerProcess
) -> None:
    with raw_socket(zmq.REQ, server.endpoint) as upstream:

        def every_other_reply(received: list[Frames]) -> list[Frames]:
            upstream.send(received[-1][-1])
            reply = [*received[-1][:-1], upstream.recv()]
            return [] if len(received) % 2 else [reply]

        with (
            peer(every_other_reply) as endpoint,
            connect(endpoint, resend_after_s=0.05) as client,
        ):
            assert [client.incr("k") for _ in range(10)] == list(range(1, 11))


def test_a_write_is_not_resent_against_the_will_of_its_caller(connect: Connect) -> None:
    arrived: list[Frames] = []

    def script(received: list[Frames]) -> list[Frames]:
        arrived[:] = received
        return []

    with (
        peer(script) as endpoint,
        connect(endpoint, timeout_s=0.5, resend_after_s=0.05, exactly_once=False) as client,
    ):
        with pytest.raises(zkv.Timeout):
            client.incr("k")
        assert [msgpack.unpackb(frames[-1])["op"] for frames in arrived] == ["incr"]


# Closing


def test_a_client_whose_session_was_overtaken_says_so_once_and_goes_on(
    connect: Connect, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter("abc")
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: next(names))
    with connect(server.endpoint) as client, raw_socket(zmq.REQ, server.endpoint) as copy:
        assert client.incr("n") == 1
        ask(copy, {"op": "incr", "key": "n", "session": "a", "seq": 100})
        with pytest.raises(zkv.Stale, match="another client has used the session"):
            client.incr("n")
        assert client.incr("n") == 3
        assert client.get("n") == 3


def test_a_session_goes_on_after_a_timeout(connect: Connect, server: ServerProcess) -> None:
    with (
        Relay(server.endpoint, lost=0, seed=0) as relay,
        connect(relay.endpoint, timeout_s=0.3, resend_after_s=0.1) as client,
    ):
        client.incr("n")
        for _ in range(5):
            relay.lost = 1
            with pytest.raises(zkv.Timeout):
                client.incr("n")
            relay.lost = 0
            client.incr("n")
        assert client.get("n") == 11
        assert client.info()["sessions"] == 1


def test_threads_that_are_gone_leave_few_connections(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after a while none."""
    with zkv.Client(server.endpoint, timeout_s=60) as client:
        barrier = threading.Barrier(100)

        def use() -> None:
            barrier.wait()
            for _ in range(5):
                client.incr("n")

        threads = [threading.Thread(target=use) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get("n") == 500
        wait_until(lambda: client.info()["connections"]["open"] <= 32)
        assert client.info()["sessions"] <= 100
        monkeypatch.setattr("zkv.client.IDLE_S", 0.1)
        time.sleep(0.2)
        wait_until(lambda: client.info()["connections"]["open"] == 1)


def test_a_client_that_is_dropped_says_so_and_leaves_nothing(server: ServerProcess) -> None:
    """At once."""
    gc.disable()
    try:
        with zkv.Client(server.endpoint) as other:
            client = zkv.Client(server.endpoint)
            client.put("k", 1)
            with pytest.warns(ResourceWarning, match="unclosed"):
                del client
            wait_until(lambda: other.info()["connections"]["open"] == 1)
    finally:
        gc.enable()


NO_FILES = """
import os, resource, sys, zkv
client = zkv.Client(sys.argv[1], timeout_s=0.5)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
opened = []
try:
    while True:
        opened.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    client.put("k", 1)
except zkv.CannotConnect as error:
    print(error)
os.close(opened.pop())
client.put("k", 1)
client.close()
"""


def test_a_client_without_files_for_it_cannot_connect(server: ServerProcess) -> None:
    command = [sys.executable, "-c", NO_FILES, server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cannot make a socket: Too many open files; nothing was sent\n"


def test_close_needs_no_server_and_no_first_time(connect: Connect, unused: str) -> None:
    client = connect(unused)
    client.close()
    client.close()
    with pytest.raises(zkv.BadRequest, match="closed"):
        client.ping()


def test_close_waits_little_for_a_server_that_has_gone(connect: Connect, tmp_path: Path) -> None:
    """Though that keeps a large reply, which it could give up."""
    with serving(tmp_path / "data") as server:
        client = connect(server.endpoint, timeout_s=3600)
        client.put("k", bytes(5000))
        assert client.pop("k") == bytes(5000)
        server.stop()
        closing = threading.Thread(target=client.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()


def test_close_gives_up_large_replies_on_a_connection_of_its_own(tmp_path: Path) -> None:
    """Or another thread might be given the reply to that."""
    asked, answer = threading.Event(), threading.Event()

    def script(received: list[Frames]) -> list[Frames]:
        fields = msgpack.unpackb(received[-1][-1])
        reply = {"ok": True, "revision": 1, "results": [], "success": True, "version": 1}
        if fields["op"] == "delete":
            reply["old"] = bytes(5000)
        elif fields.get("seq", 0) > 2:
            asked.set()
            answer.wait(10)
        return [[*received[-1][:-1], msgpack.packb(reply)]]

    with peer(script) as endpoint:
        client = zkv.Client(endpoint)
        assert client.pop("k") == bytes(5000)
        closing = threading.Thread(target=client.close)
        closing.start()
        try:
            assert asked.wait(10)
            with pytest.raises(zkv.BadRequest, match="closed"):
                client.get("k")
        finally:
            answer.set()
            closing.join(10)


def test_close_leaves_a_call_under_way_its_time(connect: Connect) -> None:
    raised = []

    def call() -> None:
        try:
            client.put("k", 1)
        except zkv.Error as error:
            raised.append(error)

    arrived = threading.Event()

    def script(received: list[Frames]) -> list[Frames]:
        arrived.set()
        return []

    with peer(script) as endpoint:
        client = connect(endpoint, timeout_s=0.5)
        thread = threading.Thread(target=call)
        thread.start()
        assert arrived.wait(5)
        client.close()
        thread.join(5)
        assert [type(error) for error in raised] == [zkv.Timeout]


@pytest.mark.parametrize("endpoint", ["", "nonsense", "tcp://", "tcp://127.0.0.1", "foo://a"])
def test_an_endpoint_that_is_none_is_refused(connect: Connect, endpoint: str) -> None:
    with pytest.raises(zkv.BadRequest):
        connect(endpoint)


def test_a_client_follows_a_server_that_is_killed(connect: Connect, server: ServerProcess) -> None:
    with connect(server.endpoint, timeout_s=0.5) as client:
        client.put("k", 1)
        server.kill()
        with pytest.raises((zkv.Timeout, zkv.CannotConnect)):
            client.put("k", 2)
        client.timeout_s = 5
        with serving(server.data, "--listen", server.endpoint):
            wait_until(lambda: client.get("k") in (1, 2))
