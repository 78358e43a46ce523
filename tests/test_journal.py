"""A journal that is cut or changed anywhere is read as what it was, or refused.

Two things cannot be told from a crash at that moment, and only behind the watermark, which a
power failure may have set back by a second: a change in the last batch, which looks like the
torn tail of a batch that no reply has told of; and a cut. Then a prefix comes back.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import pytest
from harness import call, cut_room

from zkv import values
from zkv.engines import Call, compaction, journal, line, watermark
from zkv.engines.disk import Disk
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import recover, settle
from zkv.errors import Damaged
from zkv.transaction import Commit

STORE = "0123456789abcdef0123456789abcdef"
SEED = line.seed_of(STORE)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
NOW = 1_795_377_851.125
State = dict[str, tuple[bytes, int]]
"""What is under each key, as msgpack, and its version."""

Change = tuple[str, Any]
GONE = object()
BATCHES: list[list[Change]] = [
    [("user:1", {"name": "Ada"})],
    [("a", 1), ("b", 2.5), ("c", None)],
    [("a", GONE)],
    [("ä\u2028", b"\xff"), ("n", 2**64 - 1), ("a", [True]), ("b", GONE), ("c", "x" * 60)],
    [("line", '{"rev":9,"batch":9,"crc":"00000000"}\n'), ("tag", {"$b": 1})],
    [("n", -0.0)],
    [(f"k{n}", n) for n in range(8)],
    [("k0", GONE), ("k1", GONE)],
    [("a", "again"), ("z", {1: [None]})],
    [("k2", GONE), ("last", {"crc": "5d1f0a3e"}), ("n", 7), ("k3", "y"), ("y", [])],
]
REVISIONS = sum(map(len, BATCHES))
BATCH_BEGINS = REVISIONS - len(BATCHES[-1])
"""The revision before the last batch."""


class QuickDisk(Disk):
    """Does not sync: here files are damaged by hand, and processes die but not machines."""

    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self) -> None:
        pass


def change(key: str, value: Any) -> Call:
    return call("delete", key=key) if value is GONE else call("put", key=key, value=value)


def states() -> list[State]:
    """The state at each revision, according to a plain dict."""
    found: list[State] = [{}]
    for key, value in [one for batch in BATCHES for one in batch]:
        after = dict(found[-1])
        after.pop(key, None)
        if value is not GONE:
            after[key] = values.pack(value), len(found)
        found.append(after)
    return found


STATES = states()


def open_engine(folder: Path, store: str = STORE) -> LocalEngine:
    """An engine; on an empty folder it takes the store's id from a header with nothing behind."""
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        (folder / journal.name_of(1)).write_bytes(line.header("journal", store, 1))
    return LocalEngine(QuickDisk(folder), clock=lambda: NOW, compactor=compaction.Inline)


def write_history(folder: Path, batches: list[list[Change]] = BATCHES) -> LocalEngine:
    """An engine that holds the last of `STATES`."""
    engine = open_engine(folder)
    for batch in batches:
        engine.execute([change(*one) for one in batch])
    return engine


def state_in(folder: Path) -> State:
    """What a start would serve; nothing in the folder changes."""
    table = recover(Disk(folder)).table
    entries = {key: table.get(key) for key in table.keys("", "")}
    return {key: (entry.packed, entry.version) for key, entry in entries.items() if entry}


def revision_in(folder: Path) -> int | None:
    """Which of `STATES` a start would serve; None if it would refuse with a good sentence."""
    try:
        return STATES.index(state_in(folder))
    except Damaged as error:
        told = str(error)
    assert re.match(r"(journal|snapshot)-\d{20}\.jsonl: ", told), told
    assert re.search(r"at byte \d+|header|missing|format|another store", told), told
    return None


def abandon(engine: LocalEngine) -> None:
    """Lets go of the folder as a crash does: nothing is written, and room may be gone."""
    engine._closed = True
    engine._wake.set()
    engine._keeper.join()
    engine._folder_lock.close()
    cut_room(engine._disk.folder)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, where there is such a thing: these tests write thousands of files."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def died(tmp_path: Path) -> Path:
    """A folder whose writer died when all was on disk, and the watermark said so."""
    abandon(write_history(tmp_path / "died"))
    return tmp_path / "died"


