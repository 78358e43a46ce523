"""A durable key-value store for ZeroMQ clients.

with zkv.Client("tcp://127.0.0.1:5757") as store:    # served by zkv-server
    store.put("user:1", {"name": "Ada"})

with zkv.open("./zkv-data") as store:                # or in this process
    store.put("user:1", {"name": "Ada"})

async with zkv.aio.Client() as store:                # after `import zkv.aio`
    await store.put("user:1", {"name": "Ada"})
"""

from __future__ import annotations

import os

from zkv.block import Block
from zkv.client import Client
from zkv.dict_view import DictView
from zkv.embedded import Embedded
from zkv.engines.journal import Fsync
from zkv.errors import (
    BadRequest,
    CannotConnect,
    ClientError,
    Conflict,
    DataLost,
    Error,
    Internal,
    NoSpace,
    NotFound,
    Overflow,
    ProtocolError,
    RequestError,
    ServerError,
    SessionLost,
    Stale,
    StartError,
    Timeout,
    TooLarge,
    Unavailable,
    UnknownOp,
    WrongType,
)
from zkv.plans import Item, Page
from zkv.store import Store

__version__ = "0.1.0"


def open(folder: str | os.PathLike[str], *, fsync: Fsync = "always") -> Embedded:  # noqa: A001
    """The store in a data folder, in this process and without a server."""
    return Embedded(folder, version=__version__, fsync=fsync)


__all__ = [
    "BadRequest", "Block", "CannotConnect", "Client", "ClientError", "Conflict", "DataLost",
    "DictView", "Embedded", "Error", "Internal", "Item", "NoSpace", "NotFound", "Overflow", "Page",
    "ProtocolError", "RequestError", "ServerError", "SessionLost", "Stale", "StartError",
    "Store", "Timeout", "TooLarge", "Unavailable", "UnknownOp", "WrongType", "open",
]  # fmt: skip
