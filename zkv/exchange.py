"""One request on its way to a server: when it is sent again, when it is given up, and what
its reply means.

Both clients carry requests by these steps, so what they promise is the same. A step is a body
to be sent and how long to wait; it is answered with the body of the reply, or with why there
is none. No socket may live here.
"""

from __future__ import annotations

import enum
import random
import secrets
import time
from collections.abc import Generator, Iterator
from typing import Final, Protocol

from zkv import protocol
from zkv.block import Fields
from zkv.errors import (
    CannotConnect,
    DataLost,
    Error,
    ProtocolError,
    RequestError,
    SessionLost,
    Stale,
    Timeout,
)
from zkv.requests import OPS

CONNECT_AGAIN_S: Final = 0.05
"""How long to wait after a connection that could not be opened, or was lost."""


class Nothing(enum.Enum):
    """Why there is no reply: none came in time; the request could not be sent in time; or the
    connection was lost before the reply came."""

    CAME = enum.auto()
    SENT = enum.auto()
    LEFT = enum.auto()


Steps = Generator[tuple[bytes, float], bytes | memoryview | Nothing, Fields]
"""Bodies, each with the seconds to wait for its reply; in the end the fields of the reply.

A body must not be sent when the peer's `timeout_s`, which are for all of it, are over. A reply
to one that was sent before must not be given for it.
"""


class Peer(Protocol):
    """The server as a client knows it."""

    endpoint: str
    timeout_s: float
    resend_after_s: float
    exactly_once: bool
    revision_seen: int
    """The highest that a reply was true of."""


def ends_session(error: Error) -> bool:
    """Whether a session is of no more use after this: the server does not know it, or knows more
    of it than this client does. After any other failure, the next write has a higher number: what
    may still be under way is then done already, or refused as stale.
    """
    return isinstance(error, Stale | SessionLost | DataLost | ProtocolError)


class Session:
    """Numbers writes, one at a time. `reply_bytes` is the size of the latest reply, which the
    server keeps.

    A resent first request of an unknown session is refused, as it may have run before. So a
    session is opened by a request without effect, and then is known.
    """

    __slots__ = ("_name", "_seq", "is_open", "reply_bytes")

    def __init__(self) -> None:
        self._name = secrets.token_urlsafe(12)
        self._seq = 0
        self.is_open = False
        self.reply_bytes = 0

    def number(self, fields: Fields) -> Fields:
        """The fields of a write with those that make it happen once."""
        self._seq += 1
        return {**fields, "session": self._name, "seq": self._seq}


def exchange(
    peer: Peer, session: Session | None, op: str, fields: Fields, *, writes: bool
) -> Steps:
    """The steps of a request; they end with its reply, or raise its error.

    Or they raise Timeout, CannotConnect, ProtocolError, or DataLost. A write that is to happen
    once has a session.
    """
    deadline = time.monotonic() + peer.timeout_s
    if not writes:
        return _carry(peer, op, fields, _AS_IT_IS, deadline)
    if session is None:
        return _carry(peer, op, fields, None, deadline)
    if session.is_open:
        return _carry(peer, op, session.number(fields), _RETRY, deadline, session)
    return _open_and_carry(peer, session, op, fields, deadline)


def give_up_replies(peer: Peer, sessions: list[Session]) -> Iterator[Steps]:
    """The steps of requests that let the server give up large replies, each of which it keeps in
    case this client did not get it. All together may take `GIVE_UP_S`. Nobody else gets a session
    out of the list any more.
    """
    deadline = time.monotonic() + min(GIVE_UP_S, peer.timeout_s)
    while sessions:
        session = sessions.pop()
        if session.reply_bytes > REPLY_BYTES_LARGE:
            yield _carry(peer, "txn", session.number(_NOTHING), None, deadline)


def not_zkv(endpoint: str, reason: object) -> ProtocolError:
    """The error of a peer that has answered with something else than a reply."""
    return ProtocolError(
        f"{endpoint} does not answer as zkv does ({reason}): is a zkv server there?"
    )


MANY_FRAMES: Final = "a reply of more than one frame"

_OVERTAKEN: Final = (
    "another client has used the session of this one (is there a copy of its process?); the write "
    "was not done, and the next one goes on in a new session"
)

_AS_IT_IS: Final[Fields] = {}
_RETRY: Final[Fields] = {"retry": True}
_NOTHING: Final[Fields] = {"then": []}

REPLY_BYTES_LARGE: Final = 1024
GIVE_UP_S: Final = 0.5
"""How long a client that is closed waits until its large replies are given up."""


def _open_and_carry(
    peer: Peer, session: Session, op: str, fields: Fields, deadline: float
) -> Steps:
    """The first write of a session."""
    yield from _carry(peer, "txn", session.number(_NOTHING), _AS_IT_IS, deadline)
    session.is_open = True
    if time.monotonic() >= deadline:  # the reply was there in time, and nobody looked
        deadline = time.monotonic() + peer.timeout_s
    return (yield from _carry(peer, op, session.number(fields), _RETRY, deadline, session))


def _carry(
    peer: Peer,
    op: str,
    fields: Fields,
    resend: Fields | None,
    deadline: float,
    session: Session | None = None,
) -> Steps:
    """`resend` is what a request has more when it is sent again; None: it must not be."""
    seen = peer.revision_seen
    body = protocol.encode_request(op, fields)
    left_s = deadline - time.monotonic()
    if left_s <= 0:  # what went before has taken all of it
        raise Timeout(_too_late(peer))
    wait_s = left_s if resend is None else min(peer.resend_after_s, left_s)
    sent = False
    while True:
        answer = yield body, wait_s
        if not isinstance(answer, Nothing):
            if session is not None:
                session.reply_bytes = len(answer)
            return _read(peer, op, answer, seen)
        left_s = deadline - time.monotonic()
        if answer is not Nothing.SENT:
            if left_s <= 0 or resend is None:
                break
            body, sent = protocol.encode_request(op, {**fields, **resend}), True
        elif left_s <= 0:
            break
        wait_s = min(left_s, 2 * wait_s * random.uniform(0.75, 1.25))
    if answer is Nothing.LEFT:
        raise Timeout(f"{peer.endpoint} closed the connection before it replied; outcome unknown")
    if sent or answer is Nothing.CAME:
        raise Timeout(f"{_too_late(peer)}; outcome unknown")
    raise CannotConnect(f"no ZeroMQ server answers at {peer.endpoint}; nothing was sent")


def _too_late(peer: Peer) -> str:
    return f"no reply from {peer.endpoint} within {peer.timeout_s:g} s"


def _read(peer: Peer, op: str, body: bytes | memoryview, seen: int) -> Fields:
    try:
        reply = protocol.decode_reply(body)
    except RequestError as error:
        _see(peer, error.details.get("revision", seen), seen)
        if isinstance(error, Stale) and OPS[op].writes:
            raise Stale(_OVERTAKEN, **error.details) from None
        raise
    except Error:  # of which some are ValueErrors
        raise
    except ValueError as error:
        raise not_zkv(peer.endpoint, error) from None
    if missing := OPS[op].always.difference(reply):
        raise not_zkv(peer.endpoint, f"a reply to {op} lacks {', '.join(sorted(missing))}")
    _see(peer, reply["revision"], seen)
    return reply


def _see(peer: Peer, revision: int, seen: int) -> None:
    """Raises DataLost for a reply that is older than what was seen before the request."""
    if revision < seen:
        raise DataLost(
            f"the server is at revision {revision}, but had acknowledged {seen}",
            revision=revision,
            seen=seen,
        )
    if revision > peer.revision_seen:
        peer.revision_seen = revision
