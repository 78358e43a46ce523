"""What a client says of an endpoint where there is no zkv server: at once or when its time is
up, by a class of its own, in a sentence that names the endpoint.
"""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq
from awaited import Connect
from harness import ServerProcess

import zkv

NOT_ZKV = "does not answer as zkv does .*is a zkv server there"


@contextmanager
def web() -> Iterator[str]:
    """An HTTP server."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": print})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def mute() -> Iterator[str]:
    """A socket that listens, and never speaks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def nothing() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"tcp://127.0.0.1:{port}"


@contextmanager
def no_file() -> Iterator[str]:
    yield f"ipc://{Path('/nowhere')}/socket"


def replying(answer: Callable[[list[bytes]], list[bytes]]) -> Callable[[], Peer]:
    """A plain ROUTER that answers so."""

    @contextmanager
    def peer() -> Iterator[str]:
        stopped = threading.Event()

        def follow() -> None:
            while not stopped.is_set():
                if router.poll(20):
                    *envelope, body = router.recv_multipart()
                    router.send_multipart(envelope + answer([body]))

        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            port = router.bind_to_random_port("tcp://127.0.0.1")
            thread = threading.Thread(target=follow)
            thread.start()
            try:
                yield f"tcp://127.0.0.1:{port}"
            finally:
                stopped.set()
                thread.join()

    return peer


@contextmanager
def publisher() -> Iterator[str]:
    """It speaks ZeroMQ, but not to those who ask."""
    with zmq.Context() as context, context.socket(zmq.PUB) as pub:
        pub.linger = 0
        yield f"tcp://127.0.0.1:{pub.bind_to_random_port('tcp://127.0.0.1')}"


@contextmanager
def deaf() -> Iterator[str]:
    """It takes requests, and answers none."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        yield f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"


Peer = AbstractContextManager[str]

PEERS: dict[str, tuple[Callable[[], Peer], type[zkv.Error], str]] = {
    "nothing listens": (nothing, zkv.CannotConnect, "nothing listens at .*nothing was sent"),
    "no such file": (no_file, zkv.CannotConnect, "nothing listens at .*nothing was sent"),
    "HTTP": (web, zkv.CannotConnect, "something listens at .*no zkv server"),
    "never speaks": (mute, zkv.CannotConnect, "something listens at .*no zkv server"),
    "PUB": (publisher, zkv.CannotConnect, "something listens at .*no zkv server"),
    "answers nothing": (deaf, zkv.Timeout, "no reply from .* within 0.3 s"),
    "echoes": (replying(lambda frames: frames), zkv.ProtocolError, NOT_ZKV),
    "garbage": (replying(lambda _: [b"\xc1\xff"]), zkv.ProtocolError, NOT_ZKV),
    "nothing but a frame": (replying(lambda _: [b""]), zkv.ProtocolError, NOT_ZKV),
    "text": (replying(lambda _: [b"HTTP/1.1 200 OK"]), zkv.ProtocolError, NOT_ZKV),
    "many frames": (replying(lambda it: it * 3), zkv.ProtocolError, NOT_ZKV),
}


@pytest.mark.parametrize("name", PEERS)
def test_it_says_so(name: str, connect: Connect) -> None:
    """For reads and for writes, and again."""
    open_peer, kind, words = PEERS[name]
    with open_peer() as endpoint, connect(endpoint, timeout_s=0.3) as client:
        for ask in (client.ping, lambda: client.put("k", 1), lambda: client.get("k", None)):
            with pytest.raises(kind, match=words) as raised:
                ask()
            assert type(raised.value) is kind
            assert endpoint in str(raised.value)
            assert raised.value.outcome_known is (kind is zkv.CannotConnect)


@contextmanager
def broker(server: str) -> Iterator[str]:
    """A proxy in between: to the server, all of its clients are one connection."""
    with zmq.Context() as context:
        front, back, control, stop = map(
            context.socket, (zmq.ROUTER, zmq.DEALER, zmq.PAIR, zmq.PAIR)
        )
        port = front.bind_to_random_port("tcp://127.0.0.1")
        back.connect(server)
        control.bind("inproc://control")
        stop.connect("inproc://control")
        thread = threading.Thread(target=zmq.proxy_steerable, args=(front, back, None, control))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            stop.send(b"TERMINATE")
            thread.join()
            for socket in (front, back, control, stop):
                socket.close(linger=0)


def test_a_broker_may_stand_in_between(shared_server: ServerProcess, connect: Connect) -> None:
    with broker(shared_server.endpoint) as endpoint, connect(endpoint) as client:
        client.put("k", "v")
        assert client.get("k") == "v"


def test_a_broker_may_have_hundreds_of_clients(shared_server: ServerProcess) -> None:
    """Replies are bounded in bytes, and not in number."""
    with broker(shared_server.endpoint) as endpoint, zmq.Context() as context, ExitStack() as open_:
        clients = [open_.enter_context(context.socket(zmq.REQ)) for _ in range(600)]
        for client in clients:
            client.linger = 0
            client.connect(endpoint)
        for _ in range(3):
            for client in clients:
                client.send(msgpack.packb({"op": "ping"}))
            for client in clients:
                assert client.poll(20_000)
                assert msgpack.unpackb(client.recv())["ok"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64])
def test_a_host_that_there_is_not(host: str, connect: Connect) -> None:
    with (
        connect(f"zkv://{host}", timeout_s=0.3) as client,
        pytest.raises(zkv.CannotConnect, match=re.escape(host)),
    ):
        client.ping()
