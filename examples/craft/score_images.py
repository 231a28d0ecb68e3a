#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Scores images with reward models: a folder, Parquet files or a dataset of the Hub in, a table out.

    python score_images.py --images my_images --rewards hps_v2.1 pickscore aesthetic --output_dir outputs/scores
    python score_images.py --images org/dataset:test --caption_column text --rewards clip_score \
        --output_dir outputs/scores --output_file scores.csv

Captions of a folder come from its metadata.jsonl or metadata.csv, from --captions, or from the text file beside each
image. Run the same command again after an interruption, or with further rewards: finished work is kept.
"""

# /// script
# dependencies = [
#     "diffusers-craft[rewards]",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from diffusers_craft import RewardSettings, UserError, open_images, score_images
from diffusers_craft.scripts import (
    ScoringJob,
    WorkDir,
    add_reward_arguments,
    atomic_write_bytes,
    default_device,
    load_rewards,
    parse_reward_weights,
    rank_and_world,
    reward_source,
    run_script,
    write_run_json,
)


ROWS_PER_SHARD = 64  # images: the most that a killed run repeats
SUFFIXES = (".parquet", ".csv")


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--images",
        required=True,
        help="Folder of images or Parquet files, Parquet file, or Hub id (NAME, NAME:SPLIT).",
    )
    images.add_argument(
        "--image_column", default="image", help="Column of Parquet and datasets that holds the images."
    )
    images.add_argument(
        "--caption_column", default=None, help="Column with the captions; default: prompt, caption or text."
    )
    images.add_argument(
        "--captions", default=None, help="CSV or JSONL file with a column file_name, for a folder of images."
    )
    images.add_argument("--prompt", default=None, help="One prompt for all images, instead of captions.")
    add_reward_arguments(parser.add_argument_group("rewards"), ["hps_v2.1", "pickscore", "aesthetic"])
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir", required=True, help="The work folder; a run with the same images goes on there."
    )
    output.add_argument(
        "--output_file",
        nargs="+",
        default=None,
        help="Tables to write, .parquet or .csv each; default: OUTPUT_DIR/scores.parquet.",
    )
    output.add_argument("--device", default=None, help="Default: the GPU of this rank if there is one, else the CPU.")
    return parser.parse_args(input_args)


def output_files(args: argparse.Namespace) -> list[Path]:
    """Where the table goes."""
    files = [Path(name) for name in args.output_file or [Path(args.output_dir) / "scores.parquet"]]
    for file in files:
        if file.suffix not in SUFFIXES:
            raise UserError(
                f"--output_file: expected a name that ends in {' or '.join(SUFFIXES)}, found {str(file)!r}"
            )
    return files


def assemble(images: Any, job: ScoringJob) -> pa.Table:
    """One row an image: its name, its prompt and a column of raw scores a reward; null where it cannot be read."""
    columns = {
        "image": pa.array([images.name(row) for row in range(images.num_rows)], pa.string()),
        "prompt": pa.array(images.prompts(), pa.string()),
    }
    for name, stage in job.stages.items():
        scores = stage.read(["score"])["score"].to_numpy()
        columns[name] = pa.array(scores, pa.float32(), mask=np.isnan(scores))
    return pa.table(columns)


def write_table(path: Path, table: pa.Table, sources: dict[str, Any]) -> None:
    """Parquet, with the rewards' sources in its metadata, or CSV."""
    sink = io.BytesIO()
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table.replace_schema_metadata({"rewards": json.dumps(sources)}), sink)
    atomic_write_bytes(path, sink.getvalue())


def summarize(table: pa.Table, names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Mean and median of each reward over the images that could be read."""
    summary = {}
    for name in names:
        values = table[name].drop_null().to_numpy()
        mean, median = (float(np.mean(values)), float(np.median(values))) if len(values) else (None, None)
        summary[name] = {"images": len(values), "mean": mean, "median": median}
    return summary


def format_summary(summary: dict[str, dict[str, Any]], num_rows: int) -> str:
    width = max(len("reward"), *map(len, summary))
    lines = [f"{'reward':<{width}} {'images':>8} {'mean':>10} {'median':>10}"]
    for name, row in summary.items():
        numbers = ["-" if row[key] is None else f"{row[key]:.5g}" for key in ("mean", "median")]
        lines.append(f"{name:<{width}} {row['images']:>8,} {numbers[0]:>10} {numbers[1]:>10}")
    unreadable = num_rows - min(row["images"] for row in summary.values())
    if unreadable:
        lines.append(f"{unreadable:,} of {num_rows:,} images could not be read and have no score")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)

    # What can be wrong is found before a model is loaded.
    files = output_files(args)
    names = list(parse_reward_weights(args.rewards))
    settings = RewardSettings.from_args(args, names)
    device = args.device or default_device()
    images = open_images(args.images, args.image_column, args.caption_column, args.captions, args.prompt)
    rewards = load_rewards(names, settings, device)
    sources = {name: reward_source(reward) for name, reward in rewards.items()}

    work, stages = WorkDir(args.output_dir), {}
    for name in names:
        options = {"images": images.identity, f"reward {name}": sources[name]}
        stages[name] = work.stage(f"scores/{name}", options, images.num_rows, ROWS_PER_SHARD)
    job = ScoringJob(images, stages)
    score_images([job], rewards, settings.residency, settings.workers(device), skip_unreadable=True)
    if rank_and_world()[0] > 0:  # the first rank writes the table
        return

    table = assemble(images, job)
    summary = summarize(table, names)
    for file in files:
        write_table(file, table, sources)
    write_run_json(work.path / "score_images.json", args, reward_sources=sources, summary=summary)
    print(format_summary(summary, images.num_rows))


if __name__ == "__main__":
    run_script(main, parse_args())
