"""A DEALER of ZeroMQ on a plain socket: ZMTP 3.0 with the NULL mechanism (RFC 23).

    greeting  FF 00×8 7F  03 00  "NULL" 00×16  00×32
    READY     04 size  05 "READY"  0B "Socket-Type" 00000006 "DEALER"  08 "Identity" 00000000
    message   00 size body, or 02 size×8 body

libzmq gives each request to a thread of its own, which gives back the reply: so one socket
can wait for many. Whoever waits for one reply at a time pays two wake-ups for nothing. Eight
processes that get, side by side: 25,900 requests/s with this and 21,000 with libzmq, of
whose 42 µs of CPU a request this takes 22. A REQ would send a delimiter as well, a frame that
the server hands on four times: 8 processes then get 33,600/s instead of 37,700.
"""

from __future__ import annotations

import math
import os
import select
import socket
from threading import active_count
from time import perf_counter
from typing import Final

from zkv.endpoint import dial

LOOK_NEAR_S: Final = 200e-6
"""How long to look for a reply before sleeping, if the last one came sooner than that. To be
woken costs more: a lone client waits 61 µs for a reply instead of 113, and takes 64 µs of CPU
a request, redis-py 75. Where many clients are at work, or a network is in between, replies
take longer; and beside other threads, which need the GIL, it sleeps at once."""

LOOK_FAR_S: Final = 400e-6
"""How long to look if the last reply came sooner than this, but not within `LOOK_NEAR_S`; and
only while nobody else wants the CPU. 8 clients that put unsynced do 5 to 19 % more requests/s,
half of them in 290 µs instead of 320, but the slowest 1 % take up to half as long again; a lone
client waits 254 µs for a synced put instead of 306, and takes 177 µs of CPU instead of 49."""

_TURN_S: Final = 5e-6
"""A yield that takes longer let somebody else work, not only look, which takes 2 µs."""

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\3\0" + b"NULL".ljust(52, b"\0")
_READY: Final = b"\5READY\x0bSocket-Type\0\0\0\6DEALER\x08Identity\0\0\0\0"
_ROUTER: Final = b"Socket-Type\0\0\0\6ROUTER"
_SHORT_BYTES: Final = 16 * 1024
_KEPT_BYTES_MAX: Final = 4 * 2**20
_NO_SIGPIPE: Final = getattr(socket, "MSG_NOSIGNAL", 0)  # it would end a process with SIG_DFL


class NotZeroMQ(OSError):
    """What is at the other end is no ROUTER of ZeroMQ, or wants encryption."""


