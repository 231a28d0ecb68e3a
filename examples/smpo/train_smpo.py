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

from diffusers_craft import SmPO, TrainingSettings, train
from diffusers_craft.scripts import (
    add_fields,
    add_objective_options,
    add_reward_arguments,
    from_args,
    objective_from_args,
    rewards_from_args,
    run_script,
)


check_min_version("0.34.0")


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fields(parser, TrainingSettings, without=("snr_gamma",))
    add_objective_options(parser, [SmPO])
    add_reward_arguments(parser.add_argument_group("rewards, for pairs that have no scores"), [])
    parser.set_defaults(output_dir="smpo-model", learning_rate=1e-5)
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    objective = objective_from_args(SmPO, args, [SmPO])
    train(from_args(TrainingSettings, args), objective, *rewards_from_args(args))


if __name__ == "__main__":
    run_script(main, parse_args())
