"""A store behind a ZeroMQ endpoint.

A ZeroMQ socket must not be used by two threads at a time, and a REQ socket whose reply was
lost is stuck. So a client keeps a pool: a call takes a connection out, uses it, and puts it
back; after a timeout it is closed instead, and the next call opens another.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import threading
import time
from typing import Any, Final

import zmq

from zkv import protocol
from zkv.block import Fields
from zkv.errors import (
    BadRequest,
    CannotConnect,
    ClientError,
    DataLost,
    Error,
    ProtocolError,
    RequestError,
    ServerError,
    Timeout,
)
from zkv.requests import OPS
from zkv.store import Store

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5757"
DEFAULT_TIMEOUT_S: Final = 5.0


class Client(Store):
    """A store served at an endpoint: tcp://ADDRESS:PORT or ipc://PATH.

    Any number of threads may share one client, and a fork may go on using it. Close it, or
    use it as a context manager.

    When no reply comes, a request is sent again after `resend_after_s`, then after twice as
    long, and so on, until `timeout_s` have passed; then Timeout is raised, or CannotConnect
    if nothing could be sent at all. A write is numbered, so that the server does it once
    however often it arrives. With `exactly_once=False` it is neither numbered nor resent.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        resend_after_s: float = 1.0,
        exactly_once: bool = True,
    ) -> None:
        if not (0 < timeout_s < math.inf and resend_after_s > 0):
            raise BadRequest("timeout_s and resend_after_s must be finite and more than 0")
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.resend_after_s = resend_after_s
        self.exactly_once = exactly_once
        self._revision_seen = 0
        self._lock = threading.Lock()
        self._closed = False
        self._start_pool()
        try:
            self._idle.append(self._connect())  # ahead of the first call: a bad endpoint fails now
        except BadRequest:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connections; a call that another thread has under way closes its own."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            if self._taken == 0:
                self._context.term()

    def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        deadline = time.monotonic() + self.timeout_s
        seen = self._revision_seen
        connection = self._take()
        try:
            if not writes:
                reply = connection.exchange(op, fields, deadline, resend={})
            elif self.exactly_once:
                reply = connection.exchange_once(op, fields, deadline)
            else:
                reply = connection.exchange(op, fields, deadline, resend=None)
            self._see(reply["revision"], seen)
            return reply
        except RequestError as error:
            self._see(error.details.get("revision", seen), seen)
            raise
        except (ServerError, ClientError, KeyboardInterrupt):
            connection.spoiled = True  # a reply may yet come, to nobody
            raise
        finally:
            self._give(connection)

    def _see(self, revision: int, seen: int) -> None:
        """Raises DataLost for a reply that is older than what was seen before the request."""
        if revision < seen:
            raise DataLost(
                f"the server is at revision {revision}, but had acknowledged {seen}",
                revision=revision,
                seen=seen,
            )
        self._revision_seen = max(revision, self._revision_seen)

    def _start_pool(self) -> None:
        self._pid = os.getpid()
        self._context = zmq.Context()
        self._idle: list[_Connection] = []
        self._taken = 0

    def _take(self) -> _Connection:
        if self._pid != os.getpid():  # forked: sockets are the parent's, its threads are gone
            self._lock = threading.Lock()
            self._start_pool()
        with self._lock:
            if self._closed:
                raise BadRequest("the client is closed")
            connection = self._idle.pop() if self._idle else self._connect()
            self._taken += 1
            return connection

    def _connect(self) -> _Connection:
        return _Connection(self._context, self.endpoint, self.timeout_s, self.resend_after_s)

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
    """One REQ socket after another, and a session. (Lazy Pirate, zguide chapter 4.)

    Once an exchange has failed it is spoiled, and of no more use.
    """

    def __init__(
        self, context: zmq.Context[Any], endpoint: str, timeout_s: float, resend_after_s: float
    ) -> None:
        self.spoiled = False
        self._context = context
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._resend_after_s = min(resend_after_s, timeout_s)
        self._session: str | None = None
        self._seq = 0
        self._socket = self._open()

    def close(self) -> None:
        self._socket.close()

    def exchange_once(self, op: str, fields: Fields, deadline: float) -> Fields:
        """Like `exchange`, for a write, which takes effect once however often it is sent."""
        if self._session is None:
            # A resent first request of an unknown session is refused, as it may have run
            # before. A session that was opened by a request without effect is known.
            session = secrets.token_urlsafe(12)
            opening = {"then": [], "session": session, "seq": 1}
            self.exchange("txn", opening, deadline, resend={})
            self._session, self._seq = session, 1
        self._seq += 1
        numbered = {**fields, "session": self._session, "seq": self._seq}
        return self.exchange(op, numbered, deadline, resend={"retry": True})

    def exchange(self, op: str, fields: Fields, deadline: float, resend: Fields | None) -> Fields:
        """Sends a request and returns the reply, by the deadline on the monotonic clock.

        Raises the reply's error, Timeout, CannotConnect, or ProtocolError.

        `resend` is what a request has more when it is sent again; None: it must not be.
        """
        self._send(protocol.encode_request(op, fields), deadline, sent_before=False)
        wait_s = self._resend_after_s
        while True:
            try:
                return self._receive(op)
            except zmq.Again:
                left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._no_reply()
            wait_s = min(left_s, 2 * wait_s * random.uniform(0.75, 1.25))
            if resend is not None:
                self._socket.close()
                self._socket = self._open()
                body = protocol.encode_request(op, {**fields, **resend})
                self._send(body, deadline, sent_before=True)
            self._socket.rcvtimeo = math.ceil(wait_s * 1000)

    def _send(self, body: bytes, deadline: float, *, sent_before: bool) -> None:
        if sent_before:
            self._socket.sndtimeo = max(0, math.ceil((deadline - time.monotonic()) * 1000))
        try:
            self._socket.send(body)
        except zmq.Again:
            if sent_before:
                raise self._no_reply() from None
            raise CannotConnect(
                f"no ZeroMQ server answers at {self._endpoint}; nothing was sent"
            ) from None

    def _receive(self, op: str) -> Fields:
        body = self._socket.recv()
        try:
            reply = protocol.decode_reply(body)
        except Error:
            raise
        except ValueError as error:
            raise self._not_zkv(error) from None
        if self._socket.rcvmore:
            raise self._not_zkv("a reply of more than one frame")
        if missing := OPS[op].always.difference(reply):
            raise self._not_zkv(f"a reply to {op} lacks {', '.join(sorted(missing))}")
        return reply

    def _not_zkv(self, reason: object) -> ProtocolError:
        return ProtocolError(f"{self._endpoint} does not answer as zkv does: {reason}")

    def _no_reply(self) -> Timeout:
        return Timeout(
            f"no reply from {self._endpoint} within {self._timeout_s:g} s; outcome unknown"
        )

    def _open(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
        socket.linger = 0
        # Without this a request waits, unseen, for a server to come up, and may then run
        # long after its caller has given up.
        socket.immediate = True
        socket.sndtimeo = math.ceil(self._timeout_s * 1000)
        socket.rcvtimeo = math.ceil(self._resend_after_s * 1000)
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise BadRequest(
                f"cannot use the endpoint {self._endpoint!r}: {error.strerror}"
            ) from None
        return socket
