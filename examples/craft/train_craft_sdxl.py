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

from diffusers_craft import CRAFT, SDXL, SFT, TrainingRun, TrainingSettings, craft_loss
from diffusers_craft.scripts import add_fields, create_accelerator, encode_rows, from_args, load_rows, run_script


check_min_version("0.34.0")

LOSSES = {"craft": CRAFT, "sft": SFT}  # what they make of the advantages


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(backbone="sdxl")
    add_fields(parser, TrainingSettings, without=("backbone", "preferences"))
    parser.add_argument("--loss", choices=LOSSES, default="craft", help="sft is craft with every advantage set to 1.")
    add_fields(parser, CRAFT)
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    settings, objective = from_args(TrainingSettings, args), from_args(LOSSES[args.loss], args)
    accelerator = create_accelerator(settings)

    # Data: every image and caption is encoded once, then VAE and text encoders are dropped.
    dataset = load_rows(settings, objective, accelerator)
    components = SDXL.load(settings.source, accelerator.device, settings.prediction_type)
    data = encode_rows(dataset, settings, objective, SDXL, components, accelerator)

    # Loop: another loss than CRAFT's goes here.
    run = TrainingRun(settings, accelerator, SDXL, components, data, objective)
    for step in run.steps():
        for batch in run.micro_batches(step):
            prediction = SDXL.predict(run.denoiser, batch.noisy_latents, batch.timesteps, batch.conditioning)
            loss = craft_loss(prediction, batch.target, batch.weights, batch.timestep_weights)
            run.backward(loss, prediction, batch)
        run.finish_step()
    run.finish()


if __name__ == "__main__":
    run_script(main, parse_args())
