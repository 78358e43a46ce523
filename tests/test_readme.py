"""The README claims nothing that is not so: its examples are run, its output is compared."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import ServerProcess, serving

import zkv

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ENDPOINT = "tcp://127.0.0.1:5757"


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def steady(text: str) -> str:
    """The text without what differs from run to run."""
    text = re.sub(r'"time":"[^"]*"', '"time":"…"', text)
    text = re.sub(r'"session":\["[^"]*"', '"session":["…"', text)
    return re.sub(r'"crc":"[^"]*"', '"crc":"…"', re.sub(r"\d+\.\d+ s\b", "… s", text))


@pytest.fixture
def examples(server: ServerProcess, tmp_path: Path) -> dict[str, Any]:
    """What the Python of the README defines, run against a server."""
    names: dict[str, Any] = {}
    for block in blocks("python"):
        source = block.replace(ENDPOINT, server.endpoint).replace("./my-data", f"{tmp_path}/my")
        exec(compile(source, "README.md", "exec"), names)
    return names


def test_the_python_example_does_what_its_comments_say(examples: dict[str, Any]) -> None:
    store = examples["store"]
    assert store.get("user:1") == {"name": "Ada", "photo": b"\x89PNG"}
    assert list(store.keys("job")) == ["job:1", "jobs:done"]
    assert store.get("job:1") == "done"
    assert list(examples["users"]) == ["1", "2", "3"]
    store.close()


def test_the_asyncio_example_awaits_the_same_methods(examples: dict[str, Any]) -> None:
    assert asyncio.run(examples["main"]()) == ["user:1", "user:2", "user:3", "user:4"]
    assert examples["store"].get("visits") == 1
    examples["store"].close()


def test_a_fencing_token_lets_only_the_holder_write(examples: dict[str, Any]) -> None:
    acquire, write, release = (examples[name] for name in ("acquire", "write", "release"))
    store = examples["store"]
    token = acquire(store, "disk", "a", ttl=60)
    with pytest.raises(zkv.Conflict):
        acquire(store, "disk", "b", ttl=60)
    write(store, "disk", token, "disk/owner", "a")
    release(store, "disk", token)
    later = acquire(store, "disk", "b", ttl=60)
    with pytest.raises(zkv.Conflict):
        write(store, "disk", token, "disk/owner", "a, too late")
    assert store.get("disk/owner") == "a"
    assert later > token
    store.close()


def test_one_leads_until_the_lease_is_over(examples: dict[str, Any]) -> None:
    store, lead = examples["store"], examples["lead"]
    assert [lead(store, who, ttl=60) for who in ("a", "b", "a")] == [True, False, True]
    store.delete("leader")  # as if it had expired
    assert [lead(store, who, ttl=60) for who in ("b", "a")] == [True, False]
    store.close()


def test_a_job_comes_back_when_its_worker_dies(examples: dict[str, Any]) -> None:
    store, take, done = examples["store"], examples["take"], examples["done"]
    store.put_many({"todo/1": "first", "todo/2": "second"})
    first, lost = take(store, "a", ttl=60)
    listed = list(store.items("todo/"))
    second, token = take(store, "b", ttl=60)
    assert [first.value, second.value] == ["first", "second"]
    assert take(store, "c", ttl=60) is None
    done(store, second, token)
    store.delete("claim/todo/1")  # as if a's claim had expired
    again, token = take(store, "c", ttl=60)
    assert again.key == first.key
    with pytest.raises(zkv.Conflict):
        done(store, first, lost)
    done(store, again, token)
    assert store.count("todo/") == store.count("claim/") == 0
    late = SimpleNamespace(items=lambda prefix: iter(listed), transaction=store.transaction)
    assert take(late, "d", ttl=60) is None  # what it saw in the list has been done since
    assert store.count("claim/") == 0
    store.close()


def test_every_recipe_is_short() -> None:
    for block in blocks("python")[2:]:
        assert len(block.strip().splitlines()) < 18


def test_the_terminal_shows_what_the_readme_shows(tmp_path: Path) -> None:
    if "iso_codes" in README and not Path("/usr/share/iso-codes").is_dir():
        pytest.skip("iso-codes is not installed: apt-get install iso-codes")
    scripts = Path(sys.executable).parent
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    with serving(tmp_path / "zkv-data") as server:
        environment = {
            **os.environ,
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "ZKV_ENDPOINT": server.endpoint,
        }
        for block in blocks("console"):
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                done = subprocess.run(
                    ["sh", "-c", f"{{ {command}\n}} 2>&1"],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert steady(done.stdout) == steady(shown), command


def test_the_javascript_example_runs(server: ServerProcess, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    install = subprocess.run(
        ["npm", "install", "--silent", "--prefix", tmp_path, "zeromq", "@msgpack/msgpack"],
        capture_output=True,
        text=True,
        check=False,
    )
    if install.returncode:
        pytest.skip(f"npm could not install zeromq: {install.stderr[:200]}")
    script = tmp_path / "example.mjs"
    script.write_text(blocks("js")[0].replace(ENDPOINT, server.endpoint) + "\nsocket.close();\n")
    done = subprocess.run(
        ["node", script], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    assert f"```\n{done.stdout}```" in README
