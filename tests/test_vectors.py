"""The test vectors for other languages, held with a real server.

`python tests/test_vectors.py` writes the hex of every request anew from its JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from harness import ServerProcess, ask, raw_socket, serving
from vectors import ANY, FILE, VECTORS, as_json, body, matches, unlike

from zkv.errors import BY_CODE
from zkv.requests import OPS

STEPS = [step for conversation in VECTORS for step in conversation["steps"]]
REQUESTS = [step["request"] for step in STEPS if "request" in step]
BEYOND_REACH = {"no_space", "unavailable", "internal"}
"""Codes of failures that nobody can bring about from outside."""


def hold(conversation: dict[str, Any], socket: zmq.Socket[bytes]) -> None:
    """Has a conversation with a server, and compares every reply."""
    for step in conversation["steps"]:
        time.sleep(step.get("wait", 0))
        reply = as_json(ask(socket, bytes.fromhex(step["send"])))
        assert not unlike(step, reply), (step, reply)


def written(vectors: list[dict[str, Any]]) -> str:
    """The vectors as a file: one member a line, and every `send` made from its `request`."""
    return "[\n" + ",\n".join(map(_conversation_written, vectors)) + "\n]\n"


def _conversation_written(conversation: dict[str, Any]) -> str:
    *head, (_, steps) = conversation.items()
    members = "".join(f" {_dumped(name)}: {_dumped(it)},\n" for name, it in head)
    return f'{{\n{members} "steps": [\n' + ",\n".join(map(_step_written, steps)) + "\n]}"


def _step_written(step: dict[str, Any]) -> str:
    if "request" in step:
        request = step["request"]
        rest = {name: it for name, it in step.items() if name not in ("request", "send")}
        step = {"request": request, "send": body(request).hex(), **rest}
    members = ",\n".join(f"  {_dumped(name)}: {_dumped(it)}" for name, it in step.items())
    return f" {{\n{members}\n }}"


def _dumped(member: Any) -> str:
    return json.dumps(member, ensure_ascii=False)


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zmq.Socket[bytes]]:
    """To one server for all of them, as for a client that tries itself out."""
    folder = tmp_path_factory.mktemp("vectors") / "data"
    with serving(folder) as server, raw_socket(zmq.REQ, server.endpoint) as socket:
        yield socket


@pytest.mark.parametrize("conversation", VECTORS, ids=lambda it: it["name"])
def test_the_server_keeps_to_the_vectors(
    conversation: dict[str, Any], socket: zmq.Socket[bytes]
) -> None:
    hold(conversation, socket)


def test_only_the_first_conversation_needs_an_empty_store(server: ServerProcess) -> None:
    """The others can be held in any order."""
    assert [bool(it.get("empty_store")) for it in VECTORS] == [True] + [False] * (len(VECTORS) - 1)
    with raw_socket(zmq.REQ, server.endpoint) as socket:
        for conversation in reversed(VECTORS[1:]):
            hold(conversation, socket)


def test_the_file_is_what_its_requests_make_of_it() -> None:
    assert written(VECTORS) == FILE.read_text()


def test_the_vectors_cover_every_op_and_every_field() -> None:
    for op, described in OPS.items():
        named = {name for it in REQUESTS if it.get("op") == op for name in it}
        assert described.fields.keys() <= named, op
    for field in ("id", "session", "seq", "retry"):
        assert any(field in it for it in REQUESTS), field


def test_the_vectors_cover_every_field_of_a_reply() -> None:
    for op, described in OPS.items():
        if op == "read_snapshot":  # there must be one first: see test_operators.py
            continue
        steps = [step for step in STEPS if step.get("request", {}).get("op") == op]
        for name in described.replies:
            for member in ("expect", "any", "between"):
                if any(name in step.get(member, ()) for step in steps):
                    break
            else:
                raise AssertionError(f"{op}: {name}")


def test_the_vectors_cover_every_error_that_can_be_provoked() -> None:
    provoked = {step["expect"]["error"] for step in STEPS if not step["expect"]["ok"]}
    assert provoked == BY_CODE.keys() - BEYOND_REACH


def test_a_vector_is_compared_to_the_type() -> None:
    """The comparison itself must not be Python's."""
    pairs = [(1, 1.0), (1, True), (0, False), (0.0, -0.0), ("1", 1), (None, False), ([], {})]
    for one, other in pairs:
        assert matches(one, one)
        assert not matches(one, other)
        assert not matches({"a": [one]}, {"a": [other]})
    assert matches({"a": [ANY]}, {"a": [{"b": 1}]})
    assert not matches([ANY], [])


def test_every_member_of_a_step_is_compared() -> None:
    step = {"expect": {"ok": True}, "any": ["id"], "between": {"ttl": [1, 2]}, "absent": ["old"]}
    good = {"ok": True, "id": 1, "ttl": 2, "more": 0}
    assert unlike(step, good) == []
    assert unlike(step, {**good, "ok": False, "ttl": 3, "old": 1}) == ["ok", "old", "ttl"]
    assert unlike(step, {}) == ["id", "ok", "ttl"]


if __name__ == "__main__":
    FILE.write_text(written(VECTORS))
