"""A DEALER socket that many calls of one event loop share.

A request carries a number in its envelope, which comes back with the reply, so that a call
which is cancelled or given up leaves nothing behind: its reply finds nobody. The socket is
watched by the loop itself: at 50 calls at a time `zmq.asyncio` took 53 µs of CPU a request
for the same and 39 µs on a REQ socket for each call, this 13 µs (against an echo).
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from itertools import count
from typing import Final

import zmq

from zkv.errors import BadRequest
from zkv.exchange import MANY_FRAMES, Nothing, not_zkv
from zkv.places import Places

IN_FLIGHT_MAX: Final = 128
"""What PROTOCOL.md lets one connection have under way."""
SOCKETS_MAX: Final = 16_384
"""Of all clients of a process together."""

# As plain numbers: to combine zmq's enums costs 1 µs each time.
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)
_MORE: Final = int(zmq.SNDMORE)
_NOW: Final = int(zmq.NOBLOCK)


class Dealer:
    """Asks a server. Close it; it closes itself when it has fallen silent and nobody waits.

    `silent`: a request got no reply in its time, and nor did any other meanwhile. What the
    connection goes through may have gone without a sign, so it gets no more requests.

    Who asks has one of the places. A request whose caller has gone keeps one until its reply
    comes, or its time is over: the server has it, and the connection has no room for another.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        loop: asyncio.AbstractEventLoop,
        endpoint: str,
        places: Places,
    ) -> None:
        self.silent = False
        self._socket = socket
        self._loop = loop
        self._endpoint = endpoint
        self._places = places
        self._numbers = count()
        self._calls: dict[bytes, _Call] = {}
        self._unsent: deque[bytes] = deque()
        self._waiting = 0
        self._heard = 0
        self._looks_soon = False
        loop.add_reader(socket.fileno(), self._look)  # so the loop holds this, but no client

    @property
    def has_room(self) -> bool:
        return len(self._calls) < IN_FLIGHT_MAX and not self.silent

    def close(self) -> None:
        """A second call does nothing."""
        if self._socket.closed:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for number in list(self._calls):
            self._take(number)

    async def ask(self, body: bytes, wait_s: float) -> bytes | Nothing:
        """Sends a request; returns its reply, or after so many seconds why there is none."""
        number = next(self._numbers).to_bytes(8, "big")
        timer = self._loop.call_later(wait_s, self._give_up, number, wait_s)
        call = self._calls[number] = _Call(body, self._loop.create_future(), timer)
        self._unsent.append(number)
        self._waiting += 1
        try:
            self._send()
            return await call.reply
        except asyncio.CancelledError:
            if call.heard_before is None:
                self._take(number)
            elif number in self._calls:
                call.caller_has_gone = True
                self._places.take_in_advance()
            raise
        finally:
            self._waiting -= 1
            self._close_if_done()

    def _send(self, late_at: float = 0) -> None:
        """Sends what waits for it, as far as the socket takes it."""
        send, unsent = self._socket.send, self._unsent
        while unsent:
            call = self._calls.get(unsent[0])
            if call is None:
                pass  # given up, or cancelled
            else:
                try:
                    send(unsent[0], _MORE | _NOW)
                except zmq.Again:
                    if self._can(_WRITABLE):
                        continue  # libzmq looks up what it can do only when it is asked
                    return  # `_look` goes on when it can
                send(call.body)
                call.heard_before, call.sent_late_at = self._heard, late_at
            unsent.popleft()
        if not self._looks_soon:  # to send may swallow the sign that there is a reply
            self._looks_soon = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Gives the replies that are there to those who wait for them."""
        self._looks_soon = False
        socket = self._socket
        while not socket.closed and self._can(_READABLE):
            frames = [socket.recv(copy=False)]
            while frames[-1].more:
                frames.append(socket.recv(copy=False))
            self._heard += 1
            call = self._take(frames[0].bytes)
            if call is None or call.reply.done():
                continue
            if len(frames) == 2:
                call.reply.set_result(frames[1].bytes)
            else:
                call.reply.set_exception(not_zkv(self._endpoint, MANY_FRAMES))
        if self._unsent and not socket.closed:
            self._send(self._loop.time())

    def _can(self, event: int) -> bool:
        return bool(int(self._socket.get(_EVENTS)) & event)

    def _take(self, number: bytes) -> _Call | None:
        call = self._calls.pop(number, None)
        if call is not None:
            call.timer.cancel()
            if call.caller_has_gone:
                self._places.give_back()
        return call

    def _give_up(self, number: bytes, wait_s: float) -> None:
        self._look()  # a loop that was busy may run its timers first, as uvloop does
        call = self._calls.get(number)
        if call is None:
            return
        if call.sent_late_at > call.timer.when():  # so busy that the wait begins only now
            call.timer = self._loop.call_later(wait_s, self._give_up, number, wait_s)
            return
        self._take(number)
        sent = call.heard_before is not None
        if sent and call.heard_before == self._heard:
            self.silent = True
        if not call.reply.done():
            call.reply.set_result(Nothing.CAME if sent else Nothing.SENT)
        self._close_if_done()  # a call that was cancelled does not wait for it

    def _close_if_done(self) -> None:
        if self.silent and not self._waiting:
            self.close()


class _Call:
    """A request, where its reply is awaited, and what ends the wait."""

    __slots__ = ("body", "caller_has_gone", "heard_before", "reply", "sent_late_at", "timer")

    def __init__(
        self, body: bytes, reply: asyncio.Future[bytes | Nothing], timer: asyncio.TimerHandle
    ) -> None:
        self.body = body
        self.reply = reply
        self.timer = timer
        self.heard_before: int | None = None
        """How many replies had come when it was sent; None: it is not sent yet."""
        self.sent_late_at = 0.0
        """When it was sent, if it could not be at once."""
        self.caller_has_gone = False


_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}
FILES: Final = 16
"""What libzmq may take for a socket, or a context; where it finds less, it ends the process."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """The one of this process: each has threads and files of its own."""
    pid = os.getpid()
    if pid not in _contexts:
        made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        made.max_sockets = SOCKETS_MAX
        _contexts.setdefault(pid, made)  # two threads may be the first
    return _contexts[pid]


def connect(endpoint: str) -> zmq.Socket[bytes]:
    """A socket on its way to an endpoint.

    Raises BadRequest for one that cannot be used, and OSError where no files are left.
    """
    expect_files()
    try:
        socket: zmq.Socket[bytes] = context().socket(zmq.DEALER)
    except zmq.ZMQError as error:
        raise OSError(error.errno, error.strerror) from None
    socket.linger = 0
    # Without this a request waits, unseen, for a server to come up, and may then run long
    # after its caller has given up.
    socket.immediate = True
    socket.ipv6 = "[" in endpoint
    try:
        # A path need not be UTF-8, and pyzmq takes bytes, though its types do not say so.
        socket.connect(os.fsencode(endpoint))  # type: ignore[arg-type]
    except zmq.ZMQError as error:
        socket.close()
        raise BadRequest(
            f"cannot use the endpoint {endpoint!r}: {error.strerror}", field="endpoint"
        ) from None
    return socket


def expect_files() -> None:
    """Raises OSError unless there are as many as libzmq may want."""
    opened: list[int] = []
    try:
        while len(opened) < FILES:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for handle in opened:
            os.close(handle)
