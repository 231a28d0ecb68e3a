# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags that all training scripts share: diffusers' names, with CRAFT's recipe for 100 images as defaults."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..models.loading import TUNED_FILES, add_source_arguments


if TYPE_CHECKING:
    from ..models.families import Backbone

_LORA_RANK = 4  # diffusers' default
# What was expected -> whether a number is, and the flags.
_RANGES = {
    "at least 1": (
        lambda value: value >= 1,
        "train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs resolution max_train_samples"
        " rank lora_alpha num_validation_images checkpointing_steps checkpoints_total_limit validation_epochs",
    ),
    "more than 0": (lambda value: value > 0, "learning_rate adam_epsilon max_grad_norm snr_gamma"),
    "at least 0": (lambda value: value >= 0, "adam_weight_decay lr_warmup_steps noise_offset"),
    "a number in [0, 1)": (lambda value: 0 <= value < 1, "adam_beta1 adam_beta2"),
    "a probability in [0, 1]": (lambda value: 0 <= value <= 1, "caption_dropout"),
}


def add_training_arguments(
    parser: argparse.ArgumentParser, backbone: "Backbone", weighted_denoising: bool = True
) -> None:
    """Declares the flags that all training scripts share.

    Args:
        parser (`argparse.ArgumentParser`): receives the flags.
        backbone (`Backbone`): its recipe gives resolution and steps.
        weighted_denoising (`bool`, *optional*, defaults to `True`): whether the script's loss is CRAFT's or SFT's, with
            the flags that weigh rows and timesteps.
    """
    _add_model_arguments(parser)
    _add_data_arguments(parser, backbone.resolution)
    _add_objective_arguments(parser, weighted_denoising)
    _add_run_arguments(parser, backbone.max_train_steps)
    _add_lora_arguments(parser)
    _add_optimizer_arguments(parser)
    _add_checkpoint_arguments(parser)
    _add_logging_arguments(parser)
    _add_hub_arguments(parser)


def check_training_arguments(args: argparse.Namespace) -> None:
    """Raises a `UserError` for flags that contradict each other, lie outside their range or name the wrong folder."""
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        raise UserError(f"--dataset_name, --train_data_dir: expected exactly one of the two, found {given}")
    if args.use_generated_latents and args.random_flip:
        raise UserError("--random_flip: expected no flips with --use_generated_latents, which are not images")
    if args.use_generated_latents and getattr(args, "pretrained_vae_model_name_or_path", None) is not None:
        found = f"--pretrained_vae_model_name_or_path {args.pretrained_vae_model_name_or_path}"
        raise UserError(
            f"--use_generated_latents: expected the VAE that the latents were generated for, found {found}"
        )
    for words, (allowed, names) in _RANGES.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not allowed(value):  # not a number is never allowed
                raise UserError(f"--{name}: expected {words}, found {value}")
    _check_lora_arguments(args)
    _check_hub_arguments(args)
    _check_output_dir(args)
    if args.use_8bit_adam and args.use_adafactor:
        raise UserError("--use_8bit_adam, --use_adafactor: expected at most one of the two, found both")
    if args.train_dtype == "bf16" and (args.use_lora or args.use_ema):
        found = (
            "--use_lora, whose adapters are small" if args.use_lora else "--use_ema, whose updates are smaller still"
        )
        raise UserError(f"--train_dtype: expected fp32 with {found}, found bf16")


def _check_lora_arguments(args: argparse.Namespace) -> None:
    if not args.use_lora:
        if (args.rank, args.lora_alpha, args.lora_dropout) != (_LORA_RANK, None, 0.0):
            raise UserError("--rank, --lora_alpha, --lora_dropout: expected --use_lora with them, found none")
        return
    if args.use_ema:
        raise UserError("--use_ema: expected full fine-tuning, found --use_lora, whose adapters are not averaged")
    if not 0.0 <= args.lora_dropout < 1.0:
        raise UserError(f"--lora_dropout: expected a probability in [0, 1), found {args.lora_dropout}")


