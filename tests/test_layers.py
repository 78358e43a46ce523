"""The import ladder: a module imports only from rows below its own, so there are no circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "zkv"

ROWS = (
    {"bar", "errors", "logs", "places", "turns", "unread"},
    {"connections", "engines.lock", "loading", "signals", "values"},
    {"engines.clock", "engines.disk", "engines.line"},
    {"fields", "transaction", "engines.space", "engines.watermark"},
    {"arguments"},
    {"requests"},
    {"protocol"},
    {"operations", "engines.sessions"},
    {"engines.table"},
    {"engines.journal", "engines.snapshot"},
    {"engines", "engines.recovery", "engines.compaction", "engines.repair"},
    {"engines.local"},
    {"service", "server", "backup", "block", "endpoint"},
    {"plans", "exchange", "zmtp"},
    {"dict_view", "dealer"},
    {"store"},
    {"client", "embedded"},
    {"aio"},
    {""},
    {"__main__", "cli"},
)
"""Lowest first. `engines` is its contract, in __init__; "" is the package's own __init__."""

NO_ZKV = {"server", "connections", "turns", "unread"}
"""Know nothing of what is in a message, and nothing but each other."""

STRANGERS = ({"protocol"}, {"engines"})
"""Neither may use the other's words."""


def modules() -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found.append(name)
    return found


def row_of(module: str) -> int:
    if module.startswith("cli."):
        module = "cli"
    return next(row for row, names in enumerate(ROWS) if module in names)


def imports_of(module: str) -> set[str]:
    path = PACKAGE.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "zkv":
            base = (node.module or "").removeprefix("zkv").removeprefix(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".strip(".")
                found.add(below if below in modules() else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("zkv.") for a in node.names if a.name.startswith("zkv")}
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_only_from_rows_below(module: str) -> None:
    imported = imports_of(module)
    if module in NO_ZKV:
        assert imported <= NO_ZKV
    for below in imported:
        if {module.split(".")[0], below.split(".")[0]} == {"cli"}:
            continue
        assert row_of(below) < row_of(module), f"{module} imports {below}"


def test_protocol_and_engines_are_strangers() -> None:
    for module in modules():
        family = module.split(".")[0]
        for these, those in (STRANGERS, STRANGERS[::-1]):
            if family in these:
                assert not {name.split(".")[0] for name in imports_of(module)} & those
