"""A store behind a ZeroMQ endpoint, with methods that wait.

A ZeroMQ socket must not be used by two threads at a time, and a REQ socket whose reply was
lost is stuck. So a client keeps a pool: a call takes a connection out, uses it, and puts it
back; after a failure it is closed instead, and the next call opens another.
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from typing import Any

import zmq

from zkv.block import Fields
from zkv.endpoint import find, unreachable
from zkv.errors import BadRequest, CannotConnect, RequestError
from zkv.exchange import MANY_FRAMES, Nothing, Peer, Session, Steps, exchange, not_zkv
from zkv.store import Store


class Client(Store):
    """A store served at an endpoint, `tcp://ADDRESS:PORT` or `ipc://PATH`, or at a URL,
    `zkv://HOST:PORT?timeout=SECONDS&resend_after=SECONDS`; without one at $ZKV_ENDPOINT, or
    else at tcp://127.0.0.1:5757.

    Any number of threads may share one client, and a fork may go on using it. Close it, or
    use it as a context manager.

    When no reply comes, a request is sent again after `resend_after_s` (1), then after twice
    as long, and so on, until `timeout_s` (5) have passed; then Timeout is raised, or
    CannotConnect if nothing could be sent at all. A write is numbered, so that the server
    does it once however often it arrives. With `exactly_once=False` it is neither numbered
    nor resent.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout_s: float | None = None,
        resend_after_s: float | None = None,
        exactly_once: bool = True,
    ) -> None:
        found = find(endpoint, timeout_s, resend_after_s)
        self.endpoint, self.timeout_s, self.resend_after_s = found
        self.exactly_once = exactly_once
        self.revision_seen = 0
        self._closed = False
        self._start_pool()
        try:
            self._idle.append(self._open())  # a bad endpoint fails now
        except BadRequest:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connections; a call that another thread has under way closes its own."""
        self._closed = True
        if self._pid == os.getpid():
            self._close_idle()

    def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        if self._pid != os.getpid():  # forked: sockets are the parent's, its threads are gone
            self._start_pool()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        spoiled = True
        try:
            reply = connection.carry(exchange(self, connection.session, op, fields, writes=writes))
            spoiled = False
            return reply
        except RequestError:
            spoiled = False
            raise
        except CannotConnect:
            raise CannotConnect(unreachable(self.endpoint)) from None
        finally:
            if spoiled:  # a reply may yet come, to nobody
                self._close(connection)
            else:
                self._idle.append(connection)
            if self._closed:
                self._close_idle()

    def _start_pool(self) -> None:
        self._pid = os.getpid()
        self._context = zmq.Context()
        self._idle: list[_Connection] = []  # taken from and added to in one step, so no lock
        self._connections = 0
        self._lock = threading.Lock()
        """Held while a connection is opened or closed, and not while it is used."""

    def _open(self) -> _Connection:
        with self._lock:
            if self._closed:
                raise BadRequest("the client is closed")
            connection = _Connection(self._context, self)
            self._connections += 1
            return connection

    def _close(self, connection: _Connection) -> None:
        with self._lock:
            connection.close()
            self._connections -= 1

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._close(self._idle.pop())
        with self._lock:
            if self._connections == 0:
                self._context.term()


class _Connection:
    """One REQ socket after another, and a session. (Lazy Pirate, zguide chapter 4.)"""

    def __init__(self, context: zmq.Context[Any], peer: Peer) -> None:
        self.session = Session()
        self._context = context
        self._peer = peer
        self._wait_ms = -1
        self._socket = self._open()

    def close(self) -> None:
        self._socket.close()

    def carry(self, steps: Steps) -> Fields:
        """Goes through the steps of a request; returns its reply or raises its error."""
        try:
            body, wait_s = next(steps)
            while True:
                answer = self._attempt(body, wait_s)
                body, wait_s = steps.send(answer)
                if answer is Nothing.CAME:
                    self.close()
                    self._socket = self._open()
        except StopIteration as end:
            reply: Fields = end.value
            return reply

    def _attempt(self, body: bytes, wait_s: float) -> bytes | Nothing:
        socket = self._socket
        try:
            socket.send(body, zmq.NOBLOCK)
        except zmq.Again:  # not connected
            until = time.monotonic() + wait_s
            if not socket.poll(math.ceil(wait_s * 1000), zmq.POLLOUT):
                return Nothing.SENT
            try:
                socket.send(body, zmq.NOBLOCK)
            except zmq.Again:  # connected, and lost again
                return Nothing.SENT
            wait_s = max(0.0, until - time.monotonic())
        wait_ms = math.ceil(wait_s * 1000)
        if wait_ms != self._wait_ms:
            socket.rcvtimeo = self._wait_ms = wait_ms
        try:
            frame = socket.recv(copy=False)  # to ask a frame for `more` is cheaper than a socket
        except zmq.Again:
            return Nothing.CAME
        if frame.more:
            raise not_zkv(self._peer, MANY_FRAMES)
        return frame.bytes

    def _open(self) -> zmq.Socket[bytes]:
        self._wait_ms = -1  # as a socket begins
        return connect(self._context, zmq.REQ, self._peer.endpoint)


def connect(context: zmq.Context[Any], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    """A socket on its way to an endpoint; raises BadRequest for one that cannot be used."""
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.linger = 0
    # Without this a request waits, unseen, for a server to come up, and may then run long
    # after its caller has given up.
    socket.immediate = True
    socket.ipv6 = "[" in endpoint
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise BadRequest(
            f"cannot use the endpoint {endpoint!r}: {error.strerror}", field="endpoint"
        ) from None
    return socket
