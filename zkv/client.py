"""A store behind a ZeroMQ endpoint, with methods that wait.

A call takes a connection out of a pool, uses it, and puts it back; a write takes a session too.
A connection that got no reply is of no more use, since the reply may yet come, so its socket is
closed, and the next call opens another. A session goes on: its next write has a higher number.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final

from zkv.block import Fields
from zkv.endpoint import find, unreachable
from zkv.errors import BadRequest, CannotConnect, Error, ProtocolError
from zkv.exchange import (
    CONNECT_AGAIN_S,
    GIVE_UP_S,
    MANY_FRAMES,
    Nothing,
    Session,
    Steps,
    ends_session,
    exchange,
    give_up_replies,
    not_zkv,
)
from zkv.store import Store
from zkv.zmtp import Link, NotZeroMQ

IDLE_MAX: Final = 32
"""Connections that are kept while no thread uses them."""

IDLE_S: Final = 10.0
"""What was not used for longer is closed at the next call on another one."""


class Client(Store):
    """A store served at an endpoint, `tcp://ADDRESS:PORT` or `ipc://PATH`, or at a URL,
    `zkv://HOST:PORT?timeout=SECONDS&resend_after=SECONDS`; without one at $ZKV_ENDPOINT, or
    else at tcp://127.0.0.1:5757.

    Any number of threads may share one client, and a fork may go on using it. Close it, or
    use it as a context manager.

    When no reply comes, a request is sent again after `resend_after_s` (1), then after twice
    as long, and so on, until `timeout_s` (5) have passed; then Timeout is raised, or
    CannotConnect if nothing could be sent at all. To look up the name of a host may take the
    system longer than that. A write is numbered, so that the server
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
        self._pid = os.getpid()
        # Taken from and added to in one step each, so there is no lock.
        self._idle: list[_Connection] = []
        self._sessions: list[Session] = []

    def close(self) -> None:
        """Closes the connections; a call that another thread has under way closes its own."""
        was_open, self._closed = not self._closed, True
        if was_open and self._pid == os.getpid():
            self._give_up_replies()
        self._close_idle()

    def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        if self._closed:
            raise BadRequest("the client is closed")
        if self._pid != os.getpid():  # forked: what is open here is the parent's
            self._close_idle()
            self._sessions.clear()
            self._pid = os.getpid()  # only now: another thread must not take one of them
        session = self._take_session() if writes and self.exactly_once else None
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _Connection(self.endpoint)
        spoiled = True
        try:
            steps = exchange(self, session, op, fields, writes=writes)
            reply = connection.carry(steps, self.timeout_s)
            spoiled = False
            return reply
        except CannotConnect:
            raise CannotConnect(unreachable(self.endpoint)) from None
        except Error as error:
            if ends_session(error):
                session = None
            spoiled = isinstance(error, ProtocolError)
            raise
        finally:
            if session is not None:
                self._sessions.append(session)
            if spoiled:  # a reply may yet come, to nobody
                connection.close()
            else:
                self._put_back(connection)
            if self._closed:
                self._close_idle()

    def _put_back(self, connection: _Connection) -> None:
        """Those that were not used for longest go, if there are many, or it was long ago."""
        idle, long_ago = self._idle, connection.used_at - IDLE_S
        idle.append(connection)
        try:
            while len(idle) > IDLE_MAX or idle[0].used_at < long_ago:
                idle.pop(0).close()
        except IndexError:
            return  # other threads have taken all

    def _give_up_replies(self) -> None:
        with suppress(Error, IndexError):
            connection = self._idle.pop()  # no other thread may ask on it meanwhile
            try:
                for steps in give_up_replies(self, self._sessions):
                    connection.carry(steps, GIVE_UP_S)
            finally:
                connection.close()

    def _take_session(self) -> Session:
        try:
            return self._sessions.pop()
        except IndexError:
            return Session()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


class _Connection:
    """One connection after another. (Lazy Pirate, zguide chapter 4.)"""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._link: Link | None = None
        self.used_at = 0.0

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def carry(self, steps: Steps, timeout_s: float) -> Fields:
        """Goes through the steps of a request; returns its reply or raises its error."""
        self.used_at = time.monotonic()
        deadline = self.used_at + timeout_s
        try:
            body, wait_s = next(steps)
            while True:
                body, wait_s = steps.send(self._attempt(body, wait_s, deadline))
        except StopIteration as end:
            reply: Fields = end.value
            return reply

    def _attempt(self, body: bytes, wait_s: float, deadline: float) -> bytes | memoryview | Nothing:
        link = self._link
        if link is None or link.has_ended():
            self.close()
            link = self._link = self._connect(deadline)
            if link is None:
                return Nothing.SENT
            wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0:
                return Nothing.SENT
        try:
            frames = link.ask(body, wait_s)
        except TimeoutError:
            self.close()
            return Nothing.CAME
        except NotZeroMQ as error:
            raise not_zkv(self._endpoint, error) from None
        except OSError:
            self.close()
            time.sleep(min(CONNECT_AGAIN_S, wait_s))
            return Nothing.LEFT
        if len(frames) != 1:
            raise not_zkv(self._endpoint, MANY_FRAMES)
        return frames[0]

    def _connect(self, until: float) -> Link | None:
        """Tries again and again until then."""
        while (left_s := until - time.monotonic()) > 0:
            try:
                return Link(self._endpoint, left_s)
            except OSError:
                time.sleep(min(CONNECT_AGAIN_S, left_s))
        return None
