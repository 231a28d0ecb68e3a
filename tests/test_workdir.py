# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The work folder survives SIGKILL at any moment, is shared by ranks, and refuses other options by name."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusers_craft import UserError
from diffusers_craft.core.files import read_json, remove_unfinished_weights
from diffusers_craft.core.records import SCORE_SCHEMA
from diffusers_craft.scripts import WorkDir, atomic_write_bytes, atomic_write_json, fingerprint


NUM_ROWS, ROWS_PER_SHARD = 50, 4
OPTIONS = {"guidance_scale": 3.0, "prompts": "abc", "sampler": {"eta": 0.0, "steps": [1, 2]}}

# Writes all missing shards of the folder in argv[1], for rank argv[2] of argv[3], as a stage of a build does.
# Kills itself before call number argv[4] of those that make files durable.
WRITER = f"""
import os
import signal
import sys
import pyarrow as pa
from diffusers_craft.core.workdir import WorkDir

rank, world, die_at = map(int, sys.argv[2:])
calls = iter(range(10**6))

def dying(call):
    def wrapper(*arguments):
        if next(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return wrapper

os.fsync, os.replace = dying(os.fsync), dying(os.replace)
stage = WorkDir(sys.argv[1]).stage("candidates", {OPTIONS!r}, {NUM_ROWS}, {ROWS_PER_SHARD})
for shard in [shard for shard in stage.missing() if shard % world == rank]:
    rows = list(stage.rows(shard))
    stage.write(shard, pa.table({{"row": rows, "data": [row.to_bytes(4, "big") * 9 for row in rows]}}))
if world == 1:
    stage.mark_complete()
"""


def start_writer(folder: Path, rank: int = 0, world: int = 1, die_at: int = -1) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, *map(str, (folder, rank, world, die_at))])


def open_stage(folder: Path, **changes):
    return WorkDir(folder).stage("candidates", {**OPTIONS, **changes}, NUM_ROWS, ROWS_PER_SHARD)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def finish(process: subprocess.Popen) -> None:
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start_writer(folder))
    return contents(folder)


def test_killed_writer_leaves_only_whole_shards(tmp_path, undisturbed):
    """Dies before each of the calls that make a file durable: flush, rename, flush of the folder."""
    num_leftovers = 0
    for point in (0, 1, 2, 0, 1, 2, 7):  # three calls a file
        writer = start_writer(tmp_path, die_at=point)
        writer.communicate(timeout=120)
        assert writer.returncode == -signal.SIGKILL
        num_leftovers += len(list(tmp_path.rglob("*.tmp")))
        for name, data in contents(tmp_path).items():
            if not name.endswith(".tmp"):
                assert data == undisturbed[name]
        assert not open_stage(tmp_path).is_complete
        assert not list(tmp_path.rglob("*.tmp")), "left over by a dead process"
    assert num_leftovers == 5 and len(open_stage(tmp_path).missing()) == 9
    finish(start_writer(tmp_path))
    assert contents(tmp_path) == undisturbed
    assert open_stage(tmp_path).read(["row"])["row"].to_pylist() == list(range(NUM_ROWS))


def test_kill_between_write_and_rename(tmp_path, monkeypatch):
    """A temporary file is never taken for the file, and the old content stays until the rename."""
    path = tmp_path / "results.json"
    atomic_write_json(path, {"n": 1})

    def die(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 1}


def test_ranks_share_a_folder(tmp_path, undisturbed):
    writers = [start_writer(tmp_path, rank, 3) for rank in range(3)]
    for writer in writers:
        finish(writer)
    stage = open_stage(tmp_path)
    assert not stage.missing() and not list(tmp_path.rglob("*.tmp"))
    stage.mark_complete()
    assert contents(tmp_path) == undisturbed


