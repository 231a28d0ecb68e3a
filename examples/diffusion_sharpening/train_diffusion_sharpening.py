#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes Stable Diffusion 1.5 or XL with Diffusion-Sharpening (arXiv 2502.12146), its SFT or its RLHF variant.

    accelerate launch train_diffusion_sharpening.py --sharpening=sft \
        --pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --dataset_name=outputs/build --rewards pickscore --output_dir=outputs/sharpening

With --backbone=sdxl for Stable Diffusion XL. SFT trains on the dataset's images, RLHF on its prompts alone. Where the
dataset is a build's folder, rewards are normalised with its constants.
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

from diffusers_craft import RLHFSharpening, SFTSharpening, TrainingSettings, train
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

VARIANTS = {"sft": SFTSharpening, "rlhf": RLHFSharpening}


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharpening", choices=VARIANTS, default="sft", help="The variant.")
    add_fields(parser, TrainingSettings, without=("snr_gamma",))
    add_objective_options(parser, list(VARIANTS.values()))
    add_reward_arguments(parser.add_argument_group("rewards, by default pickscore"), [])
    parser.set_defaults(output_dir="sharpening-model", learning_rate=1e-6)
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    kind = VARIANTS[args.sharpening]
    objective = objective_from_args(kind, args, list(VARIANTS.values()))
    train(from_args(TrainingSettings, args), objective, *rewards_from_args(args))


if __name__ == "__main__":
    run_script(main, parse_args())
