# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""One training loop for every objective: data by the objective's unit, a reference and rewards where it needs them."""

import dataclasses
import logging
from argparse import Namespace

import torch

from ..models.families import BACKBONES, ModelSource
from ..objectives.base import Objective
from ..objectives.kto import KTO
from ..scoring.scorer import load_scorer
from .accelerator import create_accelerator
from .args import check_training_arguments
from .context import AlignmentContext
from .data import check_data_arguments, load_data, load_pairs
from .run import TrainingRun


logger = logging.getLogger(__name__)

_DEFAULT_REWARDS = ("pickscore",)  # of objectives that score what they make


def train_alignment(args: Namespace, objective: Objective) -> TrainingRun:
    """Trains a UNet with any objective and saves the pipeline.

    Args:
        args (`argparse.Namespace`): flags of `add_alignment_arguments`, and of `add_reward_arguments` where the objective
            uses rewards.
        objective (`Objective`): what to optimise.

    Returns:
        `TrainingRun`: finished.

    Raises:
        UserError: for flags or data that the objective cannot use.
    """
    check_training_arguments(args)
    check_data_arguments(args, objective)
    if objective.uses_reward and not args.rewards:
        args.rewards = list(_DEFAULT_REWARDS)
    accelerator = create_accelerator(args)
    backbone = BACKBONES[args.backbone]
    source = ModelSource.from_args(args)
    components = backbone.load(source, accelerator.device, args.prediction_type)
    preferences = load_pairs(args, objective, accelerator) if objective.unit in ("pair", "label") else None
    with accelerator.main_process_first():
        data = load_data(args, objective, backbone, components, preferences)
    if isinstance(objective, KTO):
        objective.average = lambda value: accelerator.reduce(value, reduction="mean")
    scorer = load_scorer(args, accelerator.device) if objective.uses_reward else None
    context = AlignmentContext(objective, args, backbone, components, scorer)
    record_objective(args, objective)
    run = TrainingRun(args, accelerator, backbone, source, components, data)
    context.attach(run)
    for step in run.steps():
        for micro_batch in run.micro_batches(step):
            with torch.no_grad():
                batch = objective.prepare(micro_batch, context.at(step, micro_batch))
            prediction = backbone.predict(run.unet, batch.noisy_latents, batch.timesteps, batch.conditioning)
            reference = context.reference(batch) if objective.uses_reference else None
            loss, metrics = objective.loss(batch, prediction, reference)
            run.backward(loss, prediction, batch, metrics)
        run.finish_step()
    run.finish()
    return run


def record_objective(args: Namespace, objective: Objective) -> None:
    """Puts the objective's name and its resolved options among the flags, for `craft_run.json` and the model's card."""
    args.objective = getattr(args, "objective", None) or type(objective).__name__
    for field in dataclasses.fields(objective):
        if hasattr(args, field.name):
            setattr(args, field.name, getattr(objective, field.name))
