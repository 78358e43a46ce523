"""Who is connected, as the monitor of libzmq tells: counted, bounded, and closed when a peer
takes no replies while they fill the server's memory.

A ROUTER cannot close a connection. Its file descriptor, which the monitor names, is this
process's own, so it can be shut down; libzmq then sees that the peer has gone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import zmq

from zkv.unread import Unread

log = logging.getLogger("zkv.server")

EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
GREETING_S: Final = 5
"""How long a peer may take for the handshake of ZeroMQ, see `server`."""
LOOK_S: Final = 1.0
STALLED_S: Final = 10.0
"""How long a peer may take nothing, while memory is short, before its connection is closed."""
LOG_AGAIN_S: Final = 60.0
_BYTES_ACKED: Final = 120  # where struct tcp_info of Linux has tcpi_bytes_acked


class _Connection(NamedTuple):
    inode: int  # tells whether the descriptor is still of the same socket
    accepted: float


class Connections:
    """Follows a socket's connections in a thread of its own, until the context ends.

    While much is `unread`, peers that take nothing have to go.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        sockets: zmq.Socket[bytes],
        *,
        open_max: int,
        unread: Unread,
    ) -> None:
        self.open_max = open_max
        self.accepted = self.greeted = self.refused = self.stalled = 0
        self._unread = unread
        self._open: dict[int, _Connection] = {}
        self._seen: dict[int, tuple[int, float]] = {}
        self._logged: dict[str, tuple[int, float]] = {}
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.rcvhwm = 0  # the thread that accepts must not wait for this one
        address = f"inproc://connections-{id(self)}"
        sockets.monitor(address, EVENTS)
        self._monitor.connect(address)

    def info(self) -> dict[str, int]:
        """Connections, and the bytes of unread replies; counts are since the start."""
        return {
            "open": len(self._open),
            "open_max": self.open_max,
            "accepted": self.accepted,
            "greeted": self.greeted,
            "refused": self.refused,
            "stalled": self.stalled,
            "unread_bytes": self._unread.bytes,
            "unread_bytes_max": self._unread.bytes_max,
            "dropped": self._unread.dropped,
        }

    def run(self) -> None:
        """The thread."""
        look_at = 0.0
        with self._monitor:
            while True:
                if self._monitor.poll(LOOK_S * 1000):
                    self._take(self._monitor.recv_multipart()[0])
                if time.monotonic() >= look_at:
                    self._look()
                    look_at = time.monotonic() + LOOK_S

    def close(self) -> None:
        """Of one that was never run."""
        self._monitor.close(linger=0)

    def _take(self, event: bytes) -> None:
        kind, value = struct.unpack("=HI", event)
        if kind == zmq.EVENT_ACCEPTED:
            self._accept(value)
        elif kind == zmq.EVENT_DISCONNECTED:
            self._open.pop(value, None)
        else:
            self.greeted += 1

    def _accept(self, handle: int) -> None:
        self.accepted += 1
        with suppress(OSError):  # it may have gone already
            self._open[handle] = _Connection(os.fstat(handle).st_ino, time.monotonic())
        if len(self._open) > self.open_max:
            self.refused += 1
            self._shut(handle)

    def _look(self) -> None:
        now = time.monotonic()
        if self._unread.is_much:
            self._close_stalled(now)
        else:
            self._seen.clear()
        young = sum(now - it.accepted < GREETING_S + 1 for it in list(self._open.values()))
        self._report("%d peers did not greet as ZMTP 3 does", self.accepted - self.greeted - young)
        self._report(f"%d connections were refused: {self.open_max} are open", self.refused)
        self._report("%d connections were closed: their peers took no replies", self.stalled)
        self._report("%d requests were dropped: their peers read no replies", self._unread.dropped)

    def _close_stalled(self, now: float) -> None:
        for handle in list(self._open):
            taken = _taken(handle)
            if taken is None:
                self._seen.pop(handle, None)
                continue
            before, since = self._seen.get(handle, (-1, now))
            if taken != before:
                self._seen[handle] = taken, now
            elif now - since > STALLED_S:
                self.stalled += 1
                self._shut(handle)

    def _shut(self, handle: int) -> None:
        connection = self._open.get(handle)
        with suppress(OSError):
            if connection is not None and os.fstat(handle).st_ino == connection.inode:
                with _socket_of(handle) as peer:
                    peer.shutdown(socket.SHUT_RDWR)

    def _report(self, words: str, count: int) -> None:
        """Warns of what has grown, once a minute at most."""
        told, when = self._logged.get(words, (0, -LOG_AGAIN_S))
        if count > told and time.monotonic() - when >= LOG_AGAIN_S:
            log.warning(words, count - told)
            self._logged[words] = count, time.monotonic()


@contextmanager
def _socket_of(handle: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that stays libzmq's; it takes no descriptor more."""
    borrowed = socket.socket(fileno=handle)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _taken(handle: int) -> int | None:
    """A number that changes when the peer takes bytes; None when none wait for it."""
    with suppress(OSError):
        (waiting,) = struct.unpack("i", fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))
        if waiting and sys.platform == "linux":
            with _socket_of(handle) as peer:
                if peer.family != socket.AF_UNIX:
                    info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
                    return int.from_bytes(info[_BYTES_ACKED:], sys.byteorder)
        return waiting or None
    return None
