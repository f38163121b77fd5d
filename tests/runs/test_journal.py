import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibri.errors import JournalError, RunError
from calibri.runs.journal import Journal, read_journal

RECORDS = [
    {"kind": "start", "n": 0},
    {"kind": "unit", "scores": [0.1, 2.5e-308], "text": "ein grüner Würfel\n"},
    # Text that looks like a record of its own must not be taken for one.
    {"kind": "unit", "text": "\n00000002 a3830348 {}\n", "tail": "00000002 a3830348 {}"},
    {"kind": "unit", "scores": [1.0, -0.0]},
    {"kind": "stop", "n": None},
]

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]))
leaves = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | finite | text
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=8
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        for record in RECORDS:
            journal.append(record)
    return path


def bounds(data: bytes) -> list[int]:
    """Byte offsets where records begin, and the end."""
    offsets = [0]
    for line in data.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    return offsets


def flips(data: bytes, start: int, stop: int) -> list[bytes]:
    return [
        data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
        for at in range(start, stop)
        for bit in range(8)
    ]


def test_lines_are_framed_by_length_and_checksum(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    assert len(lines) == len(RECORDS)
    for line, record in zip(lines, RECORDS, strict=True):
        length, checksum, body = line.split(b" ", 2)
        assert (int(length, 16), int(checksum, 16)) == (len(body), zlib.crc32(body))
        assert json.loads(body) == record
    assert "grüner".encode() in path.read_bytes()


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(records=st.lists(st.dictionaries(text, values), max_size=4))
def test_records_survive_reopening_exactly(
    records: list[dict[str, object]], tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    with Journal.open(path) as journal:
        for record in records:
            journal.append(record)
        # repr tells 0.0 from -0.0 and 1 from 1.0.
        assert repr(list(journal.records)) == repr(records)
    with Journal.open(path) as journal:
        assert repr(list(journal.records)) == repr(records)
    assert repr(list(read_journal(path))) == repr(records)


def test_a_record_torn_at_any_byte_is_dropped_and_the_earlier_ones_stay(path: Path) -> None:
    data = path.read_bytes()
    starts = bounds(data)
    for cut in range(starts[-4], len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in starts[1:])
        assert list(read_journal(path)) == RECORDS[:whole]
        assert path.stat().st_size == cut, "reading must not change the file"
        with Journal.open(path) as journal:
            assert list(journal.records) == RECORDS[:whole]
            assert journal.dropped_bytes == cut - starts[whole]
            journal.append({"after": cut})
        assert path.read_bytes()[: starts[whole]] == data[: starts[whole]]
        assert list(read_journal(path)) == [*RECORDS[:whole], {"after": cut}]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff" * 7, b"\n", b"00000002 a3830348 {]\n"])
def test_a_tail_of_rubbish_is_dropped(path: Path, tail: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data + tail)
    with Journal.open(path) as journal:
        assert list(journal.records) == RECORDS
    assert path.read_bytes() == data


@pytest.mark.parametrize("index", range(len(RECORDS) - 1))
def test_any_flipped_bit_before_the_last_record_is_refused(path: Path, index: int) -> None:
    data = path.read_bytes()
    starts = bounds(data)
    place = f"record {index + 1}, at byte {starts[index]}"
    for damaged in flips(data, starts[index], starts[index + 1]):
        path.write_bytes(damaged)
        with pytest.raises(JournalError) as caught:
            Journal.open(path)
        message = str(caught.value)
        assert place in message
        assert str(path) in message
        assert f"truncate -s {starts[index]}" in message
        with pytest.raises(JournalError, match=place):
            read_journal(path)
        assert path.read_bytes() == damaged


def test_any_flipped_bit_of_the_last_record_drops_it(path: Path) -> None:
    data = path.read_bytes()
    start = bounds(data)[-2]
    for damaged in flips(data, start, len(data)):
        path.write_bytes(damaged)
        with Journal.open(path) as journal:
            assert list(journal.records) == RECORDS[:-1]
        assert path.read_bytes() == data[:start]


def test_damage_before_a_torn_last_record_is_refused(path: Path) -> None:
    data = path.read_bytes()
    starts = bounds(data)
    damaged = bytearray(data[:-3])
    damaged[starts[-2] - 4] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=f"record 4, at byte {starts[-3]}"):
        Journal.open(path)


@pytest.mark.parametrize("body", [b"[1]", b"3", b'"text"', b"{", b"\xff"])
def test_an_intact_frame_without_an_object_is_damage(path: Path, body: bytes) -> None:
    foreign = b"%08x %08x %s\n" % (len(body), zlib.crc32(body), body)
    data = path.read_bytes()
    path.write_bytes(foreign + data)
    with pytest.raises(JournalError, match="record 1, at byte 0"):
        Journal.open(path)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, [1.0, {"deep": math.nan}], b"bytes", {1, 2}, "\ud800"],
)
def test_what_json_cannot_keep_is_refused_before_writing(path: Path, value: object) -> None:
    data = path.read_bytes()
    with Journal.open(path) as journal:
        with pytest.raises(RunError, match="cannot be kept"):
            journal.append({"value": value})
        assert path.read_bytes() == data
        journal.append({"value": 1})
    assert list(read_journal(path)) == [*RECORDS, {"value": 1}]


