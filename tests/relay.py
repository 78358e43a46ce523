"""A bad network: it passes requests on to a server, and loses some of the replies."""

from __future__ import annotations

import random
import threading
from types import TracebackType
from typing import Self

import msgpack
import zmq


class Relay:
    """Listens at `endpoint` while it is entered. A reply is lost with the probability `lost`,
    which may be changed; which ones hangs on the seed. With `first_lost` the first reply to
    every request is lost too, however its `seq` and `retry` and the client's sockets change.

    What it has not got rid of while the server is away it delivers when the server is back:
    late, and perhaps behind the same request sent again.
    """

    def __init__(self, server: str, *, lost: float, seed: int, first_lost: bool = False) -> None:
        self.passed = self.dropped = 0
        self.lost = lost
        self._random = random.Random(seed)
        self._first_lost = first_lost
        self._asked: set[bytes] = set()
        self._doomed: set[bytes] = set()
        self._context = zmq.Context()
        self._clients = self._context.socket(zmq.ROUTER)
        self._clients.bind("tcp://127.0.0.1:*")
        self.endpoint = self._clients.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._server = self._context.socket(zmq.DEALER)
        self._server.reconnect_ivl = 20
        self._server.connect(server)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._clients, zmq.POLLIN)
        poller.register(self._server, zmq.POLLIN)
        while not self._stopping.is_set():
            for socket, _ in poller.poll(50):
                frames = socket.recv_multipart()
                if socket is self._clients:
                    self._note(frames[0], frames[-1])
                    self._server.send_multipart(frames)
                elif frames[0] in self._doomed or self._random.random() < self.lost:
                    self._doomed.discard(frames[0])
                    self.dropped += 1
                else:
                    self._clients.send_multipart(frames)
                    self.passed += 1

    def _note(self, peer: bytes, body: bytes) -> None:
        """Dooms the reply to what this peer asks if nobody has asked for it before."""
        if self._first_lost:
            request = msgpack.unpackb(body)
            asked = msgpack.packb(
                sorted((name, it) for name, it in request.items() if name not in ("retry", "seq"))
            )
            if asked not in self._asked:
                self._asked.add(asked)
                self._doomed.add(peer)
