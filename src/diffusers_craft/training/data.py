# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The rows that an objective trains on, out of what the flags name."""

import logging
import math
from argparse import Namespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.dataset import load_craft_dataset
from ..data.encoding import prepare_prompt_data, prepare_training_data
from ..data.preferences import (
    Preferences,
    best_pairs,
    distinct_prompts,
    is_build,
    labels_of_pairs,
    load_preferences,
    random_rows,
    spread,
)
from ..data.rows import PairData, TrainingData
from ..errors import UserError
from ..models.families import Backbone, Components
from ..objectives.base import Objective
from ..objectives.smpo import smoothing_factors
from ..scoring.scorer import CompositeScorer, load_scorer
from ..selection.pairing import PAIRINGS


logger = logging.getLogger(__name__)

_IMAGES_A_BATCH = 64  # decoded and scored together


_PAIR_FLAGS = {"pairing": PAIRINGS[0], "num_pairs": None}


_COLUMN_FLAGS = {"image_column": "image", "advantage_column": "advantage", "latent_column": "latent"}


_LATENT_FLAGS = {"use_generated_latents": False}


# What each unit has no use for, with the values that say that it was not given.
_UNUSED_FLAGS = {
    "single": {"advantage_column": "advantage"} | _PAIR_FLAGS,
    "prompt": _COLUMN_FLAGS | _LATENT_FLAGS | {"center_crop": False, "random_flip": False} | _PAIR_FLAGS,
    "pair": _COLUMN_FLAGS | _LATENT_FLAGS | {"caption_column": "prompt"},
    "label": _COLUMN_FLAGS | _LATENT_FLAGS | {"caption_column": "prompt"},
}


def check_data_arguments(args: Namespace, objective: Objective) -> None:
    """Raises a `UserError` for flags about data that the objective has no use for."""
    name, kind = args.dataset_name or args.train_data_dir, type(objective).__name__
    unused = _UNUSED_FLAGS[objective.unit] | ({} if objective.uses_scores else {"score_range": None})
    if not (objective.uses_reward or objective.uses_scores):
        unused = unused | {"rewards": []}
    if objective.unit == "prompt" and is_build(name):
        unused = unused | {"caption_column": "prompt"}
    for flag, default in unused.items():
        if (value := getattr(args, flag)) != default:
            raise UserError(f"--{flag}: expected none with {kind}, which has no use for it, found {value}")
    if args.score_range is not None:
        low, high = args.score_range
        if not (low < high and math.isfinite(high - low)):
            raise UserError(f"--score_range: expected MIN below MAX, found {low:g} {high:g}")


def load_pairs(args: Namespace, objective: Objective, accelerator: Accelerator) -> Preferences:
    """The pairs to train on, scored where the objective asks for it; all processes share the scoring."""
    name = args.dataset_name or args.train_data_dir
    with accelerator.main_process_first():
        preferences = load_preferences(name, args)
    scored = objective.uses_scores and bool(args.rewards)
    if scored and preferences.scores is not None:
        found = "a build" if is_build(name) else "score_0 and score_1"
        raise UserError(f"--rewards: expected pairs without scores to score, found {found} in {name}")
    if scored:
        if args.score_range is not None and args.num_pairs is None:  # then the others' scores are not asked for
            preferences = _random_pairs(preferences, args).without_unused_images()
        preferences = preferences.without_repeated_images()
        preferences = score_preferences(preferences, load_scorer(args, accelerator.device), accelerator)
    if objective.uses_scores:
        preferences = _with_finite_scores(preferences, args.score_range)
    if not is_build(name):
        preferences = best_pairs(preferences, args.num_pairs)
    if objective.unit == "pair":
        preferences = _random_pairs(preferences, args)
    preferences = preferences.without_unused_images()
    return preferences if is_build(name) else preferences.without_repeated_images()


