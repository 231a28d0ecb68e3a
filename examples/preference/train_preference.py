#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes Stable Diffusion 1.5 or XL with a preference objective: the methods that CRAFT is compared with.

    accelerate launch train_preference.py --objective=dpo \
        --pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --dataset_name=outputs/build --output_dir=outputs/dpo

Diffusion-DPO (arXiv 2311.12908), Diffusion-KTO (2404.04465), MaPO (2406.06424), DSPO (ICLR 2025), InPO (2503.18454), SPO
(2406.04314). With --backbone=sdxl for Stable Diffusion XL. The dataset is a build's folder, whose candidates and scores
give the pairs, or pairs of images such as Pick-a-Pic; SPO takes the prompts alone and makes its own images.
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

from diffusers_craft import DPO, DSPO, KTO, SPO, InPO, MaPO, TrainingSettings, train
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

OBJECTIVES = {"dpo": DPO, "kto": KTO, "mapo": MaPO, "dspo": DSPO, "inpo": InPO, "spo": SPO}


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dpo", help="The method.")
    add_fields(parser, TrainingSettings, without=("snr_gamma",))
    add_objective_options(parser, list(OBJECTIVES.values()))
    add_reward_arguments(parser.add_argument_group("rewards, for spo, by default pickscore"), [])
    parser.set_defaults(output_dir="preference-model", learning_rate=1e-5)
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    objective = objective_from_args(OBJECTIVES[args.objective], args, list(OBJECTIVES.values()))
    train(from_args(TrainingSettings, args), objective, *rewards_from_args(args))


if __name__ == "__main__":
    run_script(main, parse_args())
