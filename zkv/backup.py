"""A copy of a store that serves, at one revision: its newest snapshot, fetched in parts.

A snapshot file never changes, so parts that are fetched one after the other fit together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zkv.engines import snapshot
from zkv.engines.disk import Disk
from zkv.engines.recovery import recover
from zkv.errors import BadRequest, NotFound, ServerError, Timeout

Read = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Carries out a request, by op and fields, that changes nothing."""

_POLL_S = 0.05


def backup(read: Read, folder: str | os.PathLike[str], *, timeout_s: float = 600) -> int:
    """Makes a new folder of the data at one revision, which is returned.

    A server can serve it, and `zkv.open` can open it. The store serves meanwhile. Raises
    BadRequest if the folder cannot be made, Timeout or ServerError if no snapshot comes
    about, and Damaged if the copy does not read well.
    """
    folder = Path(folder)
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise BadRequest(f"cannot make the folder {folder}: {error.strerror}") from None
    deadline = time.monotonic() + timeout_s
    wanted = read("info", {})["revision"]
    read("compact", {})
    while True:
        revision = _wait_for_snapshot(read, wanted, deadline)
        try:
            _fetch(read, Disk(folder), revision)
            break
        except NotFound:  # a newer one has taken its place
            continue
    recover(Disk(folder))
    Disk(folder.absolute().parent).sync_folder()
    return revision


def _wait_for_snapshot(read: Read, wanted: int, deadline: float) -> int:
    while True:
        info = read("info", {})
        revision: int = info["snapshot_revision"]
        if revision >= wanted and not info["compacting"]:
            return revision
        if info["compaction_error"] and not info["compacting"]:
            raise ServerError(f"the server cannot make a snapshot: {info['compaction_error']}")
        if time.monotonic() > deadline:
            raise Timeout("the server did not make a snapshot in time")
        time.sleep(_POLL_S)


def _fetch(read: Read, disk: Disk, revision: int) -> None:
    name = snapshot.name_of(revision)
    handle = disk.create(name + ".tmp")
    try:
        offset, size = 0, 1
        while offset < size:
            part = read("read_snapshot", {"revision": revision, "offset": offset})
            disk.write(handle, part["data"])
            offset, size = offset + len(part["data"]), part["bytes"]
        disk.sync(handle)
    except NotFound:
        disk.unlink(name + ".tmp")
        raise
    finally:
        disk.close(handle)
    disk.rename(name + ".tmp", name)
    disk.sync_folder()
