"""Any language with ZeroMQ and msgpack is a client: those that are there are tried."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exam import Report, examine, examined, losses
from languages import LANGUAGES, Language
from vectors import VECTORS

PYTHON = next(it for it in LANGUAGES if it.name == "Python")
STEPS = sum(len(it["steps"]) for it in VECTORS)


@pytest.fixture(autouse=True, scope="module")
def _python_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def reports() -> dict[str, Report | None]:
    """How each language did."""
    return {language.name: report for language, report in examined(LANGUAGES)}


def broken(program: str, right: str, wrong: str, named: str = "") -> list[str]:
    """What is found in Python when one line of its client, or of its conform, is wrong; its
    msgpack is tried on the conversation of that name.
    """
    source = (PYTHON.folder / f"{program}.py").read_text()
    assert source.count(right) == 1
    wrong_one = PYTHON._replace(**{program: ["python", "-c", source.replace(right, wrong)]})
    return examine(wrong_one, [it for it in VECTORS if it["name"] == named]).failures


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda it: it.name)
def test_a_language_keeps_to_the_vectors_and_counts_once(
    language: Language, reports: dict[str, Report | None]
) -> None:
    report = reports[language.name]
    if report is None:
        pytest.skip(f"{language.name} is missing ({language.advice})")
    assert report.failures == []
    assert report.passed + report.skipped == STEPS
    assert report.passed > report.skipped


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda it: it.name)
def test_an_example_begins_with_what_it_needs_and_how_it_is_run(language: Language) -> None:
    (client,) = (it for it in language.folder.iterdir() if it.stem.lower() == "client")
    head = client.read_text()[:400]
    assert f"{client.name} " in head
    assert "[tcp://127.0.0.1:5757]" in head
    for package in language.debian:
        assert f" {package}" in head, package


def test_a_client_that_counts_twice_is_found_out() -> None:
    found = broken("client", 'request["retry"] = True', 'request["seq"] = self.seq = self.seq + 1')
    assert "incr visits: 3" in found[0]


def test_a_client_that_does_not_ask_again_is_found_out() -> None:
    assert "no reply" in broken("client", "250, 500, 1000, 2000, 4000", "(250,)")[0]


def test_a_loss_that_nobody_knew_is_found_out() -> None:
    found = broken("conform", "data, timestamp=0,", "data, raw=False, timestamp=3,", "values")
    assert any("not known to be lost: " in it for it in found)


def test_a_loss_that_is_only_said_is_found_out() -> None:
    found = examine(PYTHON._replace(loses={"another float": "it is said"}), VECTORS[:1]).failures
    assert found == ["said to be lost, but is not: another float"]


def test_a_reply_that_is_not_as_promised_is_found_out() -> None:
    other = 'socket.send(data.replace(b"return_old", b"keep_ttl"))'
    found = broken("conform", "socket.send(data)", other, "old-values")
    assert any("not as promised" in it for it in found)


def test_a_program_that_dies_is_found_out() -> None:
    found = broken("conform", "socket.send(data)", 'sys.exit("no more")', "put-get")
    assert found == ["conform ended: no more"]
    (found,) = broken("conform", "import platform", "import no_such_module")
    assert "No module named 'no_such_module'" in found


@pytest.mark.parametrize(
    ("sent", "kept", "name"),
    [
        (b"a", "a", "bin becomes str"),
        (1.0, 1, "float becomes int"),
        ({}, [], "map becomes array"),
        (-0.0, 0.0, "another float"),
        (2**64 - 1, 2**53, "another int"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "order of a map"),
        ({1: 0}, {"1": 0}, "int becomes str"),
        ([1, 2], [1], "another array"),
        ({"a": 1, b"a": 2}, {"a": 2}, "another map"),
    ],
)
def test_each_kind_of_loss_has_a_name(sent: Any, kept: Any, name: str) -> None:
    assert [*losses({"value": sent}, {"value": kept})] == [name]
    assert [*losses(sent, sent)] == []
