"""Real data: Debian's iso-codes, loaded by many, interrupted by kill -9, and loaded again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import serving, wait_until

import zkv

FOLDER = Path("/usr/share/iso-codes/json")
CLIENTS = 8
ID_FIELDS = {
    "639-2": "alpha_3", "639-3": "alpha_3", "639-5": "alpha_3", "3166-1": "alpha_2",
    "3166-2": "code", "3166-3": "alpha_4", "4217": "alpha_3", "15924": "alpha_4",
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"{FOLDER} is missing: apt-get install iso-codes"
)


def read_parts() -> dict[str, list[dict[str, Any]]]:
    """The records of each part of the standards."""
    files = sorted(FOLDER.glob("iso_*.json"))
    return {
        part: records for file in files for part, records in json.loads(file.read_text()).items()
    }


def load(endpoint: str, records: dict[str, Any], loaded: list[str]) -> list[threading.Thread]:
    """Clients that share the work and end early if the server does."""

    def work(keys: list[str]) -> None:
        with zkv.Client(endpoint, timeout_s=1) as client:
            for key in keys:
                try:
                    client.put(key, records[key])
                except (zkv.Timeout, zkv.CannotConnect):
                    return
                loaded.append(key)

    keys = list(records)
    threads = [threading.Thread(target=work, args=(keys[n::CLIENTS],)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    return threads


def dump(endpoint: str) -> dict[str, str]:
    """Each key with its value as JSON, which also keeps the order of fields."""
    with zkv.Client(endpoint) as client:
        return {key: json.dumps(value) for key, value, *_ in client.items()}


def test_iso_codes_survive_a_crash_in_the_middle(tmp_path: Path) -> None:
    parts = read_parts()
    records = {
        f"{part}/{record[ID_FIELDS[part]]}": record
        for part, part_records in parts.items()
        for record in part_records
    }
    assert len(records) == sum(map(len, parts.values())) > 10_000
    source = {key: json.dumps(record) for key, record in sorted(records.items())}

    loaded: list[str] = []
    with serving(tmp_path / "data") as server:
        threads = load(server.endpoint, records, loaded)
        wait_until(lambda: len(loaded) > len(records) / 2, timeout_s=60)
        server.kill()
        for thread in threads:
            thread.join()
    assert len(loaded) < len(records)

    with serving(tmp_path / "data") as server:
        found = dump(server.endpoint)
        assert found.items() <= source.items()
        assert set(loaded) <= set(found)
        loaded.clear()
        for thread in load(server.endpoint, records, loaded):
            thread.join()
        assert sorted(loaded) == sorted(records)
        assert list(dump(server.endpoint).items()) == list(source.items())
        with zkv.Client(server.endpoint) as client:
            for part, part_records in parts.items():
                assert client.count(f"{part}/") == len(part_records)
                keys = sorted(f"{part}/{record[ID_FIELDS[part]]}" for record in part_records)
                assert list(client.keys(f"{part}/")) == keys
        server.stop()

    with serving(tmp_path / "data") as server:
        assert list(dump(server.endpoint).items()) == list(source.items())
