"""A store is a dict with a counter: random requests, restarts, crashes and compactions give
what the model gives, to the version and the revision.

To teach it another operation, add a method to `Model` and a rule to `Machine`.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import compact
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_journal import MEMORY, QuickDisk
from test_values import SHALLOW, same

from zkv import errors, protocol
from zkv.engines import compaction
from zkv.engines.local import LocalEngine
from zkv.service import Service

KEYS = st.sampled_from(["a", "a\0", "aa", "ab", "b", "b\U0010ffff", "\ue000", "𐀀", "\U0010ffff"])
PREFIXES = st.just("") | KEYS | st.sampled_from(["c", "b\U0010ffff\U0010ffff"])
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, 2**64 - 1, -(2**63), 1e308, 1.7e308])
VALUES = NUMBERS | st.booleans() | SHALLOW

TTLS = st.sampled_from([0.5, 1, 1000, 1e6])

Request = tuple[str, dict[str, Any]]


def fields(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"key": KEYS, **required}, optional=optional)


def requests_of(**ops: Any) -> st.SearchStrategy[Request]:
    return st.one_of(*[st.tuples(st.just(op), given) for op, given in ops.items()])


CONDITIONS = st.fixed_dictionaries(
    {}, optional={"version": st.integers(0, 12), "exists": st.booleans(), "value": VALUES}
).filter(bool)
ON_CONDITION = {"if": CONDITIONS, "return_old": st.booleans()}
PUT = fields({"value": VALUES}, ttl=TTLS, **ON_CONDITION) | fields(
    {"value": VALUES}, keep_ttl=st.booleans(), **ON_CONDITION
)
WRITES = requests_of(
    put=PUT,
    delete=fields({}, **ON_CONDITION),
    incr=fields({"by": NUMBERS, "initial": NUMBERS}, **{"if": CONDITIONS}),
    expire=fields({"ttl": TTLS | st.none()}, **{"if": CONDITIONS}),
)
READS = requests_of(
    get=fields({}, default=VALUES), count=st.fixed_dictionaries({"prefix": PREFIXES})
)
OPS = st.lists((WRITES | READS).map(lambda request: {"op": request[0], **request[1]}), max_size=4)
GUARDS = st.lists(
    st.tuples(KEYS, CONDITIONS).map(lambda pair: {"key": pair[0], **pair[1]}), max_size=2
)
TXNS = st.fixed_dictionaries({"then": OPS}, optional={"if": GUARDS, "else": OPS})
SESSIONS = st.sampled_from(["s", b"t"])


class Model:
    """Keys with values, versions and deadlines; `answer` gives the reply of a store."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Any, int, float | None]] = {}
        self.sessions: dict[str | bytes, tuple[int, dict[str, Any]]] = {}
        self.on_disk = dict(self.sessions)
        self.revision = 0
        self.now = 0.0
        self.changed = False

    def sweep(self, now: float) -> bool:
        """What has expired by now goes, by a revision of its own."""
        self.now = now
        kept = {key: it for key, it in self.entries.items() if it[2] is None or it[2] > now}
        swept = len(kept) < len(self.entries)
        self.entries = kept
        self.revision += swept
        return swept

    def answer(self, op: str, given: dict[str, Any]) -> dict[str, Any]:
        """The fields of the reply; of a failure, its code."""
        session, seq = given.pop("session", None), given.pop("seq", 0)
        retry = given.pop("retry", False)
        if op == "txn":
            ops = [one["op"] for one in given["then"] + given.get("else", [])]
            if ops and {*ops} <= {"get", "list", "count"}:
                session = None  # it may as well be done again
        if session in self.sessions:
            latest, reply = self.sessions[session]
            if seq <= latest:
                stale = {"error": "stale", "revision": self.revision}
                return reply if seq == latest else stale
        elif session is not None and retry:
            return {"error": "session_lost", "revision": self.revision}
        before, self.changed = dict(self.entries), session is not None
        try:
            found = self.run(op, given)
        except errors.RequestError as error:
            self.entries, self.changed = before, False
            found = {"error": error.code}
        self.revision += self.changed
        reply = {**dict(sorted(found.items())), "revision": self.revision}
        if session is not None:
            self.sessions[session] = seq, reply
            if "error" not in reply:
                self.on_disk[session] = seq, reply
        return reply

    def run(self, op: str, given: dict[str, Any]) -> dict[str, Any]:
        if op != "txn":
            self.check(given.get("key", ""), given.pop("if", {}))
        reply: dict[str, Any] = getattr(self, op)(**given)
        return reply

    def restart(self) -> None:
        """Failures are remembered in memory only."""
        self.sessions = dict(self.on_disk)

    def holds(self, key: str, conditions: dict[str, Any]) -> bool:
        value, version, _ = self.entries.get(key, (None, 0, None))
        for name, wanted in conditions.items():
            if name == "version" and version != wanted:
                return False
            if name == "exists" and (key in self.entries) is not wanted:
                return False
            if name == "value" and not (key in self.entries and same(value, wanted)):
                return False
        return True

    def check(self, key: str, conditions: dict[str, Any]) -> None:
        if not self.holds(key, conditions):
            raise errors.Conflict(key)

    def get(self, key: str, **default: Any) -> dict[str, Any]:
        if key not in self.entries:
            if default:
                return {"value": default["default"], "version": 0}
            raise errors.NotFound(key)
        value, version, deadline = self.entries[key]
        ttl = {} if deadline is None else {"ttl": deadline - self.now}
        return {"value": value, "version": version, **ttl}

    def put(
        self,
        key: str,
        value: Any,
        ttl: float | None = None,
        keep_ttl: bool = False,
        return_old: bool = False,
    ) -> dict[str, Any]:
        old = self.entries.get(key)
        deadline = self.now + ttl if ttl is not None else old[2] if keep_ttl and old else None
        self.entries[key] = value, self.revision + 1, deadline
        self.changed = True
        return {"version": self.revision + 1} | ({"old": old[0]} if return_old and old else {})

    def delete(self, key: str, return_old: bool = False) -> dict[str, Any]:
        found = self.get(key)
        del self.entries[key]
        self.changed = True
        return {"version": found["version"]} | ({"old": found["value"]} if return_old else {})

    def incr(self, key: str, by: Any, initial: Any) -> dict[str, Any]:
        value = self.entries[key][0] if key in self.entries else initial
        if type(value) not in (int, float):
            raise errors.WrongType(key)
        value += by
        if not (-(2**63) <= value < 2**64 if type(value) is int else math.isfinite(value)):
            raise errors.Overflow(key)
        return {"value": value, **self.put(key, value, keep_ttl=True)}

    def expire(self, key: str, ttl: float | None) -> dict[str, Any]:
        return self.put(key, self.get(key)["value"], ttl)

    def list(self, prefix: str, after: str, limit: int, values: bool) -> dict[str, Any]:
        keys = [key for key in sorted(self.entries) if key.startswith(prefix) and key > after]
        items = [[key, self.entries[key][1], self.entries[key][0]] for key in keys[:limit]]
        return {
            "items": items if values else [item[:2] for item in items],
            "more": len(keys) > limit,
        }

    def count(self, prefix: str) -> dict[str, Any]:
        return {"count": sum(key.startswith(prefix) for key in self.entries)}

    def clear(self, prefix: str) -> dict[str, Any]:
        gone = [key for key in self.entries if key.startswith(prefix)]
        for key in gone:
            del self.entries[key]
        self.changed |= bool(gone)
        return {"count": len(gone)}

    def txn(self, then: Any, **more: Any) -> dict[str, Any]:
        guards = [dict(guard) for guard in more.get("if", ())]
        success = all(self.holds(guard.pop("key"), guard) for guard in guards)
        ops = [dict(one) for one in (then if success else more.get("else", ()))]
        return {"success": success, "results": [self.run(one.pop("op"), one) for one in ops]}


