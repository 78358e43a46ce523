"""The test vectors for other languages, and how a reply is compared. PROTOCOL.md describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from zkv import values

FILE: Final = Path(__file__).with_name("vectors.json")
VECTORS: Final[list[dict[str, Any]]] = json.loads(FILE.read_text())
ANY: Final = {"$any": True}


def body(request: Any) -> bytes:
    """The msgpack of a request that is given as tagged JSON."""
    return values.pack(values.from_json(request))


def as_json(value: Any) -> Any:
    """A value as tagged JSON."""
    return msgspec.to_builtins(values.to_json(value))


def matches(wanted: Any, got: Any) -> bool:
    """Whether tagged JSON is what is wanted, to the type and the sign of zero."""
    if wanted == ANY:
        return True
    if type(wanted) is dict and type(got) is dict:
        return wanted.keys() == got.keys() and all(matches(it, got[n]) for n, it in wanted.items())
    if type(wanted) is list and type(got) is list:
        return len(wanted) == len(got) and all(map(matches, wanted, got))
    return repr(wanted) == repr(got)


def unlike(step: dict[str, Any], reply: dict[str, Any]) -> list[str]:
    """The fields in which a reply, as tagged JSON, is not what the step promises."""
    wanted, between = step["expect"], step.get("between", {})
    missing = {*wanted, *between, *step.get("any", ())} - reply.keys()
    wrong = {name for name, it in wanted.items() if name in reply and not matches(it, reply[name])}
    for name in between.keys() & reply.keys():
        least, most = between[name]
        if not least <= reply[name] <= most:
            wrong.add(name)
    return sorted(missing | wrong | (reply.keys() & {*step.get("absent", ())}))