def test_each_missing_shard_has_one_owner(tmp_path, monkeypatch):
    """Whatever the other ranks have written in the meantime."""
    stage = WorkDir(tmp_path).stage("scores", {}, 7, 1)
    assert stage.share() == list(range(7))
    monkeypatch.setenv("WORLD_SIZE", "3")
    owned = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shards = stage.share()
        owned.append(shards)
        stage.write(shards[0], pa.table({"row": [shards[0]]}))
    assert owned == [[0, 3, 6], [1, 4], [2, 5]]


def test_finish_waits_for_the_other_ranks(tmp_path, monkeypatch):
    """Rank 0 marks the stage complete once the last shard is there, and not before."""
    stage = WorkDir(tmp_path).stage("scores", {}, 2, 1)
    stage.write(0, pa.table({"row": [0]}))
    looks = []

    def other_rank_writes(seconds: float) -> None:
        looks.append(stage.is_complete)
        stage.write(1, pa.table({"row": [1]}))

    monkeypatch.setattr("diffusers_craft.core.workdir.time.sleep", other_rank_writes)
    stage.finish()
    assert looks == [False] and stage.is_complete


def test_temporary_files_of_living_processes_stay(tmp_path):
    stage = open_stage(tmp_path)
    host = socket.gethostname()
    alive = stage.path / f"part-00000.parquet.{host}.{os.getpid()}.tmp"
    elsewhere = stage.path / "part-00001.parquet.other.host.1.tmp"
    old = stage.path / "part-00002.parquet.other.host.1.tmp"
    foreign = stage.path / "notes.tmp"
    (stage.path / "a.host.1.tmp").mkdir()
    for file in (alive, elsewhere, old, foreign):
        file.write_bytes(b"")
    for file in (old, foreign):  # another program's file may be old
        os.utime(file, (0, 0))
    open_stage(tmp_path)
    assert (stage.path / "a.host.1.tmp").is_dir()
    assert [file.exists() for file in (alive, elsewhere, old, foreign)] == [True, True, False, True]


def test_other_options_are_refused_by_name(tmp_path):
    open_stage(tmp_path)
    with pytest.raises(ValueError) as error:
        open_stage(tmp_path, guidance_scale=5.0)
    assert str(error.value) == (
        f"work folder {tmp_path}: stage 'candidates' was built with other options: --guidance_scale (3.0 there, 5.0"
        " now); use another --output_dir or remove it"
    )
    with pytest.raises(ValueError) as error:
        WorkDir(tmp_path).stage(
            "candidates", {"prompts": "abd", "sampler": {"eta": 0, "steps": (1, 3)}, "new": None}, 9, 4
        )
    for part in (
        '--prompts ("abc" there, "abd" now)',
        "--sampler.steps ([1, 2] there, [1, 3] now)",
        "--new (absent there, null now)",
        "--guidance_scale (3.0 there, absent now)",
        "number of rows (50 there, 9 now)",
    ):
        assert part in str(error.value)
    assert "eta" not in str(error.value)


def test_same_options_in_another_order_or_container_reopen(tmp_path):
    open_stage(tmp_path)
    options = {"sampler": {"steps": (1, 2), "eta": 0.0}, "prompts": "abc", "guidance_scale": 3.0}
    assert WorkDir(str(tmp_path)).stage("candidates", options, NUM_ROWS, ROWS_PER_SHARD).missing()


def test_a_begun_stage_keeps_its_shard_size(tmp_path):
    open_stage(tmp_path)
    stage = WorkDir(tmp_path).stage("candidates", OPTIONS, NUM_ROWS, 7)
    assert (stage.rows_per_shard, stage.num_shards) == (4, 13)


def test_shards_cover_the_rows_once(tmp_path):
    for num_rows, size in [(1, 1), (3, 5), (8, 4), (9, 4)]:
        stage = WorkDir(tmp_path / f"{num_rows}").stage("scores/pickscore", {}, num_rows, size)
        assert [row for shard in range(stage.num_shards) for row in stage.rows(shard)] == list(range(num_rows))
        assert stage.missing() == list(range(stage.num_shards))


