"""Every failure has one class here, and every failure that travels has one wire code.

Split by whose fault it is: `RequestError` (the caller's: the store is unchanged, and the
same request would fail again), `ServerError` (the server's: the message says whether the
request took effect), `ClientError` (between the two), `StartError` (before anything was
served; `exit_code` is what zkv-server ends with). No module of zkv is imported here.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Error(Exception):
    """Root of all errors of zkv.

    `message` is a sentence for a person. `details` holds what helps to act on it, by the
    names of the wire protocol: `field`, `limit`, `size`, `version`, `index`, `revision`.
    `outcome_known` is False when the request may or may not have taken effect.
    """

    code: ClassVar[str] = "internal"
    outcome_known: bool = True

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __str__(self) -> str:  # KeyError's own would put the sentence in quotes
        return self.message


class RequestError(Error):
    """The request cannot be done as it stands. Nothing was changed."""


class BadRequest(RequestError, ValueError):
    """The request is not one that the protocol allows; `details["field"]` names the place."""

    code = "bad_request"


class UnknownOp(RequestError, ValueError):
    """The server knows no operation of that name."""

    code = "unknown_op"


class NotFound(RequestError, KeyError):
    """The key is not in the store."""

    code = "not_found"


class Conflict(RequestError):
    """A precondition does not hold; `details["version"]` is the key's version now (0: none)."""

    code = "conflict"


class WrongType(RequestError, TypeError):
    """The stored value is of a type that the operation cannot work on."""

    code = "wrong_type"


class Overflow(RequestError, OverflowError):
    """The result would leave the range of 64-bit integers, or of finite floats."""

    code = "overflow"


class TooLarge(RequestError, ValueError):
    """A part of the request is over its limit; `details` has `limit` and `size`."""

    code = "too_large"


class Stale(RequestError):
    """The session has moved on past this sequence number. Nothing was run."""

    code = "stale"


class ServerError(Error):
    """The server could not do what was rightly asked of it."""


class SessionLost(ServerError):
    """The server does not know the session of a resent request, and did not run it.

    Whether the first attempt took effect is not known.
    """

    code = "session_lost"
    outcome_known = False


class NoSpace(ServerError):
    """The disk is too full for writes; reads and deletes still work. Nothing was changed."""

    code = "no_space"


class Unavailable(ServerError):
    """The server is stopping, its disk has failed, or it lacks files or memory just now.

    The outcome is not known.
    """

    code = "unavailable"
    outcome_known = False


class Internal(ServerError):
    """A defect of the server; its log has the traceback. Nothing was changed."""

    code = "internal"


class ClientError(Error):
    """What went wrong between this client and the server."""


class Timeout(ClientError, TimeoutError):
    """No reply within the time allowed. A write may or may not have taken effect."""

    code = "timeout"
    outcome_known = False


class CannotConnect(ClientError, ConnectionError):
    """Nothing at the endpoint speaks ZeroMQ. Nothing was sent."""

    code = "cannot_connect"


class ProtocolError(ClientError):
    """The peer answered with something that is not a zkv reply."""

    code = "protocol_error"
    outcome_known = False


class DataLost(ClientError):
    """The server's revision is lower than one it has already acknowledged to this client."""

    code = "data_lost"


class StartError(Error):
    """The server, or an embedded store, cannot start; nothing on disk was changed."""

    code = "start_error"
    exit_code: ClassVar[int] = 1


class Damaged(StartError):
    """A file of the store is not what zkv wrote. Exit code 65 (EX_DATAERR)."""

    exit_code = 65


class OtherFormat(StartError):
    """The store was written by another version of zkv. Exit code 65 (EX_DATAERR)."""

    exit_code = 65


class AddressInUse(StartError):
    """An endpoint cannot be listened on. Exit code 69 (EX_UNAVAILABLE)."""

    exit_code = 69


class Shortage(StartError):
    """The system has no file, memory or thread left for it. Exit code 71 (EX_OSERR)."""

    exit_code = 71


class FolderUnusable(StartError):
    """The data folder cannot be made, read or written. Exit code 73 (EX_CANTCREAT)."""

    exit_code = 73


class DiskFailed(StartError):
    """The disk refused a read, a write or a sync. Exit code 74 (EX_IOERR).

    The only one that may also come later; see `Journal`.
    """

    exit_code = 74


class FolderInUse(StartError):
    """Another process serves this data folder. Exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75


BY_CODE: dict[str, type[Error]] = {
    error.code: error
    for error in (
        BadRequest, UnknownOp, NotFound, Conflict, WrongType, Overflow, TooLarge, Stale,
        SessionLost, NoSpace, Unavailable, Internal,
    )
}  # fmt: skip
"""The wire codes, each with its class."""
