#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishes on the Hub what a build or a training run left in its output folder; nothing is computed again.

    python publish_craft.py --output_dir outputs/top100 --hub_dataset_id org/craft-top100
    python publish_craft.py --output_dir outputs/craft --hub_model_id org/craft --evaluation_dir outputs/evaluation

The token is that of HF_TOKEN or of `hf auth login`. After a failure the same command goes on where it was.
"""

# /// script
# dependencies = [
#     "diffusers-craft",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import logging
from collections.abc import Sequence

from diffusers_craft import publish_dataset, publish_model
from diffusers_craft.scripts import run_script


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Of build_craft_dataset.py or of a training script.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--hub_dataset_id", help="Publish the dataset of a build as ORG/NAME.")
    what.add_argument("--hub_model_id", help="Publish the model of a training run as ORG/NAME.")
    parser.add_argument("--hub_private_repo", action="store_true", help="Make the repository private.")
    parser.add_argument("--hub_revision", help="Branch to push to.")
    parser.add_argument("--hub_license", help="For the card; a model's default is what its base model states.")
    model = parser.add_argument_group("model")
    model.add_argument("--push_unet_only", action="store_true", help="Publish the UNet alone.")
    model.add_argument("--evaluation_dir", help="--output_dir of evaluate_craft.py: its results go on the card.")
    model.add_argument("--base_model", help="Hub id of the base model, if the run was given a path.")
    args = parser.parse_args(input_args)
    if args.hub_dataset_id and (args.push_unet_only or args.evaluation_dir or args.base_model):
        parser.error("--push_unet_only, --evaluation_dir, --base_model: expected --hub_model_id with them, found none")
    return args


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("diffusers_craft").setLevel(logging.INFO)
    where = {"license": args.hub_license, "private": args.hub_private_repo or None, "revision": args.hub_revision}
    if args.hub_dataset_id:
        print(publish_dataset(args.output_dir, args.hub_dataset_id, **where))
    else:
        chosen = {"unet_only": args.push_unet_only, "evaluation": args.evaluation_dir, "base_model": args.base_model}
        print(publish_model(args.output_dir, args.hub_model_id, **chosen, **where))


if __name__ == "__main__":
    run_script(main, parse_args())
