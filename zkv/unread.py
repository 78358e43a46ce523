"""Replies that a server has handed to libzmq and that their clients have not taken yet, in bytes.

libzmq bounds them by number only, and does not tell how many there are. But it tells when it
lets go of the memory of a message that it was lent. So each so many bytes of a connection's
replies one is lent, a mark: when libzmq has let go of that, all before it have left as well.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

import zmq

MARK_BYTES_MAX: Final = 2**20
UNMARKED_BYTES_MAX: Final = 64 * 2**20
"""A mark costs as much as a small reply, so there are few while there are few connections: what
all of them together may have sent since their last marks is what is not counted."""
LOOK_S: Final = 0.01
"""How often marks are looked at."""
CONNECTIONS_MAX: Final = 10_000
"""Of how many connections the bytes since their last mark are remembered."""


class Unread:
    """Counts the replies of each connection. Safe to use from several workers, which may then
    miss some bytes of each other.
    """

    def __init__(self, bytes_max: int, connection_bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        """Of all replies up to a mark that is not taken yet."""
        self.held: set[bytes] = set()
        """Connections with more than `connection_bytes_max` of them, or with any while all have
        more than `bytes_max`: they get no more replies."""
        self.since_mark: dict[bytes, int] = {}
        """Bytes of a connection's replies since its last mark: whoever sends them counts."""
        self.mark_bytes = MARK_BYTES_MAX
        """After so many bytes it is time for one."""
        self.dropped = 0
        """Requests of such connections that were given up."""
        self._connection_bytes_max = connection_bytes_max
        self._marks: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}
        self._bytes: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._looked = 0.0

    @property
    def is_much(self) -> bool:
        """Whether somebody has to be told to read, or to go."""
        return bool(self.held) or self.bytes > self.bytes_max // 2

    def mark(self, connection: bytes, reply: bytes) -> zmq.Frame:
        """What is to be sent to hand on this reply as a mark."""
        frame = zmq.Frame(reply, track=True, copy=False, copy_threshold=0)
        assert isinstance(frame.tracker, zmq.MessageTracker)
        with self._lock:
            size = self.since_mark.pop(connection, 0)  # 0 where another worker was faster
            self._marks.setdefault(connection, deque()).append((frame.tracker, size))
            self._owe(connection, size)
        return frame

    def look(self) -> None:
        """Takes note of what has left, and of how many there are."""
        if len(self.since_mark) > CONNECTIONS_MAX:
            self.since_mark.clear()  # most of them have gone, or have read all for long
        share = UNMARKED_BYTES_MAX // (len(self.since_mark) or 1)
        self.mark_bytes = min(share, MARK_BYTES_MAX)
        now = time.monotonic()
        if self._marks and now - self._looked > LOOK_S:
            self._looked = now
            with self._lock:
                for connection in list(self._marks):
                    self._look_at(connection)

    def _look_at(self, connection: bytes) -> None:
        marks = self._marks[connection]
        while marks and marks[0][0].done:
            self._owe(connection, -marks.popleft()[1])
        if not marks:
            del self._marks[connection]

    def _owe(self, connection: bytes, size: int) -> None:
        owed = self._bytes.get(connection, 0) + size
        self.bytes += size
        if owed:
            self._bytes[connection] = owed
        else:
            self._bytes.pop(connection, None)  # none of a mark that has nothing
        if owed <= (self._connection_bytes_max if self.bytes <= self.bytes_max else 0):
            self.held.discard(connection)
        elif connection not in self.held:
            self.held.add(connection)
            self._look_at(connection)  # most of it may have left since the last look
