# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""One training loop for every objective: data by the objective's unit, a reference and rewards where it needs them."""

from collections.abc import Sequence
from typing import Any

import torch

from ..models.families import FAMILIES
from ..objectives.base import Objective
from ..rewards.settings import RewardSettings
from ..scoring.scorer import CompositeScorer, load_scorer
from .accelerator import create_accelerator
from .context import TrainingContext
from .data import check_data_settings, load_data
from .run import TrainingRun
from .settings import TrainingSettings


DEFAULT_REWARDS = ("pickscore",)  # of objectives that score what they make


def train(
    settings: TrainingSettings,
    objective: Objective,
    rewards: Sequence[str] = (),
    reward_settings: RewardSettings | None = None,
) -> TrainingRun:
    """Trains a denoiser with any objective and saves the pipeline.

    Args:
        settings (`TrainingSettings`): model, data, and how to train.
        objective (`Objective`): what to optimise.
        rewards (`Sequence[str]`, *optional*): each `name=weight` or `name`, for an objective that scores images; by
            default PickScore where it scores what it makes.
        reward_settings (`RewardSettings`, *optional*): how they are loaded and run.

    Returns:
        `TrainingRun`: finished.

    Raises:
        UserError: for settings or data that the objective cannot use.
    """
    check_data_settings(settings, objective, rewards)
    if objective.uses_reward:
        rewards = rewards or DEFAULT_REWARDS
    reward_settings = reward_settings or RewardSettings()
    accelerator, family = create_accelerator(settings), FAMILIES[settings.backbone]
    components = family.load(settings.source, accelerator.device, settings.prediction_type)

    def scorer() -> CompositeScorer:
        where = (accelerator.device, settings.pretrained_model_name_or_path, settings.dataset_name)
        return load_scorer(rewards, reward_settings, *where)

    data = load_data(settings, objective, family, components, accelerator, scorer if rewards else None)
    judge = scorer() if objective.uses_reward else None
    context = TrainingContext(objective, settings, family, components, judge)
    record = _record(rewards, reward_settings)
    run = TrainingRun(settings, accelerator, family, components, data, objective, record)
    context.attach(run)
    for step in run.steps():
        for micro_batch in run.micro_batches(step):
            with torch.no_grad():
                batch = objective.prepare(micro_batch, context.at(step, micro_batch))
            prediction = family.predict(run.denoiser, batch.noisy_latents, batch.timesteps, batch.conditioning)
            reference = context.reference(batch) if objective.uses_reference else None
            loss, metrics = objective.loss(batch, prediction, reference)
            run.backward(loss, prediction, batch, metrics)
        run.finish_step()
    run.finish()
    return run


def _record(rewards: Sequence[str], settings: RewardSettings) -> dict[str, Any]:
    """The flags that give these rewards."""
    return {
        "rewards": list(rewards),
        "reward_checkpoint": [f"{name}={path}" for name, path in settings.checkpoints.items()],
        "reward_backend": [f"{name}={backend}" for name, backend in settings.backends.items()],
        "reward_batch_size": settings.batch_size,
        "reward_precision": settings.precision,
        "reward_residency": settings.residency,
        "dataloader_num_workers": settings.num_workers,
    }
