"""A store behind a ZeroMQ endpoint.

A ZeroMQ socket must not be used by two threads at a time, and a REQ socket whose reply was
lost is stuck. So a client keeps a pool: a call takes a connection out, uses it, and puts it
back; after a timeout it is closed instead, and the next call opens another.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

import zmq

from zkv import protocol
from zkv.errors import BadRequest, CannotConnect, Timeout
from zkv.store import Store

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5757"
DEFAULT_TIMEOUT_S: Final = 5.0


class Client(Store):
    """A store served at an endpoint: tcp://ADDRESS:PORT or ipc://PATH.

    Any number of threads may share one client, and a fork may go on using it. No method
    takes longer than `timeout_s`: it raises CannotConnect when nothing could be sent, and
    Timeout when no reply came. Close it, or use it as a context manager.
    """

    def __init__(
        self, endpoint: str = DEFAULT_ENDPOINT, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._start_pool()
        self._give(self._take())  # connects ahead of the first call, and checks the endpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; a call that another thread has under way closes its own."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            if self._taken == 0:
                self._context.term()

    def _request(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        body = protocol.encode_request(op, fields)
        deadline = time.monotonic() + self.timeout_s
        connection = self._take()
        try:
            reply = connection.exchange(body, deadline)
        except BaseException:  # also Ctrl-C: the reply may still come, to nobody
            connection.spoiled = True
            raise
        finally:
            self._give(connection)
        return protocol.decode_reply(reply)

    def _start_pool(self) -> None:
        self._pid = os.getpid()
        self._context = zmq.Context()
        self._idle: list[_Connection] = []
        self._taken = 0

    def _take(self) -> _Connection:
        with self._lock:
            if self._closed:
                raise BadRequest("the client is closed")
            if self._pid != os.getpid():  # forked: the sockets are the parent's
                self._start_pool()
            connection = (
                self._idle.pop() if self._idle else _Connection(self._context, self.endpoint)
            )
            self._taken += 1
            return connection

    def _give(self, connection: _Connection) -> None:
        with self._lock:
            self._taken -= 1
            if self._closed or connection.spoiled:
                connection.close()
            else:
                self._idle.append(connection)
            if self._closed and self._taken == 0:
                self._context.term()


class _Connection:
    """One REQ socket. Once an exchange has failed it is spoiled, and of no more use."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.endpoint = endpoint
        self.spoiled = False
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REQ)
        self._socket.linger = 0
        # Without this a request waits, unseen, for a server to come up, and may then run
        # long after its caller has given up.
        self._socket.immediate = True
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise BadRequest(f"cannot use the endpoint {endpoint!r}: {error.strerror}") from None

    def close(self) -> None:
        self._socket.close()

    def exchange(self, body: bytes, deadline: float) -> bytes:
        """Sends a request and returns the reply, by the deadline on the monotonic clock."""
        try:
            self._socket.sndtimeo = _milliseconds_until(deadline)
            self._socket.send(body)
        except zmq.Again:
            raise CannotConnect(
                f"no ZeroMQ server answers at {self.endpoint}; nothing was sent"
            ) from None
        try:
            self._socket.rcvtimeo = _milliseconds_until(deadline)
            return self._socket.recv()
        except zmq.Again:
            raise Timeout(f"{self.endpoint} did not reply in time; outcome unknown") from None


def _milliseconds_until(deadline: float) -> int:
    return max(0, int((deadline - time.monotonic()) * 1000))
