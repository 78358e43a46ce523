"""Examines languages: the test vectors by its own libraries, and its example client on a
network that loses replies. Nothing of zkv is between the language and the server.

For each step of a vector the language's msgpack reads the request and writes it again; if it
is the same request still, that is what the language's ZeroMQ sends. The reply must be as
promised, and must come through the language's msgpack as well. What a msgpack cannot keep is
not held against it if the loss is known (`Language.loses`): such a step is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgpack
import zmq
from harness import ask, raw_socket, serving
from languages import LANGUAGES, Language
from relay import Relay
from vectors import VECTORS, as_json, matches, unlike

from zkv import values

COLUMNS: Final = "{:<11} {:>6} {:>7} {:>6}  {}"
LIMIT_S: Final = 60
"""For each program of a language. One that hangs longer is ended."""

AT_A_TIME: Final = 3
"""Languages; each mostly waits, for disks and for replies that do not come."""

REQUESTS: Final = 6
"""What an example client asks for, the opening of its session counted."""


def main(names: Sequence[str]) -> int:
    """Examines those of these languages that are there, and prints a table."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    chosen = [it for it in LANGUAGES if it.name in names]
    reports: list[tuple[Language, Report]] = []
    print(COLUMNS.format("language", "passed", "skipped", "failed", "with"), flush=True)
    for language, report in examined(chosen):
        if report is None:
            print(f"{language.name:<11} SKIPPED, not there: {language.advice}", flush=True)
        else:
            reports.append((language, report))
            counts = report.passed, report.skipped, len(report.failures)
            print(COLUMNS.format(language.name, *counts, report.about), flush=True)
    for language, report in reports:
        _explain(language, report)
    if any(report.failures for _, report in reports):
        return 1
    if reports:
        print("\nEach client printed this, though the first reply to each request was lost:\n")
        print(reports[0][1].printed, end="")
    return 0


@dataclass
class Report:
    """How a language did: how many steps passed, how many it cannot say, and what was wrong."""

    about: str = ""
    passed: int = 0
    skipped: int = 0
    losses: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    printed: str = ""
    """By the example client."""


def examined(languages: Sequence[Language]) -> Iterator[tuple[Language, Report | None]]:
    """Each language with how it did, or None where it is not there; some at a time."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        reports = pool.map(lambda it: examine(it) if it.is_there() else None, languages)
        yield from zip(languages, reports, strict=True)


def examine(language: Language, vectors: Sequence[dict[str, Any]] = VECTORS) -> Report:
    """Builds the programs of a language, and runs them with a server of their own."""
    report = Report()
    with (
        tempfile.TemporaryDirectory() as out,
        serving(Path(out) / "data", *language.server) as server,
    ):
        try:
            for command in language.build:
                _run(language, command, out)
            with Peer(language, out, server.endpoint) as peer:
                report.about = peer.about()
                for conversation in vectors:
                    _converse(peer, conversation, report)
            report.printed = _demonstrate(language, out, server.endpoint)
        except Failed as failure:
            report.failures.append(str(failure))
        else:
            report.failures += _misjudged(language, report)
    return report


class Failed(Exception):
    """A program of the language did not do what it should; says what."""


class Peer:
    """The `conform` program of a language, which does what it is told, a line at a time."""

    def __init__(self, language: Language, out: str, endpoint: str) -> None:
        self._log = Path(out) / "conform.log"
        command = [*_filled(language.conform, out), endpoint]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=language.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip
        self._ender = threading.Timer(LIMIT_S, self._process.kill)
        self._ender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ender.cancel()
        self._process.kill()
        self._process.communicate()

    def about(self) -> str:
        """What it says of itself; to be asked first, and once."""
        return self._line()

    def pack(self, packed: bytes) -> bytes | str:
        """The same, read and written by the language's msgpack; a str says why it is not."""
        reply = self._told("pack", packed)
        return reply[2:] if reply.startswith("!") else bytes.fromhex(reply)

    def send(self, body: bytes) -> bytes:
        """The server's reply to a body, by the language's ZeroMQ."""
        reply = self._told("send", body)
        if reply.startswith("!"):
            raise Failed(f"conform: {reply}")
        return bytes.fromhex(reply)

    def _told(self, verb: str, given: bytes) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{verb} {given.hex()}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: reading says so
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"conform ended: {self._log.read_text(errors='replace').strip()}")
        return line.strip()


