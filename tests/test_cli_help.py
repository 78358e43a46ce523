"""zkv-client help: what it says is what the server checks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import Run, one_sentence, run_client

from zkv.cli.arguments import COMMANDS
from zkv.errors import BY_CODE
from zkv.fields import ABSENT
from zkv.requests import ANY_ERRORS, OPS, SESSION_ERRORS

PROTOCOL = (Path(__file__).resolve().parent.parent / "zkv" / "PROTOCOL.md").read_text()


def helped(topic: str) -> str:
    ended = run_client("ipc:///nowhere", "help", topic)  # needs no server
    assert (ended.code, ended.err) == (0, b"")
    return ended.out.decode()


def rows(text: str, head: str) -> dict[str, str]:
    """The indented lines below a head."""
    found = re.search(rf"^{head}\n((?:  .*\n)*)", text, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    return {
        name: about.strip() for name, _, about in (line.strip().partition(" ") for line in lines)
    }


@pytest.mark.parametrize("op", OPS)
def test_an_operation_is_told_as_the_server_checks_it(op: str) -> None:
    text = helped(op)
    assert f"The operation {op} of the protocol: {OPS[op].about}\n" in text
    request = rows(text, "request")
    for name, field in OPS[op].fields.items():
        assert request[name].startswith(f"{field.kind}, ")
        assert field.about in request[name]
        assert ("required" in request[name].split(":")[0]) == field.required
        assert ("default: " in request[name]) == (field.default is not ABSENT)
    assert rows(text, "reply").keys() == OPS[op].replies.keys()
    session = SESSION_ERRORS if OPS[op].writes else ()
    assert list(rows(text, "errors")) == [*OPS[op].errors, *ANY_ERRORS, *session]


@pytest.mark.parametrize("op", OPS)
def test_the_errors_of_an_operation_are_those_of_the_protocol(op: str) -> None:
    assert set(OPS[op].errors) <= BY_CODE.keys()
    if op == "txn":  # those of its operations
        ops = {
            error for it in ("get", "put", "delete", "incr", "expire") for error in OPS[it].errors
        }
        assert set(OPS[op].errors) == ops
        return
    section = re.search(rf"^### `{op}`\n(.*?)^##", PROTOCOL, re.DOTALL | re.MULTILINE)
    assert section is not None
    said = re.search(r"^Errors: (.*?)\n\n", section[1], re.DOTALL | re.MULTILINE)
    codes = {code for code in re.findall(r"`(\w+)`", said[1] if said else "") if code in BY_CODE}
    assert set(OPS[op].errors) - {"no_space"} == codes


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_told_with_all_its_arguments(command: str) -> None:
    text = helped(command)
    assert text.startswith(f"{command}")
    assert COMMANDS[command].about in text
    for argument, settings in COMMANDS[command].arguments.items():
        names = argument.split() if argument.startswith("-") else [settings["metavar"]]
        assert all(name in text for name in names)
        assert settings.get("help", "") in text


def test_help_lists_all_there_is(run: Run) -> None:
    out = run("help").out.decode()
    assert re.findall(r"^  (\w+)  +\w", out, re.MULTILINE) == list(COMMANDS)
    assert out.endswith(f"  {' '.join(OPS)}\n")
    code, out_, err = run("help", "fly")
    assert (code, out_) == (1, b"")
    assert one_sentence(err)
