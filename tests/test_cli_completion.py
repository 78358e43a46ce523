"""zkv-client completion: the shells themselves complete, with the script that it prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from command_line import Run, environment, run_client
from harness import EXIT_S

import zkv
from zkv.cli.arguments import COMMANDS
from zkv.cli.completion import KEYS_MAX

COMMAND_NAMES = sorted(COMMANDS)


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A folder where zkv-client is, as a PATH has it."""
    script = tmp_path / "zkv-client"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m zkv.cli "$@"\n')
    script.chmod(0o755)
    return str(tmp_path)


BASH = r"""
eval "$(zkv-client completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_zkv_client
printf '%s\n' "${COMPREPLY[@]}"
"""

FISH = r"""
zkv-client completion fish | source
complete -C"$argv[1]" | string replace -r '\t.*' ''
"""


def offered(shell: str, program: str, endpoint: str, typed: str) -> list[str]:
    """What a shell offers at the end of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, so nobody knows whether its completion works")
    options = [BASH, "bash"] if shell == "bash" else [FISH]
    before = os.environ["PATH"]
    ended = subprocess.run(
        [shell, "-c", *options, typed],
        env=environment(endpoint) | {"PATH": f"{program}:{before}", "HOME": program},
        capture_output=True,
        timeout=2 * EXIT_S,
        check=False,
        text=True,
    )
    assert ended.stderr == ""
    return sorted(ended.stdout.split("\n")[:-1])


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes(shell: str, program: str, store: zkv.Client, tmp_path: Path) -> None:
    def complete(typed: str) -> list[str]:
        return offered(shell, program, store.endpoint, f"zkv-client {typed}")

    store.put_many({"key/1": 1, "key/2": 2, "other": 3})
    assert complete("") == COMMAND_NAMES
    assert complete("co") == ["compact", "completion", "count"]
    assert complete("get key/") == ["key/1", "key/2"]
    assert complete("put --ttl 5 key/") == ["key/1", "key/2"]
    assert complete("list --after o") == ["other"]
    assert complete("dump --prefix ke") == ["key/1", "key/2"]
    assert complete("put key/1 --t") == ["--text", "--timeout", "--ttl"]
    assert complete("stat --in") == ["--interval"]
    assert complete("completion ") == ["bash", "fish", "zsh"]
    assert complete("help in") == ["incr", "info"]
    (tmp_path / "copy of it").mkdir()
    (tmp_path / "data.jsonl").touch()
    assert complete(f"load {tmp_path}/dat") == [f"{tmp_path}/data.jsonl"]


def test_bash_is_offered_what_follows_the_last_colon(program: str, store: zkv.Client) -> None:
    store.put_many({"user:1:name": 1, "user:1:age": 2})
    line = "zkv-client get user:1:"
    assert offered("bash", program, store.endpoint, line) == ["age", "name"]


def test_bash_is_offered_keys_that_it_reads_as_one_word(program: str, store: zkv.Client) -> None:
    store.put_many({"a b": 1, "a$c": 2, 'a"\n': 3, "a'ö": 4})
    found = offered("bash", program, store.endpoint, "zkv-client get a")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {' '.join(found)}"],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert sorted(words.stdout.splitlines()) == ["a b", "a$c", "a'ö"]


def test_the_keys_are_those_of_the_endpoint_on_the_line(
    program: str, store: zkv.Client, tmp_path: Path
) -> None:
    store.put("k", 1)
    nobody = f"ipc://{tmp_path}/nobody"
    for given in (f"--endpoint {store.endpoint}", f"--endpoint={store.endpoint}"):
        assert offered("bash", program, nobody, f"zkv-client {given} get ") == ["k"]


def test_no_server_and_many_keys_are_bounded(
    program: str, store: zkv.Client, tmp_path: Path
) -> None:
    store.put_many({f"k{number:04}": None for number in range(KEYS_MAX + 1)})
    assert len(offered("bash", program, store.endpoint, "zkv-client get k")) == KEYS_MAX
    nobody = f"ipc://{tmp_path}/nobody"
    assert offered("bash", program, nobody, "zkv-client get k") == [""]


def test_a_real_bash_completes_on_a_terminal(program: str, store: zkv.Client) -> None:
    store.put("user:42", "found")
    before = os.environ["PATH"]
    bash = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile"],
        env=environment(store.endpoint)
        | {"PATH": f"{program}:{before}", "PS1": "ready ", "TERM": "dumb"},
        timeout=EXIT_S,
    )
    bash.expect_exact("ready ")
    bash.sendline('eval "$(zkv-client completion bash)"')
    bash.expect_exact("ready ")
    bash.send("zkv-client get user:\t\r")
    bash.expect_exact("found")
    bash.close(force=True)


def test_a_real_zsh_completes_on_a_terminal(program: str, store: zkv.Client) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed, so nobody knows whether its completion works")
    store.put("user:42 it's", "found")
    before = os.environ["PATH"]
    zsh = pexpect.spawn(
        "zsh",
        ["-f"],
        env=environment(store.endpoint)
        | {"PATH": f"{program}:{before}", "PS1": "ready ", "TERM": "dumb", "HOME": program},
        timeout=EXIT_S,
    )
    zsh.expect_exact("ready ")
    zsh.sendline("autoload -U compinit && compinit -D && source <(zkv-client completion zsh)")
    zsh.expect_exact("ready ")
    zsh.send("zkv-client ge\tuser:\t\r")
    zsh.expect_exact("found")
    zsh.expect_exact("ready ")
    zsh.send("zkv-client put k 1 --tex\t&& zkv-client count --jsonl\r")
    zsh.expect_exact('{"count":2}')
    zsh.close(force=True)


def test_every_shell_has_a_script(run: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        ended = run_client("ipc:///nowhere", "completion", shell)  # needs no server
        assert (ended.code, ended.err) == (0, b"")
        assert all(name.encode() in ended.out for name in COMMANDS)
        assert not re.search(rb"@[A-Z]+@", ended.out)
