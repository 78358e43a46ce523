"""The engine: a lock, a table and a journal.

The lock is this module's and nobody else's. Under it a request reads, changes the table
and joins the journal's queue, all in memory; it is never held over a disk write, a socket
call, or the msgpack of a request or reply.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, get_args

from zkv.engines import TURN_BYTES, TURN_S, Call, Outcome, compaction, snapshot, watermark
from zkv.engines.clock import Clock
from zkv.engines.disk import SHORTAGES, Disk
from zkv.engines.journal import Fsync, Journal, record_line
from zkv.engines.recovery import OnProgress, recover, settle
from zkv.engines.sessions import REPLIES_BYTES_MAX, SESSIONS_MAX, digest
from zkv.engines.space import Space
from zkv.errors import (
    BadRequest,
    Damaged,
    DiskFailed,
    Error,
    NotFound,
    RequestError,
    Shortage,
    Unavailable,
)
from zkv.transaction import Commit, Completed, Entry, Transaction
from zkv.values import Packed

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
"""How often the keeper looks; `fsync="interval"` syncs as often: what a power failure can take."""

SWEEP_KEYS_MAX: Final = 1000
"""Expired keys that are removed by one revision."""

JOURNAL_BYTES_MIN: Final = 64 * 2**20
"""A running store is compacted when its journal is larger than its snapshot and than this."""

SEGMENTS_MAX: Final = 16
"""A store that finds more segments than this is compacted: it was killed again and again."""

LINE_BYTES: Final = 1024
"""What a change may take on disk beside its value: about so much."""

JSON_TIMES_MAX: Final = 9
"""How much larger JSON is than msgpack at most: a map round a value, {false: …}, has 2 bytes, and
then 17."""

REPLY_BYTES_FREE: Final = 64 * 2**10
"""A reply up to this finds space as deletions do, though its session keeps it: that of 1,024 of
them has a sixth."""

STOP_BYTES_MAX: Final = 64 * 2**20
"""A store no larger than this is compacted at each clean stop, so that stopping is quick."""

COMPACT_AGAIN_S: Final = 60.0
"""How long to wait after a compaction that failed."""

REPLIES_AGE_S: Final = 150.0
"""Large replies that sessions keep are given up when they are older than this, or than twice."""

GIVE_UP_MAX: Final = 5000
"""How many are given up at a time: others wait for so long."""

CLOCK_SET_S: Final = 1.0
"""A wall clock that differs by more than before was set."""

WARN_AGAIN_S: Final = 60.0
"""After how long the log tells again of what goes on going wrong."""

_COMPACTION_ERRORS: Final = (OSError, ValueError, Damaged, MemoryError)


class LocalEngine:
    """An `Engine` on one data folder.

    Opening it takes the folder's lock, recovers, and starts a segment; it raises a
    StartError. `clock` gives the seconds since 1970; without one, it is a `Clock`.
    `on_failure` is called, from any thread, when the disk has failed: from then on `execute`
    raises DiskFailed. A shortage of files, memory or processes is no such failure: whoever
    needed them gets Unavailable, or a compaction fails, and all goes on. `on_progress` is told
    how far the recovery has come.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        fsync: Fsync = "always",
        clock: Callable[[], float] | None = None,
        on_failure: Callable[[Exception], None] = lambda error: None,
        on_progress: OnProgress = lambda *_: None,
        compactor: type[compaction.Process | compaction.Inline] = compaction.Process,
    ) -> None:
        self._disk = disk
        self._fsync = fsync
        self._given_clock = clock
        self._on_failure = on_failure
        self._compactor = compactor
        self._lock = threading.Lock()
        self._closed = False
        self._wake = threading.Event()
        if fsync not in get_args(Fsync):
            known = ", ".join(get_args(Fsync))
            raise BadRequest(f"fsync must be one of {known}, not {fsync!r}", field="fsync")
        disk.make()
        self._folder_lock = disk.lock()
        try:
            self._open(on_progress)
            self._keeper = threading.Thread(target=self._keep, name="zkv-keeper", daemon=True)
            self._start_keeper()
        except OSError as error:
            self._folder_lock.close()
            kind = Shortage if error.errno in SHORTAGES else DiskFailed
            raise kind(f"the data folder {disk.folder}: {error}") from error
        except BaseException:
            self._folder_lock.close()
            raise

    def execute(self, calls: Sequence[Call], *, one_turn: bool = False) -> list[Outcome]:
        if not calls:
            return []
        with self._lock:
            if self._closed:
                raise Unavailable("the store is closed")
            now = self._clock()
            self._sweep(now)
            if one_turn and len(calls) > 1:
                outcomes = self._run_one_turn(calls, now)
            else:
                outcomes = [self._run(call, now) for call in calls]
        try:
            self._journal.confirm(max([outcome.revision for outcome in outcomes]))
        except DiskFailed as error:
            self._on_failure(error)
            raise
        return outcomes

    def info(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "keys": len(self._table),
            "fsync": self._fsync,
            "sessions": len(self._table.sessions),
            "sessions_max": SESSIONS_MAX,
            "sessions_forgotten": self._table.sessions.forgotten,
            "replies_bytes": self._table.sessions.bytes,
            "replies_bytes_max": REPLIES_BYTES_MAX,
            "replies_given_up": self._table.sessions.given_up,
            "journal_bytes": self._journal.bytes,
            "snapshot_bytes": self._snapshot.bytes,
            "snapshot_revision": self._snapshot.revision,
            # Read in this order: of the two, `_compacting` is set before the other is cleared.
            "compacting": self._compaction_wanted or self._compacting,
            "compaction_error": self._compaction_error,
        }

    @property
    def revision(self) -> int:
        """The newest revision that is as durable as asked."""
        return self._journal.confirmed

    def compact(self) -> None:
        """Has everything up to now brought into a snapshot; returns before that is done."""
        self._compaction_wanted = True
        self._wake.set()

    def read_snapshot(self, revision: int, offset: int, bytes_max: int) -> tuple[bytes, int]:
        """A part of the snapshot at this revision, and the size of all.

        Raises NotFound; and Unavailable where the system cannot open or read it.
        """
        name = snapshot.name_of(revision)
        try:
            size = self._disk.size(name)
            return self._disk.read(name, min(offset, size), bytes_max), size
        except FileNotFoundError:
            raise NotFound(f"there is no snapshot of revision {revision}") from None
        except OSError as error:
            raise Unavailable(f"{name} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        self._keeper.join()
        try:
            if self._compaction is not None:
                self._compaction.kill()
            self._journal.close()
            compaction.clean(self._disk)  # of the one that was killed
            if 0 < self._journal.bytes <= STOP_BYTES_MAX - self._snapshot.bytes:
                compaction.compact(self._disk, self.store, self._table.next_revision - 1)
        except _COMPACTION_ERRORS as error:
            self._note_failed_compaction(error)
        finally:
            self._folder_lock.close()

    def _open(self, on_progress: OnProgress) -> None:
        found = recover(self._disk, on_progress)
        set_aside = settle(self._disk, found)
        if set_aside is not None:
            log.warning("the last batch was torn by a crash; its bytes are kept in %s", set_aside)
        self._table = found.table
        self.store = found.store or uuid.uuid4().hex
        self._snapshot = found.snapshot
        mark = watermark.read(self._disk)
        ahead = 0.0 if mark is None else mark.ahead
        self._steady = Clock(ahead)
        self._clock = self._given_clock or self._steady
        self._ahead = ahead
        self._journal = Journal(
            self._disk,
            self.store,
            self._table.revision,
            self._table.next_revision,
            self._fsync,
            found.journal_bytes,
            ahead,
        )
        self._space = Space(self._disk, lambda: self._journal.bytes)
        self._compaction: compaction.Process | compaction.Inline | None = None
        self._compaction_wanted = found.segments > SEGMENTS_MAX
        self._compacting = False
        self._compaction_error: str | None = None
        self._compact_not_before = 0.0
        self._age_at = time.monotonic() + REPLIES_AGE_S
        self._warn_at, self._forgotten = 0.0, self._table.sessions.forgotten

    def _run_one_turn(self, calls: Sequence[Call], now: float) -> list[Outcome]:
        """Calls, until the turn is over, under the lock."""
        clock, size, outcomes = time.perf_counter, 0, []
        until = clock() + TURN_S
        for call in calls:
            outcome = self._run(call, now)
            outcomes.append(outcome)
            size += outcome.bytes_read
            if size > TURN_BYTES or clock() > until:
                break
        return outcomes

    def _run(self, call: Call, now: float) -> Outcome:
        """One call, under the lock."""
        t = Transaction(self._table, now, self._table.next_revision)
        session, sessions = call.session, self._table.sessions
        if session is not None:
            name = digest(session.id)
            try:
                known = sessions.recall(name, session.seq, session.retry)
            except Error as error:
                return Outcome(error, self._table.revision)  # a Stale tells of a later request
            if known is not None:
                return Outcome(*known)
        try:
            result = call.run(t, call.args)
            completed = None
            if session is not None:
                completed = Completed(name, session.seq, result, _packed_bytes(result))
            if completed is None and not t.changes:
                return Outcome(result, self._true_of(t), t.bytes_read)
            if t.revision > self._journal.reserved:
                self._expect_revision()
            commit = Commit(t.revision, now, t.changes, completed)
            self._take_space(commit, t.size)
        except BaseException as error:  # even SystemExit: the client waits for an answer
            revision = self._true_of(t)
            if session is not None and isinstance(error, RequestError):
                # Not the exception itself: its traceback holds on to the request.
                failure = type(error)(error.message, **error.details)
                sessions.remember(Completed(name, session.seq, failure), revision)
            return Outcome(error, revision)
        self._commit(commit)
        return Outcome(result, t.revision, t.bytes_read)

    def _take_space(self, commit: Commit, put_bytes: int) -> None:
        """Raises NoSpace; deletions find space by themselves, also when their reply is kept."""
        reply_bytes = 0 if commit.completed is None else commit.completed.bytes
        size = put_bytes + (reply_bytes if reply_bytes > REPLY_BYTES_FREE else 0)
        if size:
            at_most = JSON_TIMES_MAX * size + LINE_BYTES * len(commit.changes)
            self._space.take(at_most, lambda: len(record_line(commit, 0, 0)))

    def _commit(self, commit: Commit) -> None:
        self._table.apply(commit)
        self._journal.append(commit)

    def _sweep(self, now: float) -> None:
        """Removes what has expired, before anything can see it."""
        while self._table.is_due(now):
            self._expect_revision()
            changes: dict[str, Entry | None] = dict.fromkeys(self._table.due(now, SWEEP_KEYS_MAX))
            if changes:
                self._commit(Commit(self._table.next_revision, now, changes))

    def _expect_revision(self) -> None:
        """Raises Unavailable when the journal has none left, having had no new file for long."""
        if self._table.next_revision > self._journal.reserved:
            raise Unavailable(
                "the journal needs another file, and there was none; nothing was done"
            )

    def _true_of(self, t: Transaction) -> int:
        return max(t.seen, self._journal.confirmed)

    def _start_keeper(self) -> None:
        try:
            self._keeper.start()
        except BaseException as error:
            self._journal.close()
            if isinstance(error, RuntimeError):
                raise Shortage(f"the data folder {self._disk.folder}: {error}") from None
            raise

    def _keep(self) -> None:
        """The keeper's thread: what has to be done by the clock, until the store is closed.

        It ends for nothing but a failed disk: else nothing would be synced or expire any more,
        and nobody would know.
        """
        said: dict[str, float] = {}
        while not self._closed:
            for step in (
                self._rest,
                self._expect_folder,
                self._expire,
                self._note_clock,
                self._age_replies,
                self._measure,
                self._journal.tick,
                self._tend_compaction,
            ):
                try:
                    step()
                except DiskFailed as error:
                    self._on_failure(error)
                    return
                except BaseException as error:  # the other steps do not depend on it
                    with suppress(BaseException):
                        now, name = time.monotonic(), step.__name__
                        if now > said.get(name, 0.0):
                            said[name] = now + WARN_AGAIN_S
                            log.error("to be tried again in a moment: %r", error, exc_info=error)

    def _rest(self) -> None:
        self._wake.wait(TICK_S)
        self._wake.clear()

    def _expire(self) -> None:
        with self._lock:
            self._sweep(self._clock())
            revision = self._table.revision
        self._journal.confirm(revision)

    def _expect_folder(self) -> None:
        if self._folder_lock.is_lost():
            raise DiskFailed(
                f"the data folder {self._disk.folder} was removed or replaced, or another process "
                "has taken it"
            ) from FileNotFoundError()

    def _note_clock(self) -> None:
        ahead = round(self._steady.ahead(), 3)
        if abs(ahead - self._ahead) > CLOCK_SET_S:
            log.warning(
                "the clock of this machine was set by %+.1f s; times to live go on as they were",
                self._ahead - ahead,
            )
            self._journal.note_clock(ahead)
            self._ahead = ahead

    def _age_replies(self) -> None:
        now, sessions = time.monotonic(), self._table.sessions
        if now > self._age_at:
            self._age_at = now + REPLIES_AGE_S
            sessions.generation += 1
        with self._lock:
            sessions.give_up_old(GIVE_UP_MAX)
        if sessions.forgotten > self._forgotten and now > self._warn_at:
            self._warn_at = now + WARN_AGAIN_S
            log.warning(
                "%d sessions were forgotten, since there are more than %d; what a client of theirs "
                "sends again fails as session_lost",
                sessions.forgotten - self._forgotten,
                SESSIONS_MAX,
            )
            self._forgotten = sessions.forgotten

    def _measure(self) -> None:
        with self._lock:
            self._space.measure()

    def _tend_compaction(self) -> None:
        """Starts a compaction when it is time for one, and takes note of one that is done."""
        try:
            if self._compaction is None and self._time_to_compact():
                self._compacting, self._compaction_wanted = True, False
                first, self._compacted_bytes = self._journal.rotate()
                self._compaction = self._compactor(self._disk, self.store, first - 1)
            merged = self._compaction.poll() if self._compaction is not None else None
        except DiskFailed:
            raise
        except Exception as error:  # whatever it is, there is no such compaction any more
            self._note_failed_compaction(error)
            return
        if merged is not None:
            log.info("compacted to revision %d, %d bytes", merged.revision, merged.bytes)
            self._journal.forget(self._compacted_bytes)
            self._snapshot = merged
            self._compaction, self._compaction_error = None, None
            self._compacting = False

    def _note_failed_compaction(self, error: Exception) -> None:
        reason = str(error) or repr(error)  # a MemoryError says nothing
        log.error("compaction failed, and nothing is lost: %s", reason)
        failed, self._compaction = self._compaction, None
        with suppress(*_COMPACTION_ERRORS):  # two of one folder would get into each other's way
            if failed is not None:
                failed.kill()
        with suppress(*_COMPACTION_ERRORS):
            compaction.clean(self._disk)
        self._compaction_error = reason
        self._compact_not_before = time.monotonic() + COMPACT_AGAIN_S
        self._compacting = False

    def _time_to_compact(self) -> bool:
        outgrown = self._journal.bytes > max(self._snapshot.bytes, JOURNAL_BYTES_MIN)
        due = outgrown and time.monotonic() > self._compact_not_before
        return due or self._compaction_wanted


def _packed_bytes(result: Mapping[str, Any]) -> int:
    """Of the values in a reply; what else it holds is small."""
    return sum([len(it) for it in result.values() if type(it) is Packed])