def _check_hub_arguments(args: argparse.Namespace) -> None:
    if not args.push_to_hub:
        if args.hub_model_id or args.hub_private_repo or args.push_unet_only or args.hub_strategy != "end":
            flags = "--hub_model_id, --hub_private_repo, --hub_strategy, --push_unet_only"
            raise UserError(f"{flags}: expected --push_to_hub with them, found none")
        return
    if args.push_unet_only and args.use_lora:
        raise UserError("--push_unet_only: expected full fine-tuning, found --use_lora")


def _check_output_dir(args: argparse.Namespace) -> None:
    """One folder, one kind of result: in a folder with both, the older could be taken for this run's."""
    other, own = ("pipeline", "--use_lora") if args.use_lora else ("lora", "full fine-tuning")
    if (Path(args.output_dir) / TUNED_FILES[other]).is_file():
        wanted = f"expected a folder without {'a pipeline' if args.use_lora else 'LoRA weights'} for {own}"
        raise UserError(f"--output_dir: {wanted}, found {TUNED_FILES[other]} in {args.output_dir}; choose another")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help="Hub id or folder of a diffusers pipeline, a single .safetensors file in the original layout, or the"
        " name of an embedded pipeline (tiny-sd15, tiny-sdxl).",
    )
    add_source_arguments(group)


def _add_data_arguments(parser: argparse.ArgumentParser, resolution: int) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="Hub id, or the folder that build_craft_dataset.py wrote.")
    group.add_argument("--dataset_config_name", help="Configuration of the dataset, if it has several.")
    group.add_argument("--train_data_dir", help="Folder of images with a metadata.jsonl (datasets' imagefolder).")
    group.add_argument("--image_column", default="image")
    group.add_argument("--caption_column", default="prompt", help="The text that training conditions on.")
    group.add_argument(
        "--advantage_column", default="advantage", help="Weight of a row; a dataset without it trains as SFT."
    )
    group.add_argument("--latent_column", default="latent", help="Scaled latents, see --use_generated_latents.")
    group.add_argument(
        "--use_generated_latents",
        action="store_true",
        help="Train on the latents that the base model generated instead of encoding the images again.",
    )
    group.add_argument("--max_train_samples", type=int, help="Train on a random subset of this many rows.")
    group.add_argument("--resolution", type=int, default=resolution, help="Side of the training images, pixels.")
    group.add_argument(
        "--center_crop", action="store_true", help="Crop the centre; the default is a random place an image."
    )
    group.add_argument(
        "--random_flip", action="store_true", help="Flip every other draw (no good for texts or sides)."
    )


def _add_objective_arguments(parser: argparse.ArgumentParser, weighted_denoising: bool) -> None:
    group = parser.add_argument_group("objective")
    if weighted_denoising:
        _add_weight_arguments(group)
    else:
        parser.set_defaults(loss="sft", advantage_clip_min=None, snr_gamma=None)
    group.add_argument(
        "--caption_dropout", type=float, default=0.0, help="Probability of training a draw on the empty caption."
    )
    group.add_argument(
        "--noise_offset", type=float, default=0.0, help="Deviation of a constant on each channel's noise, e.g. 0.05."
    )
    group.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction", "sample"],
        help="What the UNet predicts; the default is what the model's scheduler says.",
    )


def _add_weight_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--loss", choices=["craft", "sft"], default="craft", help="sft is craft with every advantage set to 1."
    )
    group.add_argument(
        "--advantage_clip_min",
        type=float,
        help="Lower bound of the advantages; 0 unlearns nothing. The default keeps negative ones, as the paper does.",
    )
    group.add_argument(
        "--snr_gamma", type=float, help="Weigh timesteps by min-SNR with this gamma (5 in its paper); default: alike."
    )