def test_writing_and_reading(tmp_path):
    stage = WorkDir(tmp_path).stage("scores/pickscore", {}, 5, 2)
    table = pa.table({"row": list(range(5)), "score": [0.5, float("nan"), 2.0, 3.0, 4.0]})
    with pytest.raises(RuntimeError, match="expected the rows 0 to 1 in order"):
        stage.write(0, table.slice(1, 2))
    with pytest.raises(RuntimeError, match="expected the rows 4 to 4 in order"):
        stage.write(2, table)
    for shard in (2, 0):
        stage.write(shard, table.slice(stage.rows(shard).start, len(stage.rows(shard))))
    assert stage.missing() == [1]
    for step in (stage.read, stage.mark_complete):
        with pytest.raises(ValueError, match=r"scores/pickscore: 1 of 3 shards are missing; run the stage again"):
            step()
    stage.write(1, table.slice(2, 2))
    assert not stage.is_complete
    stage.mark_complete()
    assert stage.is_complete
    assert str(stage.read().to_pylist()) == str(table.to_pylist())
    assert stage.read(["score"]).column_names == ["score"]
    assert stage.read_shard(1)["row"].to_pylist() == [2, 3]
    stage.shard_path(1).unlink()
    assert not stage.is_complete


def test_damaged_shard_is_named(tmp_path):
    stage = WorkDir(tmp_path).stage("refined", {}, 1, 1)
    stage.shard_path(0).write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="part-00000.parquet: expected a Parquet file, found .*; remove it"):
        stage.read()


