"""What mypy and an editor make of a user's code: the methods keep their types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

USER = """
import asyncio
import zkv
import zkv.aio

store = zkv.Client("zkv://127.0.0.1", timeout_s=1)
reveal_type(store.get("k"))                 # Any
reveal_type(store.put("k", 1, ttl=2.5))     # int
reveal_type(store.item("k"))                # zkv.plans.Item
reveal_type(store.item("k").version)        # int
reveal_type(store.incr("k"))                # int | float
reveal_type(store.keys("p"))                # Iterator[str]
reveal_type(store.items())                  # Iterator[zkv.plans.Item]
reveal_type(store.page(limit=3).more)       # bool
reveal_type(store.get_many(["a"]))          # dict[str, Any]
reveal_type(store.backup("folder", timeout_s=3))  # int
reveal_type(store.ping())                   # None
reveal_type(store.as_dict("p"))             # zkv.dict_view.DictView
with store.transaction() as block:
    reveal_type(block)                      # zkv.block.Block
    block.put("k", 1)
with zkv.open("folder") as local:
    reveal_type(local.count())              # int
store.put("k")                              # error: Too few arguments
store.put(1, 2)                             # error: incompatible type "int"; expected "str"
store.put("k", 1, tll=3)                    # error: Unexpected keyword argument "tll"
store.get("k", 1, 2)                        # error: Too many arguments

async def main() -> None:
    async with zkv.aio.Client() as client:
        reveal_type(await client.get("k"))              # Any
        reveal_type(await client.put("k", 1, ttl=2))    # int
        reveal_type(await client.item("k"))             # zkv.plans.Item
        reveal_type(client.keys("p"))                   # AsyncIterator[str]
        async for item in client.items():
            reveal_type(item)                           # zkv.plans.Item
        async with client.transaction() as block:
            reveal_type(block)                          # zkv.aio.Block
            block.incr("n")
        reveal_type(await client.get_many({"a"}))       # dict[str, Any]
        reveal_type(await client.backup("folder"))      # int
        await client.put("k")                           # error: Too few arguments
        client.get("k").upper()                         # error: has no attribute "upper"
        for key in client.keys():                       # error: has no attribute "__iter__"
            pass
"""


def test_a_users_code_is_checked_in_strict_mode(tmp_path: Path) -> None:
    """By the types in the package, which ships `py.typed`."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    said: dict[int, str] = {}
    for line, words in re.findall(r"^user\.py:(\d+): (?:note|error): (.*)$", done.stdout, re.M):
        said[int(line)] = said.get(int(line), "") + words
    assert said, done.stdout + done.stderr
    expected = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(USER.splitlines(), 1)
        if "  # " in line
    }
    assert set(said) == set(expected)
    for number, wanted in expected.items():
        found = re.sub(r"builtins\.|typing\.", "", said[number])
        found = re.sub(r"tuple\[[^\[\]]*fallback=([\w.]+)\]", r"\1", found)  # a NamedTuple
        if wanted.startswith("error: "):
            assert wanted.removeprefix("error: ") in found
        else:
            assert found == f'Revealed type is "{wanted}"'
