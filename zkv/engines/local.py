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
from collections.abc import Callable, Sequence
from typing import Any, Final

from zkv.engines import Call, Outcome
from zkv.engines.compaction import compact
from zkv.engines.disk import Disk
from zkv.engines.journal import Fsync, Journal
from zkv.engines.recovery import recover, settle
from zkv.engines.sessions import SESSIONS_MAX
from zkv.errors import Damaged, DiskFailed, Error, RequestError, Unavailable
from zkv.transaction import Commit, Completed, Entry, Transaction

log = logging.getLogger(__name__)

SYNC_INTERVAL_S: Final = 1.0
"""How often `fsync="interval"` syncs: what a power failure can take."""

SWEEP_KEYS_MAX: Final = 1000
"""Expired keys that are removed by one revision."""

JOURNAL_BYTES_MIN: Final = 64 * 2**20
"""A running store is compacted when its journal is larger than its snapshot and than this."""

STOP_BYTES_MAX: Final = 64 * 2**20
"""A store no larger than this is compacted at each clean stop, so that stopping is quick."""


class LocalEngine:
    """An `Engine` on one data folder.

    Opening it takes the folder's lock, recovers, and starts a segment; it raises a
    StartError. `clock` gives the seconds since 1970. `on_failure` is called, from any
    thread, when the disk has failed: from then on `execute` raises DiskFailed.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        fsync: Fsync = "always",
        clock: Callable[[], float] = time.time,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._disk = disk
        self._fsync = fsync
        self._clock = clock
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._closed = threading.Event()
        disk.make()
        self._folder_lock = disk.lock()
        try:
            self._open()
        except BaseException:
            self._folder_lock.close()
            raise
        self._keeper = threading.Thread(target=self._keep, name="zkv-keeper", daemon=True)
        self._keeper.start()

    def execute(self, calls: Sequence[Call]) -> list[Outcome]:
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("the store is closed")
            now = self._clock()
            self._sweep(now)
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
            "journal_bytes": self._closed_bytes + self._journal.bytes,
            "snapshot_bytes": self._snapshot_bytes,
        }

    @property
    def revision(self) -> int:
        """The newest revision that is as durable as asked."""
        return self._journal.confirmed

    def close(self) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        self._keeper.join()
        try:
            self._journal.close()
            journal_bytes = self._closed_bytes + self._journal.bytes
            if journal_bytes and journal_bytes + self._snapshot_bytes <= STOP_BYTES_MAX:
                compact(self._disk, self.store, self._table.next_revision - 1)
        finally:
            self._folder_lock.close()

    def _open(self) -> None:
        found = recover(self._disk)
        set_aside = settle(self._disk, found)
        if set_aside is not None:
            log.warning("the last batch was torn by a crash; its bytes are kept in %s", set_aside)
        self._table = found.table
        self.store = found.store or uuid.uuid4().hex
        self._closed_bytes = found.journal_bytes
        self._snapshot_bytes = found.snapshot_bytes
        self._journal = Journal(
            self._disk, self.store, self._table.revision, self._table.next_revision, self._fsync
        )

    def _run(self, call: Call, now: float) -> Outcome:
        """One call, under the lock."""
        t = Transaction(self._table, now)
        session, sessions = call.session, self._table.sessions
        if session is not None:
            try:
                known = sessions.recall(session.id, session.seq, session.retry)
            except Error as error:
                return Outcome(error, self._journal.confirmed)
            if known is not None:
                return Outcome(*known)
        try:
            result = call.run(t, call.args)
        except BaseException as error:  # even SystemExit: the client waits for an answer
            revision = self._true_of(t)
            if session is not None and isinstance(error, RequestError):
                sessions.remember(session.id, session.seq, error, revision)
            return Outcome(error, revision)
        if session is not None:
            completed = Completed(session.id, session.seq, result)
            self._commit(Commit(t.revision, now, t.changes, completed))
        elif t.changes:
            self._commit(Commit(t.revision, now, t.changes))
        else:
            return Outcome(result, self._true_of(t))
        return Outcome(result, t.revision)

    def _commit(self, commit: Commit) -> None:
        self._table.apply(commit)
        self._journal.append(commit)

    def _sweep(self, now: float) -> None:
        """Removes what has expired, before anything can see it."""
        while due := self._table.due(now, SWEEP_KEYS_MAX):
            changes: dict[str, Entry | None] = dict.fromkeys(due)
            self._commit(Commit(self._table.next_revision, now, changes))

    def _true_of(self, t: Transaction) -> int:
        return max(t.seen, self._journal.confirmed)

    def _keep(self) -> None:
        """What has to be done by the clock, until the store is closed."""
        while not self._closed.wait(SYNC_INTERVAL_S):
            try:
                with self._lock:
                    self._sweep(self._clock())
                    revision = self._table.revision
                self._journal.confirm(revision)
                if self._fsync == "interval":
                    self._journal.sync()
                info = self.info()
                if info["journal_bytes"] > max(info["snapshot_bytes"], JOURNAL_BYTES_MIN):
                    self._compact()
            except DiskFailed as error:
                self._on_failure(error)
                return

    def _compact(self) -> None:
        started = time.monotonic()
        before = self._closed_bytes + self._journal.bytes
        self._journal.rotate()
        try:
            merged = compact(self._disk, self.store, self._journal.first - 1)
        except (OSError, ValueError, Damaged):
            log.exception("compaction failed; the journal has everything")
            self._closed_bytes = before
            return
        self._closed_bytes, self._snapshot_bytes = 0, merged.bytes
        seconds = time.monotonic() - started
        log.info("compacted to revision %d in %.2f s", merged.revision, seconds)
