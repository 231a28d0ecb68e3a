# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The work folder: every stage keeps its rows as Parquet shards that appear whole or not at all, by any of the ranks.

Each stage's folder remembers the options that determine its rows and refuses other ones.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import UserError
from .files import atomic_write_bytes, atomic_write_json, fingerprint, read_json, remove_leftovers
from .output import probe_folder
from .parquet import parquet_bytes, read_parquet


DATASET_FOLDER = "dataset"  # the selected rows
REPORT_FOLDER = "report"  # of a build
BUILD_FILE = "craft_build.json"  # a finished build: its options and results
CONSTANTS_FILE = "normalization.json"  # of the rewards of a build
RUN_FILE = "craft_run.json"  # a finished training: its options and results
SCORED_FILE = "scored.parquet"  # every candidate with its scores, without images
OPTIONS_FILE = "options.json"
COMPLETE_FILE = "complete.json"
POLL_SECONDS = 1.0  # between two looks at what other ranks have written
MADE_ANEW = "remove it, and the command that wrote it makes it anew"  # never in silence


def _flatten(options: dict, prefix: str = "") -> dict[str, Any]:
    """Nested options as one level with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differences(there: dict, now: dict) -> list[str]:
    """Every option that differs, as `--name (old there, new now)`."""
    old, new = _flatten(there), _flatten(now)

    def show(options: dict, name: str) -> str:
        text = json.dumps(options[name], ensure_ascii=False) if name in options else "absent"
        return text if len(text) <= 80 else text[:77] + "..."

    differing = (name for name in new | old if name not in old or name not in new or old[name] != new[name])
    return [f"--{name} ({show(old, name)} there, {show(new, name)} now)" for name in differing]


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks, as `accelerate launch` and torchrun set them; (0, 1) without."""
    # Ranks share work through the work folder alone: they need no process group, and may run on different machines.
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_first_rank() -> bool:
    """Whether this process writes what all ranks have in common."""
    return rank_and_world()[0] == 0


class WorkDir:
    """A folder (`--output_dir`, made if missing) that holds one subfolder per stage."""

    def __init__(self, path: str | os.PathLike):
        self.path = probe_folder(path)

    def stage(
        self,
        name: str,
        options: dict[str, Any],
        num_rows: int,
        rows_per_shard: int,
        schema: pa.Schema | None = None,
    ) -> "Stage":
        """Opens a stage, e.g. `"scores/hps_v2.1"`; one begun earlier keeps its `rows_per_shard`: batches may change.

        `options` are all that determine the rows, upstream ones too, named like the flags, long ones by `fingerprint`.
        Columns are read as `schema` has them, and other ones refused.
        """
        if num_rows < 1 or rows_per_shard < 1:
            found = f"found {num_rows} and {rows_per_shard}"
            raise UserError(f"stage {name!r}: expected at least 1 row and 1 row per shard, {found}")
        folder = self.path / name
        options_file = folder / OPTIONS_FILE
        now = json.loads(json.dumps(options, default=os.fspath))  # tuples become lists, as they read back
        probe_folder(folder)
        if not options_file.exists():
            atomic_write_json(options_file, {"options": now, "num_rows": num_rows, "rows_per_shard": rows_per_shard})
        there = _read_options(folder)
        found = _differences(there["options"], now)
        if there["num_rows"] != num_rows:
            found.append(f"number of rows ({there['num_rows']} there, {num_rows} now)")
        if found:
            raise UserError(
                f"work folder {self.path}: stage {name!r} was built with other options: {', '.join(found)};"
                " use another --output_dir or remove it"
            )
        remove_leftovers(folder)
        return Stage(folder, num_rows, there["rows_per_shard"], schema, fingerprint(there["options"]))


def _read_options(folder: Path) -> dict[str, Any]:
    """What a stage was begun with."""
    path = folder / OPTIONS_FILE
    try:
        there = read_json(path)
        sizes = [there["num_rows"], there["rows_per_shard"]]
        is_whole = isinstance(there["options"], dict) and all(isinstance(size, int) and size > 0 for size in sizes)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        found = f"found {path.read_bytes()[:60]!r}"
        fix = f"remove {folder}, and the command that wrote it makes it anew"  # of what its shards are, nobody knows
        raise UserError(f"{path}: expected the options and sizes of a stage, {found}; {fix}")
    return there