def losses(sent: Any, kept: Any) -> Iterator[str]:
    """What of a value is no longer as it was."""
    if type(sent) is not type(kept):
        yield f"{_KINDS[type(sent)]} becomes {_KINDS[type(kept)]}"
    elif type(sent) is list and len(sent) == len(kept):
        for one, other in zip(sent, kept, strict=True):
            yield from losses(one, other)
    elif type(sent) is dict and len(sent) == len(kept):
        keys, others = [values.pack(key) for key in sent], [values.pack(key) for key in kept]
        if sorted(keys) != sorted(others):
            yield from losses([*sent], [*kept])
            return
        if keys != others:
            yield "order of a map"
        by_key = dict(zip(others, kept.values(), strict=True))
        for key, one in zip(keys, sent.values(), strict=True):
            yield from losses(one, by_key[key])
    elif values.pack(sent) != values.pack(kept):
        yield f"another {_KINDS[type(sent)]}"


def _converse(peer: Peer, conversation: dict[str, Any], report: Report) -> None:
    """Has a conversation with the server, step by step."""
    for number, step in enumerate(conversation["steps"], 1):
        time.sleep(step.get("wait", 0))
        asked = bytes.fromhex(step["send"])
        # Without a request it is not msgpack, or not as anybody would write it.
        written = _through(peer, asked, report) if "request" in step else asked
        reply = peer.send(asked if written is None else written)
        fields = as_json(values.unpack(reply))
        if wrong := unlike(step, fields):
            place = f"{conversation['name']}, step {number}"
            report.failures.append(f"{place}: not as promised: {', '.join(wrong)} in {fields}")
        elif written is None or _through(peer, reply, report) is None:
            report.skipped += 1
        else:
            report.passed += 1


def _through(peer: Peer, packed: bytes, report: Report) -> bytes | None:
    """What the language's msgpack makes of a message, if that still says the same."""
    written = peer.pack(packed)
    if isinstance(written, str):
        report.losses.add(written)
        return None
    try:
        sent, kept = values.unpack(packed), values.unpack(written)
    except UnicodeDecodeError:
        report.losses.add("bin becomes str, not in UTF-8")
        return None
    except ValueError as error:
        report.losses.add(f"no value any more: {error}")
        return None
    report.losses.update(losses(sent, kept))
    return written if matches(as_json(sent), as_json(kept)) else None


def _misjudged(language: Language, report: Report) -> list[str]:
    """Losses that are not known, and known ones that did not show."""
    unknown = [f"not known to be lost: {it}" for it in sorted(report.losses - {*language.loses})]
    return unknown + [
        f"said to be lost, but is not: {it}" for it in language.loses if it not in report.losses
    ]


def _demonstrate(language: Language, out: str, endpoint: str) -> str:
    """Runs the example client where the first reply to each request is lost."""
    incr = {"op": "incr", "key": "visits"}
    with raw_socket(zmq.REQ, endpoint) as socket:
        before = ask(socket, incr)["value"]
        arrived = ask(socket, {"op": "info"})["counters"]["requests"]["incr"]
        with Relay(endpoint, lost=0, seed=0, first_lost=True) as relay:
            printed = _run(language, [*language.client, relay.endpoint], out)
        again = ask(socket, {"op": "info"})["counters"]["requests"]["incr"] - arrived
        user, nobody = (ask(socket, {"op": "get", "key": key}) for key in ("user:1", "nobody"))
    wanted = f"""\
put user:1: version {user["version"]}
get user:1: Ada speaks en, fr
put user:1 if version 0: conflict, it has version {user["version"]}
incr visits: {before + 1}
get nobody: {nobody["error"]}, {nobody["message"]}
"""
    if printed != wanted:
        raise Failed(f"client printed\n{printed}instead of\n{wanted}")
    if relay.dropped < REQUESTS or again < 2:
        raise Failed(f"client: {relay.dropped} replies lost, incr sent {again} times")
    return printed


def _explain(language: Language, report: Report) -> None:
    """Why steps were skipped, and what failed."""
    if report.losses or report.failures:
        print(f"\n{language.name}")
    for loss in sorted(report.losses):
        print(f"  {loss}: {language.loses.get(loss, 'not known')}")
    for failure in report.failures:
        print(f"  FAILED: {failure}")


def _run(language: Language, command: Sequence[str], out: str) -> str:
    """What a program of the language prints; raises Failed if it does not end well."""
    try:
        done = subprocess.run(
            _filled(command, out), cwd=language.folder, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)}: not done within {LIMIT_S} s") from None
    if done.returncode:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _filled(command: Sequence[str], out: str) -> list[str]:
    return [part.replace("{out}", out) for part in command]


_KINDS: Final = {
    type(None): "nil", bool: "bool", int: "int", float: "float", str: "str", bytes: "bin",
    list: "array", dict: "map", msgpack.Timestamp: "timestamp", msgpack.ExtType: "ext",
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
