"""Bytes in, bytes out: a batch of request bodies becomes a batch of reply bodies.

It never raises. This is the only place where a failure becomes a reply, and where
operations are counted and logged. Values never get into a log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

from zkv import protocol, requests
from zkv.engines import TURN_S, Call, Engine, Outcome
from zkv.errors import Error, Internal, Unavailable
from zkv.fields import ABSENT
from zkv.operations import OPERATIONS, Arguments, Fields

log = logging.getLogger(__name__)
operation_log = logging.getLogger("zkv.operations")


PART_BYTES: Final = 4 * 2**20
"""How much of a snapshot file one reply carries."""

REPLIES_BYTES_MAX: Final = 64 * 2**20
"""More than the replies to one batch have."""

SMALL_BYTES: Final = 64 * 2**10
"""A reply up to this is sent even where there is no room for it."""


class _Asked(Call, frozen=True):
    """A request as far as it could be read; what could not be read is a call that says so."""

    id: Any = ABSENT
    op: str = "unreadable"


class Service:
    """Answers requests from an engine. Safe to use from many threads."""

    def __init__(self, engine: Engine, version: str) -> None:
        self._engine = engine
        self._version = version
        self._started = time.time()
        self._own = {
            "info": self._info,
            "compact": self._compact,
            "read_snapshot": self._read_snapshot,
        }
        self._told: dict[str, Callable[[], Fields]] = {}
        self._local = threading.local()
        # One pair for each thread, so that none is shared: requests by op, errors by code.
        self._counters: list[tuple[dict[str, int], dict[str, int]]] = []

    def add_info(self, name: str, tell: Callable[[], Fields]) -> None:
        """Has `info` reply with what somebody else tells, too."""
        self._told[name] = tell

    def handle(self, bodies: Sequence[bytes], room: int | None = None) -> list[bytes]:
        """One reply for each request, in order, when all of them are true of the disk.

        With `room`, the bytes that all replies may have, a large reply beyond it is
        `unavailable`, and of requests that take long only the first ones are answered.
        """
        started = time.perf_counter_ns()
        one_turn = room is not None and len(bodies) > 1
        asked = self._parse_one_turn(bodies) if one_turn else [self._parse(it) for it in bodies]
        outcomes = self._execute(asked, one_turn=one_turn)
        asked = asked[: len(outcomes)]
        self._count(asked, outcomes)
        if operation_log.isEnabledFor(logging.DEBUG):
            _log_operations(asked, outcomes, (time.perf_counter_ns() - started) // 1000)
        replies = list(map(_encode, asked, outcomes))
        if room is not None and room < REPLIES_BYTES_MAX:
            for at, reply in enumerate(replies):
                if len(reply) > max(room, SMALL_BYTES):
                    replies[at] = _no_room(asked[at], outcomes[at])
                room -= len(replies[at])
        return replies

    def _parse_one_turn(self, bodies: Sequence[bytes]) -> list[_Asked]:
        """Requests, until the turn is over."""
        clock, asked = time.perf_counter, []
        until = clock() + TURN_S
        for body in bodies:
            asked.append(self._parse(body))
            if clock() > until:
                break
        return asked

    def _parse(self, body: bytes) -> _Asked:
        request_id, op = ABSENT, "unreadable"
        try:
            request = protocol.decode_plain(body)
            if request is None:
                fields = protocol.decode_map(body)
                if "id" in fields:
                    protocol.check_id(fields["id"])
                    request_id = fields.pop("id")
                request = requests.check(fields, request_id)
            args, request_id = request.args, request.id
            op = args.op
            if op in self._own:  # about the server or its files, not about the data
                return _Asked(_give, self._own[op](args), None, request_id, op)
            session = None if op == "txn" and _only_reads(args) else request.session
            return _Asked(OPERATIONS[op], args, session, request_id, op)
        except BaseException as error:
            return _Asked(_raise, error, None, request_id, op)

    def _execute(self, calls: Sequence[Call], *, one_turn: bool) -> list[Outcome]:
        try:
            return self._engine.execute(calls, one_turn=one_turn)
        except Exception as error:
            if not isinstance(error, Error):
                log.error("a batch failed", exc_info=error)
            if not isinstance(error, Unavailable):
                error = Unavailable("the server failed; whether this was done is not known")
            return [Outcome(error, self._engine.revision)] * len(calls)

    def _info(self, _: Arguments) -> Fields:
        requests, errors = Counter[str](), Counter[str]()
        for counted in self._counters:  # copied in one step each, as their threads go on
            requests.update(counted[0].copy())
            errors.update(counted[1].copy())
        return {
            "name": "zkv",
            "version": self._version,
            "protocol": protocol.VERSION,
            "started": self._started,
            "limits": protocol.LIMITS,
            "counters": {"requests": dict(requests), "errors": dict(errors)},
            **{name: tell() for name, tell in self._told.items()},
            **self._engine.info(),
        }

    def _compact(self, _: Arguments) -> Fields:
        self._engine.compact()
        return {}

    def _read_snapshot(self, args: Arguments) -> Fields:
        data, size = self._engine.read_snapshot(args.revision, args.offset, PART_BYTES)
        return {"data": data, "bytes": size}

    def _count(self, asked: list[_Asked], outcomes: list[Outcome]) -> None:
        try:
            requests, errors = self._local.counters
        except AttributeError:
            requests, errors = self._local.counters = defaultdict(int), defaultdict(int)
            self._counters.append((requests, errors))
        for one in asked:
            requests[one.op] += 1
        for outcome in outcomes:
            if isinstance(outcome.result, BaseException):
                errors[_failure(outcome.result).code] += 1


def _only_reads(txn: Arguments) -> bool:
    """Whether it may as well be done again. An empty one is there to open a session."""
    ops = [*txn.then, *txn.else_]
    return bool(ops) and not any(one.writes for one in ops)


def _give(_: Any, fields: Fields) -> Fields:
    return fields


def _raise(_: Any, error: BaseException) -> Fields:
    raise error


def _failure(error: BaseException) -> Error:
    """What a client is told of an exception."""
    if isinstance(error, Error):
        return error
    if isinstance(error, MemoryError):
        return Internal("the server is out of memory; nothing was changed")
    return Internal("a defect of the server; its log says more")


def _encode(asked: _Asked, outcome: Outcome) -> bytes:
    result = outcome.result
    if not isinstance(result, BaseException):
        try:
            return protocol.encode_reply(asked.id, outcome.revision, result)
        except MemoryError:
            result = Unavailable("no memory for the reply; whether this was done is not known")
    if not isinstance(result, Error):
        log.error("%s failed", asked.op, exc_info=result)
    return protocol.encode_error(asked.id, outcome.revision, _failure(result))


def _no_room(asked: _Asked, outcome: Outcome) -> bytes:
    error = Unavailable("the server keeps too many replies that nobody reads; ask again later")
    return protocol.encode_error(asked.id, outcome.revision, error)


def _log_operations(asked: list[_Asked], outcomes: list[Outcome], microseconds: int) -> None:
    for one, outcome in zip(asked, outcomes, strict=True):
        args, result = one.args, outcome.result
        entry = {
            "op": one.op,
            "key": getattr(args, "key", getattr(args, "prefix", None)),
            "outcome": _failure(result).code if isinstance(result, BaseException) else "ok",
            "microseconds": microseconds,
            "revision": outcome.revision,
        }
        operation_log.debug(
            "%(op)s %(key)r %(outcome)s %(microseconds)d us revision %(revision)d",
            entry,
            extra=entry,
        )
