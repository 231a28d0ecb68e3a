#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Scores images with reward models: a folder, Parquet files or a dataset of the Hub in, a table out.

    python score_images.py --images my_images --rewards hps_v2.1 pickscore aesthetic --output_dir outputs/scores
    python score_images.py --images org/dataset:test --caption_column text --rewards clip_score \
        --output_dir outputs/scores --output_file scores.csv

Captions of a folder come from its metadata.jsonl or metadata.csv, from --captions, or from the text file beside each
image; rewards that read none (aesthetic) do without. Run the same command again after an interruption, or with further
rewards: finished work is kept.
"""

# /// script
# dependencies = [
#     "diffusers-craft[rewards]",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from diffusers_craft import RewardSettings, UserError, open_images
from diffusers_craft.scripts import (
    add_image_arguments,
    add_reward_arguments,
    any_reads_prompts,
    default_device,
    load_rewards,
    parse_reward_weights,
    probe_folder,
    run_script,
    score_table,
    table_paths,
    write_run_json,
)


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_image_arguments(parser.add_argument_group("images"))
    add_reward_arguments(parser.add_argument_group("rewards"), ["hps_v2.1", "pickscore", "aesthetic"])
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", required=True, help="The work folder; a run with the same images goes on there.")
    text = "Tables to write, .parquet or .csv each; default: OUTPUT_DIR/scores.parquet."
    out.add_argument("--output_file", nargs="+", help=text)
    out.add_argument("--device", help="Default: the GPU of this rank if there is one, else the CPU.")
    return parser.parse_args(input_args)


def open_source(args: argparse.Namespace, names: Sequence[str]):
    """The images with their captions; without, where there are none and no reward reads any."""
    named = any(value is not None for value in (args.caption_column, args.captions, args.prompt))
    needed = named or any_reads_prompts(names)
    try:
        images = open_images(args.images, args.image_column, args.caption_column, args.captions, args.prompt)
        if not needed:
            images.prompts()  # whether each image has one
    except UserError as error:
        if needed:
            raise
        images = open_images(args.images, args.image_column, prompt="")
        logging.warning("%s; scored without, for %s reads no captions", error, ", ".join(names))
    return images


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)

    # What can be wrong is found before a model is loaded.
    args.output_dir = str(probe_folder(args.output_dir, make=False))
    files = table_paths(args.output_file or [Path(args.output_dir) / "scores.parquet"])
    names = list(parse_reward_weights(args.rewards))
    settings, device = RewardSettings.from_args(args, names), args.device or default_device()
    images = open_source(args, names)
    rewards = load_rewards(names, settings, device)
    scores = score_table(images, rewards, args.output_dir, settings.residency, settings.workers(device))
    if scores is not None:  # on the first rank
        for file in files:
            scores.write(file)
        found = {"reward_sources": scores.sources, "summary": scores.summary}
        write_run_json(Path(args.output_dir) / "score_images.json", args, **found)
        print(scores.text)


if __name__ == "__main__":
    run_script(main, parse_args())