ANEW = "; remove it, and the command that wrote it makes it anew"
PICTURES = pa.schema(
    [
        pa.field("row", pa.int64(), False),
        pa.field("prompt", pa.string(), False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("valid", pa.bool_(), False),
        pa.field("vector", pa.list_(pa.float32())),
        pa.field("score", pa.float32(), False),
    ]
)


def pictures(rows: range) -> pa.Table:
    rng = random.Random(rows.start)
    records = [
        {
            "row": row,
            "prompt": f"thing {rng.random()}",
            "image": {"bytes": rng.randbytes(150), "path": None},
            "valid": row % 3 > 0,
            "vector": [rng.random(), rng.random()] if row % 2 else None,
            "score": rng.random(),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(records, schema=PICTURES)


def picture_stage(folder: Path, num_rows: int = 9, rows_per_shard: int = 3, **options):
    stage = WorkDir(folder).stage("pictures", options, num_rows, rows_per_shard, PICTURES)
    for shard in stage.missing():
        stage.write(shard, pictures(stage.rows(shard)))
    return stage


def write_as_before(path: Path, table: pa.Table) -> None:
    """As shards were written when they had no checksums, and as other tools write them."""
    pq.write_table(
        table.replace_schema_metadata(), path, compression="zstd", use_dictionary=False, write_statistics=False
    )


@pytest.mark.parametrize(("columns", "step", "share"), [(None, 1, 0.85), (["score"], 5, 0.5)])
def test_every_changed_byte_is_noticed_or_changes_nothing(tmp_path, columns, step, share):
    """One bit or all of a byte: of pages, their headers, the footer and its hash."""
    stage = picture_stage(tmp_path, 3, 3)
    path, whole, noticed = stage.shard_path(0), stage.read_shard(0, columns), 0
    data = path.read_bytes()
    places = range(0, len(data), step)
    for place in places:
        changed = data[place] ^ (255 if place % 9 == 8 else 1 << place % 9)
        path.write_bytes(data[:place] + bytes([changed]) + data[place + 1 :])
        try:
            assert stage.read_shard(0, columns).equals(whole)
        except UserError as error:
            assert str(error).startswith(f"{path}: expected ") and str(error).endswith(ANEW)
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > share * len(places)


@pytest.mark.parametrize("size", [0, 3, 8, 40, -40, -8, -1])
def test_a_cut_shard_is_named(tmp_path, size):
    stage = picture_stage(tmp_path)
    stage.shard_path(1).write_bytes(stage.shard_path(1).read_bytes()[:size])
    with pytest.raises(UserError, match=r"part-00001.parquet: expected a Parquet file, found .*; remove it, and the"):
        stage.read(["prompt"])


def test_shards_without_checksums_are_read_beside_those_with(tmp_path):
    stage = picture_stage(tmp_path)
    whole = stage.read()
    write_as_before(stage.shard_path(1), whole.slice(3, 3))
    assert picture_stage(tmp_path).read().equals(whole)
    assert stage.read(["valid", "row"]).column_names == ["valid", "row"]


@pytest.mark.parametrize("before", [False, True])
def test_rows_in_another_place_are_refused(tmp_path, before):
    """By their numbers: swapped shards, reversed and repeated rows, a row too few."""
    stage = picture_stage(tmp_path)
    first, second, third = (stage.shard_path(shard) for shard in range(3))
    if before:
        for path in (first, second):
            write_as_before(path, pq.read_table(path))
    shutil.copy(first, tmp_path / "first")
    shutil.copy(second, first)
    shutil.copy(tmp_path / "first", second)
    words = "part-00000.parquet: expected the rows 0 to 2 in order, found 3 rows from 3 to 5" + ANEW
    with pytest.raises(UserError, match=words):
        stage.read(["score"])
    stage = picture_stage(tmp_path / "other")
    table = stage.read_shard(2)
    for rows, found in (
        ([2, 1, 0], "3 rows from 8 to 6"),
        ([0, 1, 1], "3 rows from 6 to 7"),
        ([0, 1], "2 rows from 6"),
    ):
        write_as_before(stage.shard_path(2), table.take(rows))
        with pytest.raises(UserError, match=f"part-00002.parquet: expected the rows 6 to 8 in order, found {found}"):
            stage.read()


def test_a_shard_of_other_options_is_refused(tmp_path):
    """The scores of one reward in the place of another's have the same rows and columns."""
    mine, other = picture_stage(tmp_path / "a", reward="a"), picture_stage(tmp_path / "b", reward="b")
    shutil.copy(other.shard_path(1), mine.shard_path(1))
    with pytest.raises(
        UserError, match="part-00001.parquet: expected a Parquet file, found .* the file of another stage or tool"
    ):
        mine.read()
    same = picture_stage(tmp_path / "c", reward="b")
    shutil.copy(other.shard_path(1), same.shard_path(1))
    assert same.read().equals(other.read())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"score": pa.array([0.5, 1.5])}, "expected the column score: float not null, found score: double"),
        ({"score": pa.array(["a", "b"])}, "expected the column score: float not null, found score: string"),
        (
            {"score": pa.array([0.5, None], pa.float32())},
            "expected the column score: float not null, found score: float",
        ),
        ({"points": pa.array([0.5, 1.5])}, "expected the column score: float not null, found row"),
        ({}, "expected the column score: float not null, found row"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, words):
    stage = WorkDir(tmp_path).stage("scores/a", {}, 2, 2, SCORE_SCHEMA)
    write_as_before(stage.shard_path(0), pa.table({"row": [0, 1], **columns}))
    with pytest.raises(UserError, match=f"part-00000.parquet: {words}{ANEW}$"):
        stage.read(["score"])
    if "score" not in columns:
        with pytest.raises(UserError, match="part-00000.parquet: expected the column score, found row"):
            WorkDir(tmp_path).stage("scores/a", {}, 2, 2).read(["score"])


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"3", b"\xff{}", b"{}", b'{"options": {}, "num_rows": 9}'),
        b'{"options": {}, "num_rows": 9, "rows_per_shard": 0}',
        b'{"options": {}, "num_rows": 9, "rows_per_shard": "3"}',
        b'{"options": [], "num_rows": 9, "rows_per_shard": 3}',
    ],
)
def test_broken_options_are_named(tmp_path, text):
    stage = picture_stage(tmp_path)
    file = stage.path / "options.json"
    file.write_bytes(text)
    with pytest.raises(UserError) as error:
        picture_stage(tmp_path)
    assert str(error.value).startswith(f"{file}: expected the options and sizes of a stage, found b")
    assert str(error.value).endswith(f"; remove {stage.path}, and the command that wrote it makes it anew")
    shutil.rmtree(stage.path)
    assert picture_stage(tmp_path).read()["row"].to_pylist() == list(range(9))


