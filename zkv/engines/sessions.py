"""The latest request of each session and its reply, so that a request sent again runs once.

(RIFL, SOSP'15; client sessions in the Raft thesis, 6.3.) A session has one request under
way at a time, so one reply is enough. When there are too many, the one unused for longest
leaves. No lock and no file may live here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from zkv import values
from zkv.errors import SessionLost, Stale
from zkv.transaction import Completed
from zkv.values import Packed

SESSIONS_MAX: Final = 100_000

Result = Mapping[str, Any] | BaseException


class Sessions:
    """Which request of each session was the latest, and what it came to."""

    def __init__(self) -> None:
        self._latest: dict[str | bytes, tuple[Completed, int]] = {}  # unused for longest first

    def __len__(self) -> int:
        return len(self._latest)

    def recall(self, session: str | bytes, seq: int, retry: bool) -> tuple[Result, int] | None:
        """The result and revision of this very request, or None if it has to be run now.

        Raises Stale for one before the latest, and SessionLost for a resent request of a
        session that is not known: it may have run, so it must not run now.
        """
        found = self._latest.get(session)
        if found is None:
            if retry:
                raise SessionLost("the session is not known; whether the request ran is not known")
            return None
        completed, revision = found
        if seq < completed.seq:
            raise Stale(f"the session is past seq {seq}: its latest is {completed.seq}")
        return (completed.result, revision) if seq == completed.seq else None

    def remember(self, completed: Completed, revision: int) -> None:
        """Makes this request its session's latest. A failure changes nothing on disk."""
        self._latest.pop(completed.session, None)
        self._latest[completed.session] = completed, revision
        if len(self._latest) > SESSIONS_MAX:
            del self._latest[next(iter(self._latest))]

    def completed(self) -> Iterator[tuple[Completed, int]]:
        """The latest request of each session, with its revision, unless it failed."""
        for completed, revision in self._latest.values():
            if not isinstance(completed.result, BaseException):
                yield completed, revision


def to_json(completed: Completed) -> list[Any]:
    """[session, seq, fields of the reply], as the data files have it."""
    assert not isinstance(completed.result, BaseException)
    fields = values.packed_to_json(values.assemble(completed.result))
    return [values.to_json(completed.session), completed.seq, fields]


def from_json(plain: Any) -> Completed:
    """The request that `to_json` was given; raises ValueError for anything else."""
    try:
        session, seq, fields = plain
        named = {name: Packed(values.pack(values.from_json(it))) for name, it in fields.items()}
        return Completed(values.from_json(session), seq, named)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a session of zkv: {error}") from None