def _add_run_arguments(parser: argparse.ArgumentParser, max_train_steps: int) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", default="craft-model", help="Receives the pipeline, checkpoints and logs.")
    group.add_argument("--seed", type=int, default=0, help="All randomness derives from it and the step.")
    group.add_argument("--train_batch_size", type=int, default=16, help="Images a process and forward pass.")
    group.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        default=8,
        help="Passes an optimizer step; the recipe wants train_batch_size * this * processes = 128.",
    )
    group.add_argument("--num_train_epochs", type=int, help="Train this many passes over the data instead.")
    group.add_argument(
        "--max_train_steps", type=int, help=f"Optimizer steps; the recipe's default is {max_train_steps}."
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="Less memory for a third more work.")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: accelerate's setting.")
    group.add_argument(
        "--train_dtype",
        choices=["fp32", "bf16"],
        default="fp32",
        help="Of the trained weights and their gradients; bf16, for small cards, rounds every update stochastically.",
    )
    group.add_argument("--allow_tf32", action="store_true", help="TF32 products and convolutions, Ampere and later.")
    group.add_argument("--channels_last", action="store_true", help="Convolution weights in NHWC, faster on GPUs.")
    group.add_argument(
        "--torch_compile", action="store_true", help="Compile the transformer blocks; the first step takes minutes."
    )


def _add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("LoRA")
    group.add_argument(
        "--use_lora",
        action="store_true",
        help="Train low-rank adapters of all attention projections instead of the whole UNet; needs peft. The learning"
        " rate usually wants to be higher, e.g. 1e-4.",
    )
    group.add_argument("--rank", type=int, default=_LORA_RANK, help="Of the adapters.")
    group.add_argument("--lora_alpha", type=int, help="The adapters count alpha / rank; the default is the rank.")
    group.add_argument("--lora_dropout", type=float, default=0.0, help="Probability of dropping an adapter's input.")


def _add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument("--learning_rate", type=float, default=5e-5)
    group.add_argument(
        "--scale_lr", action="store_true", help="Multiply the rate by batch size, accumulation and processes."
    )
    group.add_argument(
        "--lr_scheduler",
        default="constant",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
    )
    group.add_argument("--lr_warmup_steps", type=int, default=0, help="Optimizer steps.")
    group.add_argument("--use_8bit_adam", action="store_true", help="AdamW with 8-bit state; needs bitsandbytes.")
    group.add_argument(
        "--use_adafactor",
        action="store_true",
        help="Adafactor with the same rate: a state of 0.4 bytes a weight for SDXL, 2.1 for SD1.5.",
    )
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--adam_weight_decay", type=float, default=1e-2)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument(
        "--use_ema",
        action="store_true",
        help="Save averaged weights. The decay of step s is (1 + s) / (10 + s): in 200 steps never above 0.957.",
    )


def _add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Optimizer steps between checkpoints.")
    group.add_argument("--checkpoints_total_limit", type=int, help="Keep only this many, the latest ones.")
    group.add_argument(
        "--resume_from_checkpoint", help="A checkpoint's path, or `latest` for the newest one in --output_dir."
    )


def _add_logging_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logging and validation")
    group.add_argument("--logging_dir", default="logs", help="Inside --output_dir.")
    group.add_argument(
        "--report_to",
        choices=["tensorboard", "wandb", "none"],
        help="Experiment tracker; the default is tensorboard if it is installed.",
    )
    group.add_argument("--validation_prompt", help="Draw this prompt now and then.")
    group.add_argument("--num_validation_images", type=int, default=4)
    group.add_argument("--validation_epochs", type=int, default=50, help="Passes over the data between drawings.")


def _add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Hub")
    group.add_argument(
        "--push_to_hub", action="store_true", help="Publish the result with a card, with HF_TOKEN or the login."
    )
    group.add_argument("--hub_model_id", help="ORG/NAME; the default is the name of --output_dir.")
    group.add_argument("--hub_private_repo", action="store_true", help="Make the repository private.")
    group.add_argument(
        "--hub_strategy",
        choices=["end", "checkpoint"],
        default="end",
        help="checkpoint sends every checkpoint as last-checkpoint/, too, from which another machine can resume.",
    )
    group.add_argument("--push_unet_only", action="store_true", help="Publish the UNet alone.")
