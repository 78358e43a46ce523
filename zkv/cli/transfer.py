"""Whole stores, in and out: `load` and `dump`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Final

from zkv.cli import entries, json_text
from zkv.cli.entries import BadEntry, Entry
from zkv.cli.output import keys_text
from zkv.cli.progress import Progress
from zkv.errors import Error, RequestError
from zkv.store import Store
from zkv.values import to_json

STANDARD: Final = "-"
"""The name of stdin or stdout."""

BATCH_KEYS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 2**20


def load(store: Store, file: str) -> None:
    """Puts every entry of a file.

    An entry that cannot be read or put ends it with an error that names the place. The
    entries before that one are then in the store, and none behind it.
    """
    with ExitStack() as stack:
        if file == STANDARD:
            name, source = "stdin", sys.stdin.buffer
        else:
            name, source = file, stack.enter_context(open(file, "rb"))
        progress = Progress(os.fstat(source.fileno()).st_size)
        try:
            for batch in _batches(entries.read(name, source)):
                _put_batch(store, batch, progress)
        except Error as error:
            raise type(error)(f"{error} (loaded {keys_text(progress.keys)} before)") from None
        finally:
            seconds = progress.end()
    print(f"loaded {keys_text(progress.keys)} in {seconds:.2f} s", file=sys.stderr)


def dump(store: Store, file: str, prefix: str) -> None:
    """Writes every key that begins with the prefix, in order, as JSON Lines that `load` reads.

    A file appears, or is replaced, only when the dump is whole and on disk. A key that others
    change meanwhile is seen before or after its change. Versions and times to live are left out.
    """
    if file == STANDARD:
        _write_all(store, prefix, sys.stdout.buffer, Progress(0, shown=False))
        return
    progress = Progress(store.count(prefix))
    try:
        with _writing(file) as target:
            _write_all(store, prefix, target, progress)
    finally:
        seconds = progress.end()
    print(f"dumped {keys_text(progress.keys)} in {seconds:.2f} s", file=sys.stderr)


def _batches(source: Iterator[Entry]) -> Iterator[list[Entry]]:
    """The entries in order, as many together as make a good request.

    A BadEntry of the source is raised when the entries before it have been handed out.
    """
    batch: list[Entry] = []
    size, bad = 0, None
    try:
        for entry in source:
            batch.append(entry)
            size += entry.size
            if len(batch) == BATCH_KEYS_MAX or size >= BATCH_BYTES_MAX:
                yield batch
                batch, size = [], 0
    except BadEntry as error:
        bad = error
    if batch:
        yield batch
    if bad:
        raise bad


def _put_batch(store: Store, batch: list[Entry], progress: Progress) -> None:
    try:
        store.put_many({entry.key: entry.value for entry in batch})
        progress.advance(sum(entry.size for entry in batch), keys=len(batch))
    except RequestError:  # none was put: one by one, to put some and name the first that fails
        for entry in batch:
            _put(store, entry)
            progress.advance(entry.size)


def _put(store: Store, entry: Entry) -> None:
    try:
        store.put(entry.key, entry.value)
    except Error as error:
        raise type(error)(f"{entry.where}: {error}") from None


def _write_all(store: Store, prefix: str, target: BinaryIO, progress: Progress) -> None:
    for item in store.items(prefix):
        line = json_text.compact({"key": item.key, "value": to_json(item.value)})
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
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
