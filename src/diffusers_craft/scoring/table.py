# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images from anywhere in, a table of raw scores out: one row per image, one column per reward.

The shards of scores in the work folder survive a kill; the table is put together from them at the end.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..core.files import atomic_write_bytes
from ..core.records import SCORE_SCHEMA
from ..core.workdir import WorkDir, is_first_rank
from ..errors import UserError
from ..rewards.settings import reward_source
from .run import ScoringJob, read_scores, score_images
from .sources import ImageFiles


ROWS_PER_SHARD = 64  # images: the most that a killed run repeats
TABLE_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class ScoreTable:
    """Raw scores of n images: `image` (its name), `prompt`, and a float32 column per reward, null where unreadable."""

    table: pa.Table
    sources: Mapping[str, dict[str, Any]]  # reward -> what determines its scores

    @property
    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """Reward to `images`, how many could be read, and their `mean` and `median`."""
        summary = {}
        for name in self.sources:
            values = self.table[name].drop_null().to_numpy()
            mean, median = (float(np.mean(values)), float(np.median(values))) if len(values) else (None, None)
            summary[name] = {"images": len(values), "mean": mean, "median": median}
        return summary

    @property
    def text(self) -> str:
        """The summary for a terminal."""
        summary, num_rows = self.summary, len(self.table)
        width = max(len("reward"), *map(len, summary))
        lines = [f"{'reward':<{width}} {'images':>8} {'mean':>10} {'median':>10}"]
        for name, row in summary.items():
            numbers = ["-" if row[key] is None else f"{row[key]:.5g}" for key in ("mean", "median")]
            lines.append(f"{name:<{width}} {row['images']:>8,} {numbers[0]:>10} {numbers[1]:>10}")
        missing = num_rows - min(row["images"] for row in summary.values())
        if missing:
            lines.append(
                f"{missing:,} of {num_rows:,} images have no score: they cannot be read, or a reward gave none"
            )
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Writes Parquet, with the rewards' sources in its metadata, or CSV, by the name's ending."""
        sink = io.BytesIO()
        if Path(path).suffix == ".csv":
            pyarrow.csv.write_csv(self.table, sink)
        else:
            pq.write_table(self.table.replace_schema_metadata({"rewards": json.dumps(self.sources)}), sink)
        atomic_write_bytes(path, sink.getvalue())


def table_paths(names: Sequence[str | Path]) -> list[Path]:
    """The files as paths, refused where their ending says neither Parquet nor CSV."""
    paths = [Path(name) for name in names]
    for path in paths:
        if path.suffix not in TABLE_SUFFIXES:
            wanted = f"expected a name that ends in {' or '.join(TABLE_SUFFIXES)}"
            raise UserError(f"--output_file: {wanted}, found {str(path)!r}")
    return paths


def score_table(
    images: ImageFiles,
    rewards: Mapping[str, Any],
    output_dir: str | Path,
    residency: str = "sequential",
    num_workers: int = 0,
) -> ScoreTable | None:
    """Scores what is not scored yet; with several processes each does its share, and the first one gets the table.

    In `output_dir` a run with the same images goes on, also with further rewards; other images, or the same rewards from
    another source, are refused.
    """
    prompts = images.prompts()
    work, sources = WorkDir(output_dir), {name: reward_source(reward) for name, reward in rewards.items()}
    stages = {}
    for name, source in sources.items():
        options = {"images": images.identity, f"reward {name}": source}
        stages[name] = work.stage(f"scores/{name}", options, images.num_rows, ROWS_PER_SHARD, SCORE_SCHEMA)
    score_images([ScoringJob(images, stages)], rewards, residency, num_workers, skip_unreadable=True)
    if not is_first_rank():
        return None
    columns = {"image": [images.name(row) for row in range(images.num_rows)], "prompt": prompts}
    for name, stage in stages.items():
        scores = read_scores(stage)
        columns[name] = pa.array(scores, pa.float32(), mask=np.isnan(scores))
    return ScoreTable(pa.table(columns), sources)
