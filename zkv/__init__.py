"""A durable key-value store for ZeroMQ clients.

with zkv.Client("tcp://127.0.0.1:5757") as store:
    store.put("user:1", {"name": "Ada"})
"""

__version__ = "0.1.0"

from zkv.client import Client
from zkv.errors import (
    BadRequest,
    CannotConnect,
    ClientError,
    Conflict,
    Error,
    Internal,
    NoSpace,
    NotFound,
    Overflow,
    ProtocolError,
    RequestError,
    ServerError,
    Stale,
    Timeout,
    TooLarge,
    Unavailable,
    UnknownOp,
    WrongType,
)
from zkv.store import Item

__all__ = [
    "BadRequest", "CannotConnect", "Client", "ClientError", "Conflict", "Error", "Internal",
    "Item", "NoSpace", "NotFound", "Overflow", "ProtocolError", "RequestError", "ServerError",
    "Stale", "Timeout", "TooLarge", "Unavailable", "UnknownOp", "WrongType",
]  # fmt: skip