@pytest.fixture
def unsure(tmp_path: Path) -> Path:
    """The same, but the watermark says it of the first few batches only."""
    early, folder = write_history(tmp_path / "early", BATCHES[:4]), tmp_path / "unsure"
    abandon(early)
    abandon(write_history(folder))
    shutil.copy(tmp_path / "early" / watermark.NAME, folder)
    return folder


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    """The same with the segment closed, and the next one begun."""
    engine = write_history(tmp_path / "rotated")
    engine._journal.rotate()
    abandon(engine)
    return tmp_path / "rotated"


def segment(folder: Path) -> Path:
    return folder / journal.name_of(1)


Choose = Callable[[int], list[int]]


@pytest.fixture
def other_bytes(seed: int, long: bool) -> Choose:
    """What to put in the place of a byte: a flipped bit and a few others, or each other one."""
    rng = random.Random(seed)

    def choose(byte: int) -> list[int]:
        some = [byte ^ 1 << rng.randrange(8), 0, 0xFF, ord("\n")]
        return [other for other in (range(256) if long else some) if other != byte]

    return choose


def damages(path: Path, other_bytes: Choose) -> Iterator[int]:
    """Yields the offset of each byte of a file while the byte is another one."""
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(whole):
            for now in other_bytes(byte):
                os.pwrite(file.fileno(), bytes([now]), offset)
                yield offset
            os.pwrite(file.fileno(), bytes([byte]), offset)


def cuts(path: Path) -> Iterator[int]:
    """Yields each size below a file's own while the file is cut to it, the largest first."""
    whole = path.read_bytes()
    for size in reversed(range(len(whole))):
        os.truncate(path, size)
        yield size
    path.write_bytes(whole)


def revision_at(whole: bytes, offset: int) -> int:
    """The revision whose line this byte belongs to; 0 for the header."""
    return whole.count(b"\n", 0, offset)


def test_a_line_is_this() -> None:
    """The CRC-32 of what stands before it, begun with that of the store's id."""
    seed = line.seed_of(STORE)
    sealed = b'{"rev":7,"put":{"a":[1,null]},"batch":7,"crc":"2383230a"}\n'
    assert line.seal({"rev": 7, "put": {"a": [1, None]}, "batch": 7}, seed) == sealed
    assert line.unseal(sealed, seed) == {"rev": 7, "put": {"a": [1, None]}, "batch": 7}
    assert crc32(sealed[: -len(',"crc":"2383230a"}\n')], crc32(STORE.encode())) == 0x2383230A


def test_a_journal_is_these_lines(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "data")
    engine.execute([change("user:1", {"name": "Ada"})])
    engine.execute([change("b", b"\xff"), change("user:1", GONE)])
    header, *lines, room = segment(tmp_path / "data").read_text().split("\n")
    engine._journal.rotate()
    footer, rest = segment(tmp_path / "data").read_text().split("\n")[-2:]
    engine.close()
    assert not room.strip(" ")
    assert not rest.strip(" ")
    assert len("\n".join([header, *lines, room])) == journal.ROOM_BYTES
    bodies = [
        f'{{"zkv":1,"file":"journal","store":"{STORE}","rev":1',
        '{"rev":1,"time":"2026-11-22T20:04:11.125000Z","put":{"user:1":{"name":"Ada"}},"batch":1',
        '{"rev":2,"time":"2026-11-22T20:04:11.125000Z","put":{"b":{"$b":"/w=="}},"batch":2',
        '{"rev":3,"time":"2026-11-22T20:04:11.125000Z","delete":["user:1"],"batch":2',
        '{"end":"journal","rev":3',
    ]
    for one, body in zip([header, *lines, footer], bodies, strict=True):
        assert one == f'{body},"crc":"{crc32(body.encode(), crc32(STORE.encode())):08x}"}}'


@pytest.mark.parametrize(
    "bad",
    [b"", b"\n", b"{}\n", b"null\n", b'{"rev":1}\n', b'{"rev":1,"crc":"00000000"}\n', b"\0" * 99],
)
def test_what_is_no_line_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="CRC"):
        line.unseal(bad, 0)