class Machine(RuleBasedStateMachine):
    """A store and the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.home = TemporaryDirectory(dir=MEMORY)
        self.folder = Path(self.home.name, "0")
        self.lives = 0
        self.torn = 0
        self.now = 1_795_377_851.25
        self.model = Model()
        self.open()

    def open(self) -> None:
        self.engine = LocalEngine(
            QuickDisk(self.folder), compactor=compaction.Inline, clock=lambda: self.now
        )
        self.service = Service(self.engine, "0")

    def teardown(self) -> None:
        with self.home:
            self.engine.close()

    def ask(self, op: str, **given: Any) -> None:
        """Asks both, and compares."""
        self.ask_all([(op, given)])

    def ask_all(self, requests: list[Request]) -> None:
        """Asks both for a batch. What changes nothing may be true of an older revision, when
        others in the batch, or keys that expire, have not been synced yet.
        """
        bodies = self.service.handle([protocol.encode_request(*one) for one in requests])
        unsynced = self.model.sweep(self.now) or len(requests) > 1
        for (op, given), body in zip(requests, bodies, strict=True):
            before, wanted, reply = (
                self.model.revision,
                self.model.answer(op, dict(given)),
                read(body),
            )
            if unsynced and wanted["revision"] == before >= reply["revision"]:
                reply["revision"] = before
            assert same(reply, wanted), (op, given, reply, wanted)

    @rule(request=WRITES | READS)
    def one(self, request: Request) -> None:
        self.ask_all([request])

    @rule(txn=TXNS)
    def txn(self, txn: dict[str, Any]) -> None:
        self.ask("txn", **txn)

    @rule(
        request=WRITES | st.tuples(st.just("txn"), TXNS),
        session=SESSIONS,
        step=st.integers(-1, 2),
        retry=st.booleans(),
    )
    def write_in_a_session(
        self, request: Request, session: str | bytes, step: int, retry: bool
    ) -> None:
        """Also what was done before, and what is out of date."""
        seq = max(1, self.model.sessions.get(session, (0, {}))[0] + step)
        self.ask(request[0], **request[1], session=session, seq=seq, retry=retry)

    @rule(prefix=PREFIXES, after=PREFIXES, limit=st.integers(1, 5), values=st.booleans())
    def list(self, **fields: Any) -> None:
        self.ask("list", **fields)

    @rule(prefix=PREFIXES)
    def count(self, prefix: str) -> None:
        self.ask("count", prefix=prefix)

    @rule(prefix=KEYS)
    def clear(self, prefix: str) -> None:
        self.ask("clear", prefix=prefix)

    @rule(requests=st.lists(WRITES | READS, min_size=2, max_size=6))
    def batch(self, requests: Any) -> None:
        self.ask_all(requests)

    @rule(seconds=st.floats(-1e6, 1e6))
    def the_clock_jumps(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def compact(self) -> None:
        compact(self.engine)

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.model.restart()
        self.open()

    @rule(torn=st.sampled_from([b"", b'{"rev":', b'\0\0\n{"rev":1}\n{"re', b'"}\n\n']))
    def crash(self, torn: bytes) -> None:
        """The process dies while it writes; what follows lives on a copy of its folder."""
        dead, self.lives = self.engine, self.lives + 1
        self.folder = Path(shutil.copytree(self.folder, Path(self.home.name, str(self.lives))))
        with max(self.folder.glob("journal-*.jsonl")).open("ab") as segment:
            segment.write(torn)
        self.torn += bool(torn)
        self.model.restart()
        self.open()
        dead.close()

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        self.ask("list", prefix="", after="", limit=100, values=True)

    @invariant()
    def what_was_torn_off_is_kept(self) -> None:
        assert len(list(self.folder.glob("*.torn-*"))) == self.torn


def read(body: bytes) -> dict[str, Any]:
    """The fields of a reply, in the model's order; of a failure, its code."""
    try:
        fields = protocol.decode_reply(body)
    except errors.Error as error:
        return {"error": error.code, "revision": error.details["revision"]}
    revision = fields.pop("revision")
    return {**dict(sorted(fields.items())), "revision": revision}


LONG = settings().max_examples > 1000

TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=20_000 if LONG else 200, stateful_step_count=100 if LONG else 50
)