@pytest.mark.parametrize("text", ["", '{"num_rows": 9', "[]", "{}", '{"num_rows": 8, "num_shards": 3}'])
def test_a_broken_mark_of_completeness_is_made_anew(tmp_path, text):
    stage = picture_stage(tmp_path)
    stage.mark_complete()
    whole = (stage.path / "complete.json").read_bytes()
    (stage.path / "complete.json").write_text(text)
    assert not stage.is_complete
    stage.finish()
    assert stage.is_complete and (stage.path / "complete.json").read_bytes() == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_the_same_stage_goes_on(tmp_path, monkeypatch, code, call):
    stage = WorkDir(tmp_path).stage("pictures", {}, 9, 3, PICTURES)
    stage.write(0, pictures(range(0, 3)))
    before = contents(tmp_path)

    def full(*arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            UserError, match=r"^disk full: expected .* kB free for part-00001.parquet, found .* in /"
        ) as e:
            stage.write(1, pictures(range(3, 6)))
        assert "\n" not in str(e.value)
        with pytest.raises(UserError, match="^disk full: expected 0.0 kB free for craft_run.json, found"):
            atomic_write_json(tmp_path / "new" / "folder" / "craft_run.json", {})
    assert contents(tmp_path) == before, "no temporary file takes the space that is left"
    assert picture_stage(tmp_path).read()["row"].to_pylist() == list(range(9))


def test_other_errors_of_writing_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "input/output error")))
    with pytest.raises(OSError, match="input/output error"):
        atomic_write_bytes(tmp_path / "a", b"x")


@pytest.mark.parametrize("text", [b"", b'{"a": 1', b"\xff", b"[]", b"null", b"3"])
def test_broken_json_is_named(tmp_path, text):
    (tmp_path / "craft_build.json").write_bytes(text)
    with pytest.raises(UserError, match=r"craft_build.json: expected (JSON|a JSON object), found ") as error:
        read_json(tmp_path / "craft_build.json")
    assert "\n" not in str(error.value)


def test_what_safetensors_left_is_removed(tmp_path):
    for name in (
        "vae/.tmpAb3xYz",
        ".tmpAb3xYz",
        "vae/.tmp",
        "vae/weights.safetensors",
        ".checkpoint-2.tmp/x",
        "a/b/.tmpAb3xYz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    remove_unfinished_weights(tmp_path)
    names = {".checkpoint-2.tmp/x", "a/b/.tmpAb3xYz", "vae/.tmp", "vae/weights.safetensors"}
    assert set(contents(tmp_path)) == names


def test_a_stage_folder_that_is_a_file(tmp_path):
    (tmp_path / "scores").write_text("")
    for name in ("scores", "scores/pickscore"):
        with pytest.raises(UserError, match="--output_dir: expected a folder, found the file .*/scores$"):
            WorkDir(tmp_path).stage(name, {}, 1, 1)


def test_output_folder_that_is_a_file(tmp_path):
    file = tmp_path / "out"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match="--output_dir: expected a folder, found the file"):
            WorkDir(path)


def test_json_is_strict_and_fingerprints_see_changes(tmp_path):
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "a.json", {"mean": float("nan")})
    assert not list(tmp_path.iterdir())
    atomic_write_bytes(tmp_path / "new" / "b.bin", b"x")
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"x"
    assert fingerprint(["a", "b"]) == fingerprint(("a", "b")) != fingerprint(["ab"])
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
