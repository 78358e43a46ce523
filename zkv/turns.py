"""Requests that wait for a worker. Connections take turns, one request each, so that nobody
waits for another's burst. No socket may live here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Sequence

Envelope = list[bytes]
"""Its first frame names the connection."""

_Request = tuple[Envelope, bytes]


class Turns:
    """A queue for each connection that has something to wait for."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        """Of the bodies of all that wait."""
        self._queues: OrderedDict[bytes, deque[_Request]] = OrderedDict()  # next in turn first

    def waiting(self, connection: bytes) -> int:
        """How many requests of a connection wait."""
        return len(self._queues.get(connection, ()))

    def add(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Puts requests at the end of their connections' queues."""
        queues = self._queues
        for envelope, body in zip(envelopes, bodies, strict=True):
            queue = queues.get(envelope[0])
            if queue is None:
                queue = queues[envelope[0]] = deque()
            queue.append((envelope, body))
        self.requests += len(bodies)
        self.bytes += sum(map(len, bodies))

    def put_back(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Puts requests where they were taken from: they are next."""
        for envelope, body in zip(reversed(envelopes), reversed(bodies), strict=True):
            queue = self._queues.setdefault(envelope[0], deque())
            queue.appendleft((envelope, body))
            self._queues.move_to_end(envelope[0], last=False)
        self.requests += len(bodies)
        self.bytes += sum(map(len, bodies))

    def drop(self, connections: Iterable[bytes]) -> int:
        """Gives up all requests of these connections; returns how many."""
        before = self.requests
        for connection in connections:
            bodies = [body for _, body in self._queues.pop(connection, ())]
            self.requests -= len(bodies)
            self.bytes -= sum(map(len, bodies))
        return before - self.requests

    def take(
        self, requests_max: int, bytes_max: int, held: Container[bytes]
    ) -> tuple[list[Envelope], list[bytes]]:
        """Takes up to so many requests, the last of which brings their bodies over `bytes_max`
        at most. Those of a connection that is held go on waiting.
        """
        envelopes: list[Envelope] = []
        bodies: list[bytes] = []
        skipped = []
        queues, size = self._queues, 0
        while queues and len(bodies) < requests_max and size < bytes_max:
            connection, queue = queues.popitem(last=False)
            if connection in held:
                skipped.append((connection, queue))
                continue
            envelope, body = queue.popleft()
            envelopes.append(envelope)
            bodies.append(body)
            size += len(body)
            if queue:
                queues[connection] = queue
        for connection, queue in reversed(skipped):
            queues[connection] = queue
            queues.move_to_end(connection, last=False)
        self.requests -= len(bodies)
        self.bytes -= size
        return envelopes, bodies
