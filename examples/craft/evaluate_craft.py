#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Compares tuned pipelines with their base on the same prompts and seeds: tables, alarms, a report, a grid of images.

    python evaluate_craft.py --base base=tiny-sd15 --tuned craft=outputs/craft sft=outputs/sft --prompts tiny-heldout \
        --output_dir outputs/evaluation
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

from diffusers.utils import check_min_version

from diffusers_craft import Evaluation, GenerationSettings, RewardSettings
from diffusers_craft.scripts import (
    PROMPT_SETS,
    add_evaluation_arguments,
    add_reward_arguments,
    default_device,
    parse_reward_weights,
    probe_folder,
    run_script,
    torch_dtype,
    write_run_json,
)


check_min_version("0.34.0")


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_arguments(parser, PROMPT_SETS)
    add_reward_arguments(parser, ["hps_v2.1", "pickscore", "aesthetic"], embedded="A tiny-* base brings its own.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("diffusers_craft").setLevel(logging.INFO)

    args.output_dir = str(probe_folder(args.output_dir, make=False))
    args.device = args.device or default_device()
    rewards = list(parse_reward_weights(args.rewards))
    results = Evaluation(
        base=args.base,
        tuned=args.tuned,
        prompts=args.prompts,
        rewards=rewards,
        set_metrics=args.set_metrics,
        settings=GenerationSettings(args.resolution, args.num_inference_steps, args.guidance_scale, args.batch_size),
        images_per_prompt=args.images_per_prompt,
        prompt_column=args.prompt_column,
        num_prompts=args.num_prompts,
        reward_settings=RewardSettings.from_args(args, rewards),
        training_data=args.training_data,
        alarm_embedding=args.alarm_embedding,
        dtype=torch_dtype(args.dtype),
        device=args.device,
        source={
            "revision": args.revision,
            "variant": args.variant,
            "config": args.single_file_config,
            "cache_dir": args.cache_dir,
        },
        vae=args.pretrained_vae_model_name_or_path,
        output_dir=args.output_dir,
        seed=args.seed,
    ).run()
    if results is not None:  # on the first rank
        write_run_json(Path(args.output_dir) / "craft_evaluate.json", args)
        print(results.text)


if __name__ == "__main__":
    run_script(main, parse_args())
