"""What keeps the data. Every engine keeps this contract, and one suite of tests proves it.

    call       one operation with its arguments
    outcome    what it came to, and the revision that this is true of

`local` is the engine: a lock, a table and a journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from zkv.operations import Arguments, Operation

TURN_S: Final = 0.005
TURN_BYTES: Final = 8 * 2**20
"""What one turn may take, in time and in bytes of values for the replies, before others want to
be heard."""


class Session(Protocol):
    """What makes a request happen once: whose it is, which one, and whether it is resent."""

    @property
    def id(self) -> str | bytes: ...
    @property
    def seq(self) -> int: ...
    @property
    def retry(self) -> bool: ...


class Call(Struct, frozen=True):
    """One request, as an engine sees it."""

    run: Operation
    args: Arguments
    session: Session | None = None


class Outcome(Struct, frozen=True):
    """The fields of a success or the exception of a failure, true of `revision`."""

    result: Mapping[str, Any] | BaseException
    revision: int
    bytes_read: int = 0
    """Of the values in a result, about."""


class Engine(Protocol):
    """A store of keys. Safe to use from many threads."""

    @property
    def revision(self) -> int:
        """The newest revision that is as durable as the engine was asked to make it."""

    def execute(self, calls: Sequence[Call], *, one_turn: bool = False) -> list[Outcome]:
        """Runs the calls in order, each all or nothing, and returns an outcome for each.

        With `one_turn` it stops after a call when they have taken `TURN_S`, or read
        `TURN_BYTES`: there are as many outcomes as calls were run.

        It returns when everything that the outcomes say is as durable as the engine was
        asked to make it. Raises Unavailable when it cannot say that of one of them now, and
        DiskFailed when it never will.
        """

    def info(self) -> dict[str, Any]:
        """What the engine is and holds: `store`, `revision`, `keys` … as the wire has it."""

    def compact(self) -> None:
        """Has the data brought into one snapshot of this moment; returns before that is done.

        `info` says when: `compacting`, `snapshot_revision`, `compaction_error`.
        """

    def read_snapshot(self, revision: int, offset: int, bytes_max: int) -> tuple[bytes, int]:
        """A part of the snapshot at this revision, and the size of all.

        Raises NotFound; and Unavailable when it cannot be read now.
        """

    def close(self) -> None:
        """Brings everything to disk and lets go of it; a second call does nothing."""