def broken_write(fd: int, data: bytes, real=os.write) -> int:
    if len(data) > 5:
        return real(fd, bytes(data[:5]))
    raise OSError(errno.ENOSPC, "No space left on device")


def failing(code: int):
    def call(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("write", broken_write, "the disk is full"),
        ("write", failing(errno.EIO), "input/output error"),
        ("fsync", failing(errno.ENOSPC), "the disk is full"),
        ("fsync", failing(errno.EIO), "input/output error"),
    ],
)
def test_a_refused_write_loses_nothing_and_leaves_the_journal_usable(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault, words: str
) -> None:
    data = path.read_bytes()
    with Journal.open(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fault)
            with pytest.raises(RunError, match=words) as caught:
                journal.append({"lost": 1})
        assert "calibri resume" in str(caught.value)
        assert path.read_bytes() == data
        assert list(journal.records) == RECORDS
        journal.append({"kept": 1})
    assert list(read_journal(path)) == [*RECORDS, {"kept": 1}]


def test_a_torn_record_that_cannot_be_cut_back_is_never_written_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = path.read_bytes()
    with Journal.open(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", broken_write)
            patch.setattr(os, "ftruncate", failing(errno.EIO))
            with pytest.raises(RunError, match="the disk is full"):
                journal.append({"lost": 1})
        with pytest.raises(RunError, match="changed"):
            journal.append({"refused": 1})
    with Journal.open(path) as journal:
        assert list(journal.records) == RECORDS
    assert path.read_bytes() == data


def test_an_interrupt_between_write_and_flush_leaves_no_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with Journal.open(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                journal.append({"lost": 1})
        journal.append({"kept": 1})
    assert list(read_journal(path)) == [*RECORDS, {"kept": 1}]


def test_creation_flushes_the_folder_and_every_append_flushes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, int]] = []

    def fsync(fd: int, real=os.fsync) -> None:
        found = os.fstat(fd)
        flushed.append((stat.S_ISDIR(found.st_mode), found.st_size))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        assert [folder for folder, _ in flushed] == [True]
        for _ in range(2):
            journal.append({"n": 1})
            assert flushed[-1] == (False, path.stat().st_size)


def test_links_pipes_and_folders_are_refused(path: Path, tmp_path: Path) -> None:
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(path)
    dangling.symlink_to(tmp_path / "nothing")
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for bad in (link, dangling, pipe, folder):
        for opening in (Journal.open, read_journal):
            with pytest.raises(RunError, match=bad.name):
                opening(bad)
    assert not (tmp_path / "nothing").exists()
    assert list(read_journal(path)) == RECORDS


def test_reading_a_missing_journal_is_refused_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file"):
        read_journal(tmp_path / "journal.jsonl")
    with pytest.raises(RunError, match="No such file"):
        Journal.open(tmp_path / "missing" / "journal.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_no_file_stays_open_after_a_refusal(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    before = os.listdir("/dev/fd")
    with pytest.raises(JournalError):
        Journal.open(path)
    assert os.listdir("/dev/fd") == before


def test_a_second_writer_is_noticed_and_loses_nothing(path: Path) -> None:
    with Journal.open(path) as first, Journal.open(path) as second:
        first.append({"by": "first"})
        with pytest.raises(RunError, match="changed while this run was writing"):
            second.append({"by": "second"})
        first.append({"by": "first again"})
    assert list(read_journal(path)) == [*RECORDS, {"by": "first"}, {"by": "first again"}]


def test_appending_to_a_deleted_or_closed_journal_is_refused(path: Path) -> None:
    with Journal.open(path) as journal:
        path.unlink()
        with pytest.raises(RunError, match="was deleted"):
            journal.append({"n": 1})
    with pytest.raises(RunError, match="is closed"):
        journal.append({"n": 1})
    journal.close()


WRITER = """
import sys
from pathlib import Path
from calibri.runs.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
n = len(journal.records)
while True:
    journal.append({"n": n, "fill": "x" * (n % 5000)})
    print(n, flush=True)
    n += 1
"""


def test_kill_9_loses_no_acknowledged_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for acknowledge in (1, 30, 100):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(acknowledge)]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        last = int([line for line in lines if line.endswith("\n")][-1])
        with Journal.open(path) as journal:
            numbers = [record["n"] for record in journal.records]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > last
