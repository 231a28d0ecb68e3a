# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What may change where a run goes on from a checkpoint: nothing that the saved state depends on; the rest is said."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch

from .training_state import checkpoint_step, list_checkpoints


logger = logging.getLogger(__name__)

# The saved optimizer state and weights have another form with another value.
_BOUND = ("use_lora", "rank", "lora_alpha", "use_8bit_adam", "use_adafactor", "train_dtype")
# How a run is carried out, watched and published, not what it computes. Batches, rows and the seed are compared apart.
_INCIDENTAL = {
    "seed",
    "max_train_steps",
    "num_train_epochs",
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "channels_last",
    "torch_compile",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "num_validation_images",
    "validation_epochs",
    "push_to_hub",
    "hub_private_repo",
    "push_unet_only",
    "max_train_samples",
}
_TEXTS = {  # others may be paths
    *("loss", "objective", "form", "utility", "renoise", "inverter", "grid", "image_sharing"),
    *("lr_scheduler", "mixed_precision", "train_dtype", "prediction_type"),
}


def recipe(args: Namespace) -> dict[str, bool | int | float | str | None]:
    """The flags that decide what a training computes; no paths, since checkpoints may be published."""
    chosen = {}
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        is_plain = value is None or all(isinstance(part, (bool, int, float)) for part in values)
        if name in _TEXTS or (is_plain and name not in _INCIDENTAL):
            chosen[name] = value
    return chosen


def check_place(path: Path, step: int, output_dir: str | Path, max_train_steps: int) -> None:
    """Whether a run may go on from a step in this folder.

    Raises:
        ValueError: if the folder has later checkpoints, which rotation and `latest` would take for this run's, or if
            the run is over.
    """
    newest = list_checkpoints(output_dir)[-1:]
    if newest and checkpoint_step(newest[0]) > step:
        wanted = f"expected no later checkpoint than {path.name} in {output_dir}"
        fix = "move it away, or give another --output_dir"
        raise ValueError(f"--resume_from_checkpoint: {wanted}, found {newest[0].name}; {fix}")
    if step > max_train_steps:
        raise ValueError(f"--max_train_steps: expected at least {step}, the steps of {path}, found {max_train_steps}")


def check_recipe(then: Mapping, now: Mapping, path: Path) -> None:
    """Compares `recipe`s: what the state depends on must be the same, and any other change is logged.

    Raises:
        ValueError: if the optimizer or the form of the weights is another one.
    """
    for name in _BOUND:
        if name in then and then[name] != now[name]:
            why = "its state has that form; start anew in another --output_dir"
            raise ValueError(f"--{name}: expected {then[name]}, as in {path}, found {now[name]}; {why}")
    for name in sorted(set(then) & set(now)):
        if then[name] != now[name]:
            logger.warning("--%s of the checkpoint is %s, now %s: not the same run.", name, then[name], now[name])


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Rate, betas, decay and so on of each group of weights."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def restore_hyperparameters(optimizer: torch.optim.Optimizer, lr_scheduler, wanted: list[dict]) -> None:
    """Gives a loaded optimizer the options of this run's flags; loading has put the checkpoint's in their place.

    Args:
        optimizer (`torch.optim.Optimizer`): accelerate's, after `load_state`.
        lr_scheduler: accelerate's around a `LambdaLR`, after `load_state`.
        wanted (`list[dict]`): `hyperparameters` before it.
    """
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
    schedule.base_lrs = [group["initial_lr"] for group in wanted]
    rates = [base * share(schedule.last_epoch) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas)]
    for group, options, rate in zip(optimizer.param_groups, wanted, rates, strict=True):
        group.update(options | {"lr": rate})
    schedule._last_lr = rates
