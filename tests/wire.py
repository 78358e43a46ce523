"""A store in this process, asked in the words of the wire, on a clock that the test turns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Self

import msgpack
from harness import wait_until

from zkv.engines import compaction
from zkv.engines.disk import Disk
from zkv.engines.local import LocalEngine
from zkv.service import Service

Reply = dict[str, Any]


class Wire:
    """`wire("get", key="a")` is a request as a map and its reply as a map.

    A field that is a keyword of Python gets an underscore behind it: `if_`, `else_`.
    """

    def __init__(self, folder: Path) -> None:
        self.now = 1_795_377_851.25
        self.folder = folder
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def __call__(self, op: str, **fields: Any) -> Reply:
        return decoded(self.send(op, **fields))

    def send(self, op: str, **fields: Any) -> bytes:
        """The reply as it leaves the server."""
        return self.service.handle([request(op, **fields)])[0]

    def state(self) -> list[Any]:
        """All keys with their versions and values."""
        items: list[Any] = self("list", values=True)["items"]
        return items

    def go_on(self) -> None:
        """Nothing happens: what a test compares the others with."""

    def restart(self, after_s: float = 0) -> None:
        """Closes the store and opens it again, so much later."""
        self.engine.close()
        self.now += after_s
        self._open()

    def crash(self, after_s: float = 0) -> None:
        """The process dies; what follows lives on a copy of its folder."""
        dead, died, home = self.engine, self.folder, self.folder.parent
        self.folder = Path(shutil.copytree(died, home / f"life-{len(list(home.iterdir()))}"))
        dead.close()
        self.now += after_s
        self._open()

    def compact(self) -> None:
        """Makes one snapshot of everything, while the store goes on."""
        revision = self.engine.revision
        if self.engine.info()["snapshot_revision"] < revision:
            self.engine.compact()
            wait_until(lambda: self.engine.info()["snapshot_revision"] >= revision)

    def journal(self) -> list[dict[str, Any]]:
        """The lines of the journal, without headers and footers."""
        return [fields for fields in self._lines("journal") if "time" in fields]

    def snapshot(self) -> list[dict[str, Any]]:
        """The lines of the snapshot, without header and footer."""
        return self._lines("snapshot")[1:-1]

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        files = sorted(self.folder.glob(f"{kind}-*.jsonl"))
        return [
            json.loads(line)
            for file in files
            for line in file.read_bytes().rstrip(b" ").splitlines()
        ]

    def _open(self) -> None:
        self.engine = LocalEngine(
            Disk(self.folder), clock=lambda: self.now, compactor=compaction.Inline
        )
        self.service = Service(self.engine, "0")


def request(op: str, **fields: Any) -> bytes:
    """The body of a request."""
    body: bytes = msgpack.packb({"op": op, **{name.rstrip("_"): it for name, it in fields.items()}})
    return body


def decoded(body: bytes) -> Reply:
    """The fields of a reply."""
    reply: Reply = msgpack.unpackb(body, timestamp=0, strict_map_key=False)
    return reply


def op(name: str, key: str, **fields: Any) -> dict[str, Any]:
    """One request inside a txn."""
    return {"op": name, "key": key, **{field.rstrip("_"): it for field, it in fields.items()}}
