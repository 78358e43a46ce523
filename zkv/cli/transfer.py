"""Whole stores, in and out: `load`, `dump` and `backup`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, Final

from zkv.cli import entries, json_text, output
from zkv.cli.commands import Arguments, standard_input
from zkv.cli.entries import BadEntry, Entry
from zkv.cli.output import bytes_text, keys_text
from zkv.cli.progress import Progress
from zkv.engines.disk import Disk
from zkv.errors import Error, RequestError
from zkv.store import Store
from zkv.values import to_json

STANDARD: Final = "-"
"""The name of stdin or stdout."""

BATCH_KEYS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 2**20
SHORTEST_S: Final = 0.001
"""The time to live of what expires while it is loaded."""


def load(store: Store, args: Arguments) -> None:
    """Puts every entry of a file.

    An entry that cannot be read or put ends it with an error that names the place. The
    entries before that one are then in the store, and none behind it. With `skip_bad` it is
    named and left out, the others are put, and the error comes at the end. A key that was to
    expire does, and is left out if it should have.
    """
    with ExitStack() as stack:
        if args.file == STANDARD:
            name, source = "stdin", standard_input(args)
        else:
            name, source = args.file, stack.enter_context(open(args.file, "rb"))
        loading = _Loading(store, Progress(os.fstat(source.fileno()).st_size), args.skip_bad)
        try:
            loading.put_all(entries.read(name, source))
        except Error as error:
            loaded = keys_text(loading.progress.keys)
            raise type(error)(f"{error} (loaded {loaded} before)") from None
        finally:
            seconds = loading.progress.end()
    expired = f", {keys_text(loading.expired)} had expired" if loading.expired else ""
    loaded = keys_text(loading.progress.keys)
    print(f"loaded {loaded} in {seconds:.2f} s{expired}", file=sys.stderr)
    if loading.skipped:
        raise BadEntry(f"{name}: {loading.skipped} could not be loaded and were left out")


def dump(store: Store, args: Arguments) -> None:
    """Writes every key that begins with the prefix, in order, as JSON Lines that `load` reads.

    A key that expires has when it does, in seconds since 1970. Versions are left out. A file
    appears, or is replaced, only when the dump is whole and on disk. A key that others change
    meanwhile is seen before or after its change.
    """
    if args.file == STANDARD:
        _write_all(store, args.prefix, sys.stdout.buffer, Progress(0, shown=False))
        return
    progress = Progress(store.count(args.prefix))
    try:
        with _writing(args.file) as target:
            _write_all(store, args.prefix, target, progress)
    finally:
        seconds = progress.end()
    print(f"dumped {keys_text(progress.keys)} in {seconds:.2f} s", file=sys.stderr)


def backup(store: Store, args: Arguments) -> None:
    """Makes a folder of the data at one revision, and says which."""

    def copied() -> int:
        with suppress(OSError):  # a file may get another name meanwhile
            return sum(file.stat().st_size for file in os.scandir(args.folder))
        return 0

    with Progress(0, text=bytes_text).watching(copied):
        revision = store.backup(args.folder)
    output.one({"revision": revision}, args.form, f"{args.folder}: revision {revision}")


class _Loading:
    """Puts entries, as many together as make a good request."""

    def __init__(self, store: Store, progress: Progress, skip_bad: bool) -> None:
        self.progress = progress
        self.skipped = self.expired = 0
        self._store = store
        self._skip_bad = skip_bad
        self._batch: list[Entry] = []
        self._bytes = 0

    def put_all(self, source: Iterator[Entry | BadEntry]) -> None:
        """Raises the first error that is not to be skipped, when all before it is put."""
        try:
            for entry in source:
                if isinstance(entry, BadEntry):
                    self._skip(entry)
                    continue
                if entry.expires is not None and entry.expires <= time.time():
                    self.expired += 1
                    continue
                self._batch.append(entry)
                self._bytes += entry.size
                if len(self._batch) == BATCH_KEYS_MAX or self._bytes >= BATCH_BYTES_MAX:
                    self._put_batch()
        except BadEntry:
            self._put_batch()
            raise
        self._put_batch()

    def _put_batch(self) -> None:
        batch, self._batch, self._bytes = self._batch, [], 0
        try:
            with self._store.transaction() as block:
                for entry in batch:
                    block.put(entry.key, entry.value, ttl=_ttl(entry))
            self.progress.advance(sum(entry.size for entry in batch), keys=len(batch))
        except RequestError:  # none was put: one by one, to put some and name those that fail
            for entry in batch:
                self._put(entry)

    def _put(self, entry: Entry) -> None:
        try:
            self._store.put(entry.key, entry.value, ttl=_ttl(entry))
            self.progress.advance(entry.size)
        except RequestError as error:
            self._skip(type(error)(f"{entry.where}: {error}"))
        except Error as error:
            raise type(error)(f"{entry.where}: {error}") from None

    def _skip(self, error: RequestError) -> None:
        if not self._skip_bad:
            raise error
        self.skipped += 1
        self.progress.note(f"zkv-client: {error}")


def _ttl(entry: Entry) -> float | None:
    return None if entry.expires is None else max(entry.expires - time.time(), SHORTEST_S)


def _write_all(store: Store, prefix: str, target: BinaryIO, progress: Progress) -> None:
    for item in store.items(prefix, ttls=True):
        fields = {"key": item.key, "value": to_json(item.value)}
        if item.ttl is not None:
            fields["expires"] = round(time.time() + item.ttl, 3)
        line = json_text.compact(fields)
        target.write(line.encode() + b"\n")
        progress.advance()


@contextmanager
def _writing(file: str) -> Iterator[BinaryIO]:
    """A file to write that gets its name at the end, when all of it is on disk.

    What is no regular file, as a device or a named pipe, is written to as it stands.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        with open(file, "wb") as target:
            yield target
        return
    path = os.path.realpath(file)  # a link stays, and what it leads to is replaced
    aside = f"{path}.{os.getpid()}.tmp"
    with open(aside, "xb") as target:
        try:
            yield target
            target.flush()
            os.fsync(target.fileno())
            os.rename(aside, path)
        except BaseException:
            os.unlink(aside)
            raise
    Disk(os.path.dirname(path)).sync_folder()
