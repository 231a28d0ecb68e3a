# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""One training loop for every objective: data by the objective's unit, a reference and rewards where it needs them."""

import dataclasses
import json
import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from .alignment_context import AlignmentContext, CompositeScorer
from .alignment_data import Preferences, distinct_prompts, labels_of_pairs, load_preferences
from .backbones import BACKBONES, Backbone, Components, ModelSource
from .dataset import load_craft_dataset
from .objectives.base import Objective
from .objectives.kto import KTO
from .objectives.smpo import smoothing_factors
from .scoring import parse_reward_weights
from .scoring_args import RewardSettings, load_rewards
from .training import TrainingRun
from .training_accelerator import create_accelerator
from .training_args import check_training_arguments
from .training_data import PairData, TrainingData
from .training_encoding import prepare_prompt_data, prepare_training_data


logger = logging.getLogger(__name__)

_IMAGES_A_BATCH = 64  # decoded and scored together


def train_alignment(args: Namespace, objective: Objective) -> TrainingRun:
    """Trains a UNet with any objective and saves the pipeline.

    Args:
        args (`argparse.Namespace`): flags of `add_alignment_arguments`, and of `add_reward_arguments` where the objective
            uses rewards.
        objective (`Objective`): what to optimise.

    Returns:
        `TrainingRun`: finished.

    Raises:
        ValueError: for flags or data that the objective cannot use.
    """
    check_training_arguments(args)
    accelerator = create_accelerator(args)
    backbone = BACKBONES[args.backbone]
    source = ModelSource(
        args.pretrained_model_name_or_path,
        args.revision,
        args.variant,
        args.cache_dir,
        vae=args.pretrained_vae_model_name_or_path,
        config=args.single_file_config,
    )
    components = backbone.load(source, device=accelerator.device)
    with accelerator.main_process_first():
        data = load_data(args, objective, backbone, components)
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


def load_data(
    args: Namespace, objective: Objective, backbone: Backbone, components: Components
) -> TrainingData | PairData:
    """Encodes what the objective's unit asks for: images, pairs of images, or prompts alone."""
    name = args.dataset_name or args.train_data_dir
    if objective.unit == "prompt":
        is_build = (Path(name) / "candidates").is_dir()
        dataset = None if is_build else _load_images(args)
        prompts = distinct_prompts(name, dataset, args.caption_column)[: args.max_train_samples]
        return prepare_prompt_data(prompts, backbone, components, args)
    if objective.unit == "single":
        return prepare_training_data(_load_images(args), backbone, components, args)
    preferences = load_preferences(name, args)
    image_args = Namespace(**vars(args) | {"caption_column": "prompt", "image_column": "image", "loss": "sft"})
    image_args.max_train_samples, image_args.use_generated_latents = None, False
    if objective.unit == "label":
        rows, labels = labels_of_pairs(preferences.pairs, len(preferences.images))
        data = prepare_training_data(preferences.images.select(rows), backbone, components, image_args)
        data.advantages = torch.tensor(labels, dtype=torch.float32)
        return data
    if objective.uses_scores and preferences.scores is None and getattr(args, "rewards", None):
        preferences = score_preferences(preferences, load_scorer(args, components.unet.device))
    pairs = preferences.pairs[: args.max_train_samples]
    images = prepare_training_data(preferences.images, backbone, components, image_args)
    return PairData(images, torch.as_tensor(pairs), _factors(preferences, pairs, objective))


def load_scorer(args: Namespace, device: torch.device) -> CompositeScorer:
    """The rewards of `--rewards`, normalised as in the build that `--dataset_name` names, if it is one."""
    weights = parse_reward_weights(args.rewards)
    base = args.pretrained_model_name_or_path
    models = load_rewards(list(weights), RewardSettings.from_args(args, list(weights)), device, base)
    constants = Path(args.dataset_name or "") / "normalization.json"
    if constants.is_file():
        return CompositeScorer(models, weights, json.loads(constants.read_text(encoding="utf-8")))
    return CompositeScorer(models, weights)


def score_preferences(preferences: Preferences, scorer: CompositeScorer) -> Preferences:
    """The same pairs with a score for every image; a pair whose loser scores higher counts the other way round."""
    scores, images = [], preferences.images
    for start in tqdm(range(0, len(images), _IMAGES_A_BATCH), desc="Scoring pairs"):
        rows = images[start : start + _IMAGES_A_BATCH]
        scores.append(scorer.score(rows["prompt"], [image.convert("RGB") for image in rows["image"]]))
    scores = np.concatenate(scores).astype(np.float64)
    return preferences._replace(scores=scores, score_range=float(np.nanmax(scores) - np.nanmin(scores)))


def _load_images(args: Namespace) -> Dataset:
    return load_craft_dataset(
        args.dataset_name or args.train_data_dir, args.dataset_config_name, cache_dir=args.cache_dir
    )


def _factors(preferences: Preferences, pairs: np.ndarray, objective: Objective) -> torch.Tensor:
    """(n,) 1 for plain preferences, smoothed by the scores for SmPO."""
    if not objective.uses_scores:
        return torch.ones(len(pairs))
    if preferences.scores is None or not preferences.score_range > 0:
        raise ValueError(
            "--dataset_name: expected score_0 and score_1 that differ, or --rewards to score with, found none"
        )
    winners, losers = (torch.as_tensor(preferences.scores[pairs[:, side]], dtype=torch.float64) for side in (0, 1))
    return smoothing_factors(winners, losers, preferences.score_range, objective.gamma).float()
