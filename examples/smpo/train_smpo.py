#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes Stable Diffusion 1.5 or XL with SmPO-Diffusion (arXiv 2506.02698): smoothed pairs, inverted latents.

    accelerate launch train_smpo.py --pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --dataset_name=outputs/build --output_dir=outputs/smpo

With --backbone=sdxl for Stable Diffusion XL. The dataset is a build's folder, whose candidates and scores give the pairs,
or pairs of images with score_0 and score_1, or with --rewards to score them.
"""

# /// script
# dependencies = [
#     "diffusers-craft[rewards,tensorboard]",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import logging
from collections.abc import Sequence

from diffusers.utils import check_min_version

from diffusers_craft import SmPO
from diffusers_craft.scripts import (
    add_alignment_arguments,
    add_objective_options,
    add_reward_arguments,
    objective_from_args,
    run_script,
    train_alignment,
)


check_min_version("0.34.0")


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_alignment_arguments(parser, input_args, learning_rate=1e-5)
    add_objective_options(parser, [SmPO])
    add_reward_arguments(parser.add_argument_group("rewards, for pairs that have no scores"), [])
    parser.set_defaults(output_dir="smpo-model")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    train_alignment(args, objective_from_args(SmPO, args, [SmPO]))


if __name__ == "__main__":
    run_script(main, parse_args())
