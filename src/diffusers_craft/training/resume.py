# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What may change where a run goes on from a checkpoint: nothing that the saved state depends on; the rest is said."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType

from ..errors import UserError
from ..objectives.base import Objective
from .checkpoints import checkpoint_step, find_checkpoint, list_checkpoints, read_state
from .model import TrainedModel
from .settings import TrainingSettings


logger = logging.getLogger(__name__)


def recipe(settings: TrainingSettings, objective: Objective) -> dict[str, Any]:
    """What decides what a training computes, as JSON keeps it; no paths, since checkpoints may be published."""
    other = ("path", "incidental")
    fields = [field for field in dataclasses.fields(settings) if field.metadata.get("role") not in other]
    chosen = {field.name: getattr(settings, field.name) for field in fields} | objective.record()
    return json.loads(json.dumps(chosen))


def resume(
    settings: TrainingSettings,
    objective: Objective,
    model: TrainedModel,
    identity: Mapping[str, int],
    max_train_steps: int,
) -> dict:
    """Puts everything back as `--resume_from_checkpoint` has it.

    Args:
        settings (`TrainingSettings`): of this run.
        objective (`Objective`): of this run.
        model (`TrainedModel`): receives weights, optimizer and schedule.
        identity (`Mapping[str, int]`): seed and sizes, which the state holds too.
        max_train_steps (`int`): where this run ends.

    Returns:
        `dict`: the state of the checkpoint; empty for a new run.

    Raises:
        UserError: if the run would mix with another one's checkpoints, or cannot go on from this one.
    """
    if settings.resume_from_checkpoint is None:
        if earlier := list_checkpoints(settings.output_dir):
            wanted = "expected a folder without checkpoints, or --resume_from_checkpoint"
            raise UserError(f"--output_dir: {wanted}, found {earlier[-1].name} in {settings.output_dir}")
        return {}
    path = find_checkpoint(settings.resume_from_checkpoint, settings.output_dir)
    if path is None:
        return {}
    state, accelerator = read_state(path), model.accelerator
    check_place(path, state["step"], settings.output_dir, max_train_steps)
    check_recipe(state["recipe"], recipe(settings, objective), path)
    wanted = hyperparameters(model.optimizer)
    accelerator.load_state(str(path))
    if accelerator.distributed_type != DistributedType.DEEPSPEED:  # which keeps rates of its own
        restore_hyperparameters(model.optimizer, model.lr_scheduler, wanted)
    accelerator.step = 0  # accelerate's count of micro-batches; every checkpoint lies between two batches
    logger.info("Resuming from %s after step %d", path, state["step"])
    for name, value in identity.items():
        if state[name] != value:
            logger.warning("%s of the checkpoint is %s, now %s: not the same run.", name, state[name], value)
    return state


def check_place(path: Path, step: int, output_dir: str | Path, max_train_steps: int) -> None:
    """Whether a run may go on from a step in this folder.

    Raises:
        UserError: if the folder has later checkpoints, which rotation and `latest` would take for this run's, or if
            the run is over.
    """
    newest = list_checkpoints(output_dir)[-1:]
    if newest and checkpoint_step(newest[0]) > step:
        wanted = f"expected no later checkpoint than {path.name} in {output_dir}"
        fix = "move it away, or give another --output_dir"
        raise UserError(f"--resume_from_checkpoint: {wanted}, found {newest[0].name}; {fix}")
    if step > max_train_steps:
        raise UserError(f"--max_train_steps: expected at least {step}, the steps of {path}, found {max_train_steps}")


def check_recipe(then: Mapping, now: Mapping, path: Path) -> None:
    """Compares `recipe`s: what the state depends on must be the same, and any other change is logged.

    Raises:
        UserError: if the optimizer or the form of the weights is another one.
    """
    for name in [
        field.name for field in dataclasses.fields(TrainingSettings) if field.metadata.get("role") == "bound"
    ]:
        if name in then and then[name] != now[name]:
            why = "its state has that form; start anew in another --output_dir"
            raise UserError(f"--{name}: expected {then[name]}, as in {path}, found {now[name]}; {why}")
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
