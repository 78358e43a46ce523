"""A copy of a store that serves, at one revision: its newest snapshot, fetched in parts.

A snapshot file never changes, so parts that are fetched one after the other fit together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from zkv.engines import snapshot
from zkv.engines.disk import Disk, make_folder
from zkv.engines.recovery import recover
from zkv.errors import BadRequest, NotFound, ServerError, Timeout

Read = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Carries out a request, by op and fields, that changes nothing."""

_POLL_S = 0.05


def backup(read: Read, folder: str | os.PathLike[str], *, timeout_s: float = 600) -> int:
    """Makes a new folder of the data at one revision, which is returned.

    A server can serve it, and `zkv.open` can open it. The store serves meanwhile. Raises
    BadRequest if the folder cannot be made, Timeout or ServerError if no snapshot comes
    about, and Damaged if the copy does not read well; then there is no such folder.
    """
    if not (isinstance(timeout_s, int | float) and timeout_s > 0):
        raise BadRequest(
            f"timeout_s must be seconds, more than 0, not {timeout_s!r}", field="timeout_s"
        )
    folder = Path(folder)
    try:
        make_folder(folder, exist_ok=False)
    except OSError as error:
        raise BadRequest(f"cannot make the folder {folder}: {error.strerror}") from None
    try:
        revision = _copy(read, Disk(folder), time.monotonic() + timeout_s)
        recover(Disk(folder))
    except BaseException:
        import shutil  # 2 ms at the start of every client, for a failure only

        shutil.rmtree(folder, ignore_errors=True)
        raise
    return revision


def _copy(read: Read, disk: Disk, deadline: float) -> int:
    wanted = read("info", {})["revision"]
    read("compact", {})
    while time.monotonic() < deadline:
        info = read("info", {})
        if not info["compacting"]:
            revision: int = info["snapshot_revision"]
            with suppress(NotFound):  # a newer one has taken its place
                if revision >= wanted:
                    _fetch(read, disk, revision)
                    return revision
            if info["compaction_error"]:
                raise ServerError(f"the server cannot make a snapshot: {info['compaction_error']}")
        time.sleep(_POLL_S)
    raise Timeout("the server did not make a snapshot in time")


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