def load_data(
    args: Namespace,
    objective: Objective,
    backbone: Backbone,
    components: Components,
    preferences: Preferences | None = None,
) -> TrainingData | PairData:
    """Encodes what the objective's unit asks for: images, the pairs of `load_pairs`, or prompts alone."""
    if objective.unit == "prompt":
        name = args.dataset_name or args.train_data_dir
        dataset = None if is_build(name) else _load_images(args)
        prompts = distinct_prompts(name, dataset, args.caption_column)
        factor = 2 ** (len(components.vae.config.block_out_channels) - 1)
        if args.resolution % factor:
            raise UserError(f"--resolution: expected a multiple of {factor} for this VAE, found {args.resolution}")
        chosen = [prompts[row] for row in random_rows(len(prompts), args.max_train_samples, args.seed)]
        return prepare_prompt_data(chosen, backbone, components, args)
    if objective.unit == "single":
        return prepare_training_data(_load_images(args), backbone, components, args)
    image_args = Namespace(**vars(args) | {"caption_column": "prompt", "image_column": "image", "loss": "sft"})
    image_args.max_train_samples = None
    if objective.unit == "label":
        rows, labels = labels_of_pairs(preferences.pairs, len(preferences.images))
        chosen = random_rows(len(rows), args.max_train_samples, args.seed)
        data = prepare_training_data(preferences.images.select(rows[chosen]), backbone, components, image_args)
        data.weights = torch.tensor(labels[chosen], dtype=torch.float32)
        return data
    images = prepare_training_data(preferences.images, backbone, components, image_args)
    return PairData(images, torch.as_tensor(preferences.pairs), _factors(preferences, objective))


def score_preferences(preferences: Preferences, scorer: CompositeScorer, accelerator: Accelerator) -> Preferences:
    """The same pairs with the scores of their images; a pair whose loser scores higher counts the other way round."""
    images, processes = preferences.images, accelerator.num_processes
    mine, own = range(accelerator.process_index, len(images), processes), [np.empty(0)]
    batches = range(0, len(mine), _IMAGES_A_BATCH)
    for start in tqdm(batches, desc="Scoring pairs", disable=not accelerator.is_local_main_process):
        rows = images[list(mine[start : start + _IMAGES_A_BATCH])]
        own.append(scorer.score(rows["prompt"], [image.convert("RGB") for image in rows["image"]]))
    scores = np.empty(len(images))
    for process, part in enumerate(gather_object([np.concatenate(own)])):
        scores[process::processes] = part
    return preferences._replace(scores=scores[preferences.pairs], score_range=spread(scores))


def _with_finite_scores(preferences: Preferences, score_range: list[float] | None) -> Preferences:
    """Without the pairs of which an image has no score: rewards may abstain."""
    if preferences.scores is None:
        raise UserError("--dataset_name: expected score_0 and score_1, or --rewards to score with, found neither")
    scored = np.isfinite(preferences.scores).all(axis=1)
    if not scored.any():
        raise UserError(f"--dataset_name: expected pairs with both scores, found none of {len(scored)}")
    if not scored.all():
        words = "%d of %d pairs have an image without a score and are left out."
        logger.warning(words, (~scored).sum(), len(scored))
    preferences = preferences.choose(scored)
    if score_range is not None:
        return preferences._replace(score_range=score_range[1] - score_range[0])
    if not preferences.score_range > 0:
        raise UserError("--dataset_name: expected scores that differ, found all alike")
    return preferences


def _random_pairs(preferences: Preferences, args: Namespace) -> Preferences:
    return preferences.choose(random_rows(len(preferences.pairs), args.max_train_samples, args.seed))


def _load_images(args: Namespace) -> Dataset:
    return load_craft_dataset(
        args.dataset_name or args.train_data_dir, args.dataset_config_name, cache_dir=args.cache_dir
    )


def _factors(preferences: Preferences, objective: Objective) -> torch.Tensor:
    """(n,) 1 for plain preferences, smoothed by the scores for SmPO."""
    if not objective.uses_scores:
        return torch.ones(len(preferences.pairs))
    winners, losers = torch.as_tensor(preferences.scores, dtype=torch.float64).unbind(1)
    return smoothing_factors(winners, losers, preferences.score_range, objective.gamma).float()
