"""The bench works: it measures, and says what. How fast anything is, no test judges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
LIMIT_S = 60

pytest.importorskip("redis", reason="redis-py is missing (pip install zkv[bench])")
if not shutil.which("redis-server"):
    pytest.skip("redis-server is missing (apt-get install redis-server)", allow_module_level=True)


def run(tool: str, *options: str | Path, path: str | None = None) -> str:
    return subprocess.run(
        [sys.executable, TOOLS / tool, *options],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        env={**os.environ, "PATH": path} if path else None,
    ).stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """A quick bench: its JSON file, what it printed, and what the file holds."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    only = ("--only", "get-8", "put-always-8")
    printed = run("bench.py", "--quick", *only, "--json", path)
    return path, printed, json.loads(path.read_text())


def test_the_json_has_the_figures(measured: tuple[Path, str, dict[str, Any]]) -> None:
    _, _, results = measured
    assert results["quick"] is True
    assert results["rounds"] == 1
    assert results["skipped"] == {}
    assert list(results["works"]) == ["get-8", "put-always-8"]
    for work in results["works"].values():
        assert work["against"] == "redis"
        assert {"requests_per_s", "p50_us", "p99_us", "p99.9_us"} < set(work["figures"])
        for name, one in work["figures"].items():
            assert one["rounds"].keys() == {"zkv", "peer"}
            if name != "server_cpu_us":  # in ticks of 10 ms, so it may be 0
                assert one["zkv"] > 0
                assert one["peer"] > 0
                assert one["ratio_min"] <= one["ratio"] <= one["ratio_max"]


def test_the_table_names_each_work(measured: tuple[Path, str, dict[str, Any]]) -> None:
    _, printed, _ = measured
    assert "get-8: 8 clients, get 100 B" in printed
    assert "put-always-8: " in printed


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    only = ("--only", "get-8", "echo-50x1")
    printed = run("bench.py", "--quick", *only, "--json", path, path="/nonexistent")
    assert "get-8: SKIPPED: redis-server is missing" in printed
    results = json.loads(path.read_text())
    assert results["works"] == {}
    assert results["skipped"].keys() == {"get-8", "echo-50x1"}


def test_compaction_is_judged_by_what_it_does_to_zkv_itself(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    run("bench.py", "--quick", "--only", "compaction", "--json", path)
    figures = json.loads(path.read_text())["works"]["compaction"]["figures"]
    for percent in "p99", "p99.9":
        for side in "zkv", "peer":
            at_rest, during, times = (
                figures[name][side]
                for name in (f"rest_{percent}_us", f"{percent}_us", f"{percent}_times")
            )
            assert times == during / at_rest
        judged = figures[f"{percent}_times"]
        assert judged["target"] == "≤ 2.0"
        assert judged["reached"] == (judged["zkv"] <= 2)


def test_the_list_names_the_works() -> None:
    listed = [line.split()[0] for line in run("bench.py", "--list").splitlines()]
    assert len(listed) == len(set(listed))
    assert {"get-8", "txn-500", "echo-50x16", "memory", "course", "load"} < set(listed)


def test_the_chart_is_a_picture(measured: tuple[Path, str, dict[str, Any]]) -> None:
    source, _, _ = measured
    target = source.with_suffix(".svg")
    run("chart.py", source, target)
    root = ElementTree.parse(target).getroot()
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}rect")) == 2
