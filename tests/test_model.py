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

Request = tuple[str, dict[str, Any]]
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.tuples(st.just("get"), st.fixed_dictionaries({"key": KEYS})),
    st.tuples(st.just("put"), st.fixed_dictionaries({"key": KEYS, "value": VALUES})),
    st.tuples(st.just("delete"), st.fixed_dictionaries({"key": KEYS})),
    st.tuples(st.just("count"), st.fixed_dictionaries({"prefix": PREFIXES})),
)
"""What may stand in a batch. The other operations have rules only."""


class Model:
    """Keys with values and versions; `answer` gives the reply that a store must give."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Any, int]] = {}
        self.revision = 0

    def answer(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of the reply; of a failure, its code."""
        before = dict(self.entries)
        try:
            reply: dict[str, Any] = getattr(self, op)(**fields)
        except errors.RequestError as error:
            self.entries = before
            reply = {"error": error.code}
        if self.entries.keys() != before.keys() or any(
            version > self.revision for _, version in self.entries.values()
        ):
            self.revision += 1
        return {**dict(sorted(reply.items())), "revision": self.revision}

    def get(self, key: str) -> dict[str, Any]:
        if key not in self.entries:
            raise errors.NotFound(key)
        value, version = self.entries[key]
        return {"value": value, "version": version}

    def put(self, key: str, value: Any) -> dict[str, Any]:
        self.entries[key] = value, self.revision + 1
        return {"version": self.revision + 1}

    def delete(self, key: str) -> dict[str, Any]:
        version = self.get(key)["version"]
        del self.entries[key]
        return {"version": version}

    def incr(self, key: str, by: Any, initial: Any) -> dict[str, Any]:
        value = self.entries[key][0] if key in self.entries else initial
        if type(value) not in (int, float):
            raise errors.WrongType(key)
        value += by
        if not (-(2**63) <= value < 2**64 if type(value) is int else math.isfinite(value)):
            raise errors.Overflow(key)
        return {"value": value, **self.put(key, value)}

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
        return {"count": len(gone)}


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

    def ask(self, op: str, **fields: Any) -> None:
        """Asks both, and compares."""
        self.ask_all([(op, fields)])

    def ask_all(self, requests: list[Request]) -> None:
        """Asks both for a batch. What changes nothing in it may be true of an older revision."""
        bodies = self.service.handle([protocol.encode_request(*one) for one in requests])
        for (op, fields), body in zip(requests, bodies, strict=True):
            before, wanted, reply = self.model.revision, self.model.answer(op, fields), read(body)
            if len(requests) > 1 and wanted["revision"] == before >= reply["revision"]:
                reply["revision"] = before
            assert same(reply, wanted), (op, fields, reply, wanted)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        self.ask("get", key=key)

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: Any) -> None:
        self.ask("put", key=key, value=value)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.ask("delete", key=key)

    @rule(key=KEYS, by=NUMBERS, initial=NUMBERS)
    def incr(self, key: str, by: Any, initial: Any) -> None:
        self.ask("incr", key=key, by=by, initial=initial)

    @rule(prefix=PREFIXES, after=PREFIXES, limit=st.integers(1, 5), values=st.booleans())
    def list(self, **fields: Any) -> None:
        self.ask("list", **fields)

    @rule(prefix=PREFIXES)
    def count(self, prefix: str) -> None:
        self.ask("count", prefix=prefix)

    @rule(prefix=KEYS)
    def clear(self, prefix: str) -> None:
        self.ask("clear", prefix=prefix)

    @rule(requests=st.lists(REQUESTS, min_size=2, max_size=6))
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
        self.open()

    @rule(torn=st.sampled_from([b"", b'{"rev":', b'\0\0\n{"rev":1}\n{"re', b'"}\n\n']))
    def crash(self, torn: bytes) -> None:
        """The process dies while it writes; what follows lives on a copy of its folder."""
        dead, self.lives = self.engine, self.lives + 1
        self.folder = Path(shutil.copytree(self.folder, Path(self.home.name, str(self.lives))))
        with max(self.folder.glob("journal-*.jsonl")).open("ab") as segment:
            segment.write(torn)
        self.torn += bool(torn)
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