class Link:
    """A connection on which one request and one reply take turns.

    Seconds are what all of it may take, however slowly the other end speaks. Whatever fails
    raises OSError, TimeoutError or NotZeroMQ for instance, and then the connection is of no
    more use.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        self._until = perf_counter() + timeout_s
        self._ahead = b""  # received, and not yet looked at
        self._kept = bytearray()
        self._timeout_s = timeout_s
        self._waited_s = math.inf
        self._socket = dial(address, timeout_s)
        try:
            self._shake_hands()
        except BaseException:
            self.close()
            raise
        self._events = select.poll()
        self._events.register(self._socket, select.POLLIN)

    def close(self) -> None:
        self._socket.close()

    def has_ended(self) -> bool:
        """Whether the other end has closed it, or says what nobody has asked for."""
        return bool(self._ahead or self._events.poll(0))

    def ask(self, body: bytes, timeout_s: float) -> list[bytes | memoryview]:
        """Sends a request, and returns the frames of the reply; a reply of zkv is one.

        They must not be used any more when the next request is sent.
        """
        self._until = perf_counter() + timeout_s
        self._wait_at_most(timeout_s)
        head = _head(0, len(body))
        if len(body) <= _SHORT_BYTES:
            self._socket.sendall(head + body, _NO_SIGPIPE)
        else:  # to put them together would take longer than to send twice
            self._socket.sendall(head, _NO_SIGPIPE)
            self._socket.sendall(body, _NO_SIGPIPE)
            self._wait_for_the_rest()
        began = perf_counter()
        if self._waited_s < LOOK_FAR_S:
            self._look(began)
        data = self._socket.recv(_SHORT_BYTES)
        if not data:
            raise _ended()
        self._waited_s = perf_counter() - began if active_count() == 1 else math.inf
        # Most replies: short, and all of it has come.
        if not data[0] and len(data) > 1 and len(data) == 2 + data[1]:
            return [data[2:]]
        self._ahead = data
        return self._message()

    def _wait_at_most(self, timeout_s: float) -> None:
        """What the next step may take; to set it is a system call."""
        if timeout_s != self._timeout_s:
            self._socket.settimeout(timeout_s)
            self._timeout_s = timeout_s

    def _wait_for_the_rest(self) -> None:
        """The next step may take what the ones before it have left."""
        left_s = self._until - perf_counter()
        if left_s <= 0:
            raise TimeoutError("the other end takes too long")
        self._wait_at_most(left_s)

    def _look(self, began: float) -> None:
        """Waits a while for the reply, without sleeping; others go first."""
        near = self._waited_s < LOOK_NEAR_S
        now, until = began, began + (LOOK_NEAR_S if near else LOOK_FAR_S)
        while now < until and not self._events.poll(0):
            os.sched_yield()
            before, now = now, perf_counter()
            if not near and now - before > _TURN_S:
                return

    def _shake_hands(self) -> None:
        self._socket.sendall(_GREETING + _head(_COMMAND, len(_READY)) + _READY, _NO_SIGPIPE)
        greeting = bytes(self._take(len(_GREETING)))
        if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3:
            raise NotZeroMQ("it does not greet as ZMTP 3 does")
        if greeting[12:32].rstrip(b"\0") != b"NULL":
            raise NotZeroMQ("it wants encryption or a password")
        flags, ready = self._frame()
        if flags != _COMMAND or _ROUTER not in bytes(ready):
            raise NotZeroMQ("it is no socket that answers requests")

    def _message(self) -> list[bytes | memoryview]:
        frames: list[bytes | memoryview] = []
        more = _MORE
        while more:
            flags, frame = self._frame()
            if not flags & _COMMAND:
                more = flags & _MORE
                frames.append(bytes(frame) if more else frame)
        return frames

    def _frame(self) -> tuple[int, bytes | memoryview]:
        (flags,) = self._take(1)
        size = int.from_bytes(self._take(8 if flags & _LONG else 1), "big")
        return flags, self._take(size)

    def _take(self, size: int) -> bytes | memoryview:
        """The next bytes, so many; they are good until some more are taken."""
        ahead = self._ahead
        if len(ahead) >= size:
            self._ahead = ahead[size:]
            return ahead[:size]
        data = memoryview(self._room(size))[:size]
        data[: len(ahead)] = ahead
        self._ahead = b""
        missing = data[len(ahead) :]
        while missing:
            self._wait_for_the_rest()
            received = self._socket.recv_into(missing)
            if not received:
                raise _ended()
            missing = missing[received:]
        return data

    def _room(self, size: int) -> bytearray:
        """Memory for so many bytes. It is kept: where the system has to find memory anew for
        each reply, of 1 MiB for instance, a client gets 610 of them a second instead of 1,450.
        """
        if size <= len(self._kept):
            return self._kept
        try:
            room = bytearray(size)
        except (MemoryError, OverflowError):
            raise NotZeroMQ(f"a frame of {size} bytes") from None
        if size <= _KEPT_BYTES_MAX:
            self._kept = room
        return room


def _ended() -> ConnectionResetError:
    return ConnectionResetError("the other end has closed the connection")


def _head(flags: int, size: int) -> bytes:
    if size < 256:
        return bytes((flags, size))
    return bytes((flags | _LONG,)) + size.to_bytes(8, "big")