def test_a_line_of_another_store_is_no_line_of_this_one() -> None:
    sealed = line.seal({"rev": 1}, line.seed_of("one"))
    with pytest.raises(ValueError, match="CRC"):
        line.unseal(sealed, line.seed_of("other"))


def test_a_journal_that_is_whole_is_the_full_state(died: Path, unsure: Path, rotated: Path) -> None:
    assert revision_in(died) == revision_in(unsure) == revision_in(rotated) == REVISIONS
    assert len(set(map(repr, STATES))) == REVISIONS + 1, "each revision can be told from the rest"


def test_a_journal_cut_anywhere_has_every_whole_line(died: Path, tmp_path: Path) -> None:
    """If no watermark tells of more. The rest is kept aside."""
    whole = segment(died).read_bytes()
    for size in range(len(whole) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        segment(folder).write_bytes(whole[:size])
        disk = QuickDisk(folder)
        settle(disk, recover(disk))
        good = whole.rfind(b"\n", 0, size) + 1
        kept = [path.read_bytes() for path in folder.glob("*.torn-*")]
        assert kept == [whole[good:size]] * (good < size)
        assert revision_in(folder) == max(whole.count(b"\n", 0, size) - 1, 0)
        shutil.rmtree(folder)


@pytest.mark.parametrize("room", [1, 511, journal.ROOM_BYTES, 3 * journal.ROOM_BYTES + 1])
def test_room_is_no_part_of_a_journal(died: Path, rotated: Path, room: int) -> None:
    """Neither behind a line nor behind a footer."""
    for folder in (died, rotated):
        with segment(folder).open("ab") as file:
            file.write(b" " * room)
        if folder is rotated:
            (folder / journal.name_of(REVISIONS + 1)).unlink()
        assert revision_in(folder) == REVISIONS
        open_engine(folder).close()
        assert state_in(folder) == STATES[-1]
        assert not list(folder.glob("*.torn-*"))


def test_a_line_before_room_is_read_once(tmp_path: Path) -> None:
    """What it says is not held twice."""
    engine = open_engine(tmp_path / "data")
    engine.execute([change("k", [-99] * 100_000)])
    abandon(engine)
    path = segment(tmp_path / "data")

    def peak(data: bytes) -> int:
        path.write_bytes(data)
        tracemalloc.start()
        try:
            recover(Disk(tmp_path / "data"))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    data = path.read_bytes().rstrip(b" ")
    assert peak(data + b" " * 1000) < 1.2 * peak(data)


def test_lines_of_any_length_find_room(tmp_path: Path) -> None:
    engine, expected = open_engine(tmp_path / "data"), State()
    for version, size in enumerate((7, 60_000, 9_000, 300_000, 1, 65_536, 131_072), 1):
        engine.execute([change(f"k{version}", "x" * size)])
        expected[f"k{version}"] = values.pack("x" * size), version
        assert state_in(tmp_path / "data") == expected
        assert segment(tmp_path / "data").stat().st_size % journal.ROOM_BYTES == 0
    engine._journal.rotate()
    assert state_in(tmp_path / "data") == expected
    abandon(engine)
    assert state_in(tmp_path / "data") == expected


def test_a_store_goes_on_from_a_cut(died: Path, tmp_path: Path, long: bool, seed: int) -> None:
    whole = segment(died).read_bytes()
    for size in range(0 if long else seed % 20, len(whole) + 1, 1 if long else 20):
        folder = tmp_path / str(size)
        folder.mkdir()
        segment(folder).write_bytes(whole[:size])
        revision = max(whole.count(b"\n", 0, size) - 1, 0)
        engine = open_engine(folder)
        assert engine.execute([change("new", size)])[0].revision == revision + 1
        goes_on = STATES[revision] | {"new": (values.pack(size), revision + 1)}
        assert state_in(folder) == goes_on
        engine.close()
        assert state_in(folder) == goes_on


@pytest.mark.parametrize("end", [b" ", b"\t", b"\r", b""], ids=repr)
def test_a_line_without_its_newline_is_torn(died: Path, tmp_path: Path, end: bytes) -> None:
    """JSON would take other white space for it, and the next line would stand on the same one."""
    folder = tmp_path / "changed"
    folder.mkdir()
    segment(folder).write_bytes(segment(died).read_bytes()[:-1] + end)
    open_engine(folder).close()
    assert state_in(folder) == STATES[REVISIONS - 1]


def test_what_was_synced_and_is_cut_or_changed_is_refused(died: Path, other_bytes: Choose) -> None:
    """The watermark proves what is missing, also where no byte does."""
    for offset in damages(segment(died), other_bytes):
        assert revision_in(died) is None, f"byte {offset}"
    for size in cuts(segment(died)):
        assert revision_in(died) is None, f"cut to {size}"


def test_a_cut_is_refused_or_is_behind_the_watermark(unsure: Path) -> None:
    marked, whole = sum(map(len, BATCHES[:4])), segment(unsure).read_bytes()
    for size in cuts(segment(unsure)):
        revision = whole.count(b"\n", 0, size) - 1
        assert revision_in(unsure) == (revision if revision >= marked else None), f"to {size}"


def test_a_changed_byte_is_refused_or_is_of_the_last_batch(
    unsure: Path, other_bytes: Choose
) -> None:
    path = segment(unsure)
    whole, refused = path.read_bytes(), 0
    for offset in damages(path, other_bytes):
        revision = revision_in(unsure)
        if revision_at(whole, offset) <= BATCH_BEGINS:
            assert revision is None, f"byte {offset} gives revision {revision}"
            refused += 1
        else:
            assert revision is None or BATCH_BEGINS <= revision <= REVISIONS, f"byte {offset}"
    assert refused > 2000


def test_a_bad_header_before_good_lines_is_refused(died: Path, other_bytes: Choose) -> None:
    """Also without a watermark: a writer that died while making it left no lines behind it."""
    (died / watermark.NAME).unlink()
    header = segment(died).read_bytes().index(b"\n") + 1
    for offset in damages(segment(died), other_bytes):
        if offset == header:
            break
        assert revision_in(died) is None, f"byte {offset}"


@pytest.mark.parametrize("followed_by", ["nothing", "an empty segment", "a segment"])
def test_a_changed_byte_of_a_closed_segment_is_refused(
    rotated: Path, other_bytes: Choose, followed_by: str
) -> None:
    """Or it is in the footer of the last segment with lines, and then nothing is missing."""
    follow(rotated, followed_by)
    whole = segment(rotated).read_bytes()
    for offset in damages(segment(rotated), other_bytes):
        footer = revision_at(whole, offset) > REVISIONS and followed_by != "a segment"
        assert revision_in(rotated) in ((None, REVISIONS) if footer else (None,)), f"byte {offset}"


@pytest.mark.parametrize("followed_by", ["nothing", "an empty segment", "a segment"])
def test_a_cut_of_a_closed_segment_is_refused(rotated: Path, followed_by: str) -> None:
    """Unless nothing but the footer of the last segment with lines is missing."""
    follow(rotated, followed_by)
    whole = segment(rotated).read_bytes()
    for size in cuts(segment(rotated)):
        footer_only = whole.count(b"\n", 0, size) > REVISIONS and followed_by != "a segment"
        assert revision_in(rotated) == (REVISIONS if footer_only else None), f"byte {size}"


def test_the_header_of_an_empty_segment_proves_what_comes_before_it(rotated: Path) -> None:
    """Also without a watermark."""
    (rotated / watermark.NAME).unlink()
    for size in cuts(segment(rotated)):
        if segment(rotated).read_bytes().count(b"\n") <= REVISIONS:
            assert revision_in(rotated) is None, f"byte {size}"


def test_an_empty_segment_of_another_store_is_refused(died: Path) -> None:
    """Not taken for one that is left over."""
    (died / journal.name_of(REVISIONS + 1)).write_bytes(journal.header("other", REVISIONS + 1))
    assert revision_in(died) is None


def follow(rotated: Path, followed_by: str) -> None:
    following = rotated / journal.name_of(REVISIONS + 1)
    if followed_by == "nothing":
        following.unlink()
    elif followed_by == "a segment":
        last = journal.record_line(Commit(REVISIONS + 1, NOW, {}), REVISIONS + 1, SEED)
        following.write_bytes(following.read_bytes() + last)
