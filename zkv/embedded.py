"""A store in this process: the engine and the service of the server, without its sockets.

A request is still made into bytes and back, so that what a caller got or gave can be
changed by it without changing the store.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings

from zkv import protocol
from zkv.block import Fields
from zkv.engines.disk import Disk
from zkv.engines.journal import Fsync
from zkv.engines.local import LocalEngine
from zkv.errors import BadRequest
from zkv.service import Service
from zkv.store import Store


class Embedded(Store):
    """A store on a data folder, which no other process can use meanwhile.

    Any number of threads may share it. Opening raises a StartError; after the disk has
    failed every method raises Unavailable. Close it, or use it as a context manager.
    A fork cannot use it, and need not close it: it is its parent's.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, version: str, fsync: Fsync = "always"
    ) -> None:
        self._engine = LocalEngine(Disk(folder), fsync=fsync)
        self._service = Service(self._engine, version)
        self._pid = os.getpid()
        self._closed = False

    def close(self) -> None:
        """Brings everything to disk and frees the folder; a second call does nothing."""
        self._closed = True
        if self._pid == os.getpid():
            self._engine.close()

    def __del__(self) -> None:
        if self.__dict__.get("_closed", True) or self._pid != os.getpid() or sys.is_finalizing():
            return
        # In a thread of its own: this one may be any, even one that the engine has to wait for.
        threading.Thread(target=self._engine.close, name="zkv-close").start()
        # Last, since a warning may be an error.
        warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)

    def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        if self._pid != os.getpid():
            raise BadRequest("the store is open in the process that this one was forked from")
        body = protocol.encode_request(op, fields)
        return protocol.decode_reply(self._service.handle([body])[0])
