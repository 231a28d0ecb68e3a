#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes the UNet of Stable Diffusion XL with CRAFT's advantage-weighted loss (arXiv 2603.18991).

    accelerate launch train_craft_sdxl.py --pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 \
        --dataset_name=outputs/build --output_dir=outputs/craft
"""

# /// script
# dependencies = [
#     "diffusers-craft[tensorboard]",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import logging
from collections.abc import Sequence

from diffusers.utils import check_min_version

from diffusers_craft import SDXL, TrainingRun, craft_loss, load_craft_dataset
from diffusers_craft.scripts import (
    ModelSource,
    add_training_arguments,
    check_training_arguments,
    create_accelerator,
    prepare_training_data,
    run_script,
)


check_min_version("0.34.0")


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser, SDXL)
    parser.add_argument("--pretrained_vae_model_name_or_path", help="Another VAE, e.g. madebyollin/sdxl-vae-fp16-fix.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    check_training_arguments(args)
    accelerator = create_accelerator(args)

    # Data: every image and caption is encoded once, then VAE and text encoders are dropped.
    source = ModelSource.from_args(args)
    components = SDXL.load(source, accelerator.device, args.prediction_type)
    with accelerator.main_process_first():
        dataset = load_craft_dataset(
            args.dataset_name or args.train_data_dir, args.dataset_config_name, cache_dir=args.cache_dir
        )
        data = prepare_training_data(dataset, SDXL, components, args)

    # Loop: another loss than CRAFT's goes here.
    run = TrainingRun(args, accelerator, SDXL, source, components, data)
    for step in run.steps():
        for batch in run.micro_batches(step):
            prediction = SDXL.predict(run.unet, batch.noisy_latents, batch.timesteps, batch.conditioning)
            loss = craft_loss(prediction, batch.target, batch.weights, batch.timestep_weights)
            run.backward(loss, prediction, batch)
        run.finish_step()
    run.finish()


if __name__ == "__main__":
    run_script(main, parse_args())
