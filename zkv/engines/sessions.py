"""The latest request of each session and its reply, so that a request sent again runs once.

(RIFL, SOSP'15; client sessions in the Raft thesis, 6.3.) A session has one request under
way at a time, so one reply is enough. No lock and no file may live here.

Sessions are known by a digest of their names: whoever reads the data files, or is handed a
backup, cannot use them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from zkv import values
from zkv.errors import SessionLost, Stale
from zkv.transaction import Completed
from zkv.values import Packed

SESSIONS_MAX: Final = 100_000

USED_SEQ: Final = 3
"""A session that has come to this number is in use: it leaves after those that have not."""

REPLIES_BYTES_MAX: Final = 64 * 2**20
"""Of all replies that are larger than `SMALL_BYTES`; beyond it the oldest of them go."""

SMALL_BYTES: Final = 512
"""Replies up to this are kept as long as their sessions: of 100,000 they have 50 MB."""

Result = Mapping[str, Any] | BaseException

_Known = OrderedDict[str, tuple[Completed, int]]


@lru_cache(maxsize=4096)
def digest(name: str | bytes) -> str:
    """What a session of this name is known by. It is longer than any name, so neither is taken
    for the other. A str and a bin are two names.
    """
    kind, data = (b"str", name.encode()) if isinstance(name, str) else (b"bin", name)
    return "#" + sha256(kind + data).hexdigest()


class Sessions:
    """Which request of each session was the latest, and what it came to."""

    def __init__(self) -> None:
        # Each with those unused for longest first. In a dict, to find its first item takes the
        # longer the more were removed before it.
        self._new = _Known()
        self._used = _Known()
        # Bytes of the replies that are large, and the generation of each, oldest first.
        self._large = OrderedDict[str, tuple[int, int]]()
        self.generation = 0
        """Of large replies: who goes on to the next one makes those before the last one old."""
        self.bytes = 0
        """Of large replies."""
        self.forgotten = self.given_up = 0
        """How many sessions had to leave, and replies, since the start."""

    def __len__(self) -> int:
        return len(self._new) + len(self._used)

    def recall(self, session: str, seq: int, retry: bool) -> tuple[Result, int, int] | None:
        """The result of this very request, its revision and bytes; None if it has to be run now.

        Raises Stale for one before the latest, and SessionLost for a resent request of a
        session that is not known: it may have run, so it must not run now.
        """
        found = self._used.get(session) or self._new.get(session)
        if found is None:
            if retry:
                raise SessionLost("the session is not known; whether the request ran is not known")
            return None
        completed, revision = found
        if seq < completed.seq:
            raise Stale(f"the session is past seq {seq}: its latest is {completed.seq}")
        if seq > completed.seq:
            return None
        if completed.result is None:
            raise SessionLost("the request was done, and its reply is not kept any more")
        return completed.result, revision, completed.bytes

    def remember(self, completed: Completed, revision: int) -> None:
        """Makes this request its session's latest. A failure changes nothing on disk."""
        session = completed.session
        self._new.pop(session, None)
        self._used.pop(session, None)
        if session in self._large:
            self._forget_large(session)
        known = self._used if completed.seq >= USED_SEQ else self._new
        known[session] = completed, revision
        if len(self) > SESSIONS_MAX:
            self._forget(self._new if len(self._new) > SESSIONS_MAX // 10 else self._used)
        if completed.bytes > SMALL_BYTES:
            self._large[session] = completed.bytes, self.generation
            self.bytes += completed.bytes
            while self.bytes > REPLIES_BYTES_MAX:
                self._give_up(next(iter(self._large)))

    def give_up_old(self, at_most: int) -> None:
        """Gives up so many of the large replies that are old."""
        for _ in range(at_most):
            session = next(iter(self._large), None)
            if session is None or self._large[session][1] >= self.generation - 1:
                return
            self._give_up(session)

    def completed(self) -> Iterator[tuple[Completed, int]]:
        """The latest request of each session, with its revision, unless it failed."""
        for known in (self._new, self._used):
            for completed, revision in known.values():
                if not isinstance(completed.result, BaseException):
                    yield completed, revision

    def _forget(self, known: _Known) -> None:
        session, _ = (known or self._new).popitem(last=False)
        self.forgotten += 1
        if session in self._large:
            self._forget_large(session)

    def _give_up(self, session: str) -> None:
        """A reply goes, its number stays."""
        known = self._used if session in self._used else self._new
        completed, revision = known[session]
        known[session] = Completed(session, completed.seq, None), revision
        self.given_up += 1
        self._forget_large(session)

    def _forget_large(self, session: str) -> None:
        self.bytes -= self._large.pop(session)[0]


def to_json(completed: Completed) -> list[Any]:
    """[digest, seq, fields of the reply], as the data files have it; null if they are given up."""
    assert not isinstance(completed.result, BaseException)
    if completed.result is None:
        return [completed.session, completed.seq, None]
    fields = values.packed_to_json(values.assemble(completed.result))
    return [completed.session, completed.seq, fields]


def from_json(plain: Any) -> Completed:
    """The request that `to_json` was given; raises ValueError for anything else.

    Older files have the names of sessions, as JSON with tags.
    """
    try:
        session, seq, fields = plain
        name = values.from_json(session)
        if not (isinstance(name, str) and len(name) == _DIGEST_CHARS):
            name = digest(name)
        if fields is None:
            return Completed(name, seq, None)
        named = {name: Packed(values.pack(values.from_json(it))) for name, it in fields.items()}
        return Completed(name, seq, named, sum(map(len, named.values())))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a session of zkv: {error}") from None


_DIGEST_CHARS: Final = len(digest(""))