@dataclass(eq=False)
class Stage:
    """The shards of one stage in its folder `path`; open it with `WorkDir.stage`, or with `there` to read only."""

    path: Path
    num_rows: int
    rows_per_shard: int  # of every shard but the last
    schema: pa.Schema | None = None  # of its columns; any without
    key: str = ""  # of its options: shards of other ones are not taken for its own

    @classmethod
    def there(cls, path: Path) -> "Stage":
        """The stage in a folder, whatever its options."""
        there = _read_options(path)
        return cls(path, there["num_rows"], there["rows_per_shard"], key=fingerprint(there["options"]))

    @property
    def num_shards(self) -> int:
        """How many files the rows fill."""
        return -(-self.num_rows // self.rows_per_shard)

    def shard_path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.path / f"part-{shard:05d}.parquet"

    def rows(self, shard: int) -> range:
        """The rows that a shard holds."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_rows))

    def is_done(self, shard: int) -> bool:
        """Whether a shard is on disk (then it is whole)."""
        return self.shard_path(shard).exists()

    def missing(self) -> list[int]:
        """Shards still to be made."""
        return [shard for shard in range(self.num_shards) if not self.is_done(shard)]

    def share(self) -> list[int]:
        """This rank's share of the missing shards; by number, since ranks look at different moments."""
        rank, world = rank_and_world()
        return [shard for shard in self.missing() if shard % world == rank]

    def finish(self) -> None:
        """Waits until all ranks have written their shares; the first one marks the stage complete."""
        while not self.is_complete:
            if is_first_rank() and not self.missing():
                self.mark_complete()
            else:
                time.sleep(POLL_SECONDS)

    def write(self, shard: int, table: pa.Table) -> None:
        """Puts the `rows(shard)` in order on disk, atomically and with the same bytes for the same rows."""
        rows = self.rows(shard)
        if _row_numbers(table) != list(rows):
            raise RuntimeError(f"{self.shard_path(shard)}: expected the rows {rows.start} to {rows.stop - 1} in order")
        atomic_write_bytes(self.shard_path(shard), parquet_bytes(table, self.key))

    @property
    def is_complete(self) -> bool:
        """Whether the stage was marked complete and all its shards are there."""
        try:
            return read_json(self.path / COMPLETE_FILE) == self._sizes and not self.missing()
        except (FileNotFoundError, ValueError):  # a broken mark is made anew
            return False

    @property
    def _sizes(self) -> dict[str, int]:
        return {"num_rows": self.num_rows, "num_shards": self.num_shards}

    def mark_complete(self) -> None:
        """Marks the stage as done; with several ranks, one of them calls it after all have finished."""
        self._require_all()
        remove_leftovers(self.path)
        atomic_write_json(self.path / COMPLETE_FILE, self._sizes)

    def read_shard(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of one shard, all columns or the named ones; a `UserError` names a file that is damaged."""
        names = columns if columns or self.schema is None else self.schema.names
        try:
            table = read_parquet(self.shard_path(shard), self.key, names and ["row", *names])
        except ValueError as error:
            raise self.damage(shard, "a Parquet file", str(error)) from None
        rows, found = self.rows(shard), _row_numbers(table)
        if found != list(rows):
            others = f"{len(found)} rows" + (f" from {found[0]} to {found[-1]}" if found else "")
            raise self.damage(shard, f"the rows {rows.start} to {rows.stop - 1} in order", others)
        names, there = names or table.column_names, {field.name: field for field in table.schema}
        for name in names:
            wanted = there.get(name) if self.schema is None else self.schema.field(name)
            if name not in there or there[name] != wanted:
                other = _about(there[name]) if name in there else ", ".join(there)
                raise self.damage(shard, f"the column {name if wanted is None else _about(wanted)}", other)
        return table.select(names)

    def damage(self, shard: int, expected: str, found: str) -> UserError:
        """The error that names a shard and says how it is mended."""
        return UserError(f"{self.shard_path(shard)}: expected {expected}, found {found}; {MADE_ANEW}")

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows in order, all columns or the named ones; a `UserError` if shards are missing."""
        self._require_all()
        return pa.concat_tables([self.read_shard(shard, columns) for shard in range(self.num_shards)])

    def _require_all(self) -> None:
        if missing := len(self.missing()):
            raise UserError(f"{self.path}: {missing} of {self.num_shards} shards are missing; run the stage again")


def _row_numbers(table: pa.Table) -> list[int]:
    """What tells rows apart, wherever their shard lies; none without the column."""
    return table["row"].to_pylist() if "row" in table.column_names else []


def _about(field: pa.Field) -> str:
    return f"{field.name}: {field.type}{'' if field.nullable else ' not null'}"
