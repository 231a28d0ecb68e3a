# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The rows that an objective trains on, out of what the settings name."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.dataset import is_build, load_craft_dataset
from ..data.encoding import check_columns, prepare_prompt_data, prepare_training_data, read_captions
from ..data.preferences import (
    Preferences,
    best_pairs,
    labels_of_pairs,
    load_preferences,
    prompts_of_build,
    random_rows,
    spread,
)
from ..data.rows import PairData, TrainingData
from ..errors import UserError
from ..models.family import Components, Family
from ..objectives.base import Objective
from ..scoring.scorer import CompositeScorer
from .settings import TrainingSettings


logger = logging.getLogger(__name__)

_IMAGES_PER_BATCH = 64  # decoded and scored together
# The columns and crops of images, and what chooses pairs: fields that some units have no use for.
_COLUMNS = ("image_column", "advantage_column", "latent_column", "use_generated_latents")
_UNUSED = {
    "single": ("pairing", "num_pairs"),
    "prompt": (*_COLUMNS, "center_crop", "random_flip", "pairing", "num_pairs"),
    "pair": (*_COLUMNS, "caption_column"),
    "label": (*_COLUMNS, "caption_column"),
}


def check_data_settings(settings: TrainingSettings, objective: Objective, rewards: Sequence[str]) -> None:
    """Raises a `UserError` for settings that the objective has no use for."""
    kind, unused = type(objective).__name__, list(_UNUSED[objective.unit])
    unused += [] if objective.uses_scores else ["score_range"]
    unused += [] if objective.uses_timestep_weights else ["snr_gamma"]
    unused += ["advantage_column"] if objective.unit == "single" and not objective.uses_advantages else []
    unused += ["caption_column"] if objective.unit == "prompt" and is_build(settings.data_source) else []
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    given = {name: getattr(settings, name) for name in unused if getattr(settings, name) != defaults[name]}
    if rewards and not (objective.uses_reward or objective.uses_scores):
        given["rewards"] = list(rewards)
    for name, value in given.items():
        raise UserError(f"--{name}: expected none with {kind}, which has no use for it, found {value}")
    if objective.own_noise and settings.noise_offset:
        expected = f"expected 0 for {kind}, which does not train on the noise that gets it"
        raise UserError(f"--noise_offset: {expected}, found {settings.noise_offset}")
    if settings.score_range is not None:
        low, high = settings.score_range
        if not (low < high and math.isfinite(high - low)):
            raise UserError(f"--score_range: expected MIN below MAX, found {low:g} {high:g}")


def load_rows(
    settings: TrainingSettings,
    objective: Objective,
    accelerator: Accelerator,
    load_scorer: Callable[[], CompositeScorer] | None = None,
) -> Dataset | Preferences | list[str]:
    """What the objective's unit asks for: images, pairs (also for labels), or prompts alone; nothing is encoded yet.

    `load_scorer` gives the rewards for pairs that have no scores.
    """
    if objective.unit in ("pair", "label"):
        return load_pairs(settings, objective, accelerator, load_scorer)
    with accelerator.main_process_first():
        if objective.unit == "prompt":
            return _prompts(settings)
        dataset = _load_images(settings)
        check_columns(dataset, settings)  # before the model is loaded
        return dataset


def encode_rows(
    rows: Dataset | Preferences | list[str],
    settings: TrainingSettings,
    objective: Objective,
    family: Family,
    components: Components,
    accelerator: Accelerator,
) -> TrainingData | PairData:
    """Encodes what `load_rows` gave; the main process does, the others find its cache."""
    encoders = (family, components)
    with accelerator.main_process_first():
        if objective.unit == "prompt":
            return prepare_prompt_data(rows, *encoders, settings)
        if objective.unit == "single":
            return prepare_training_data(rows, *encoders, settings, objective)
        every_row = dataclasses.replace(settings, max_train_samples=None)
        if objective.unit == "label":
            images, labels = labels_of_pairs(rows.pairs, len(rows.images))
            chosen = random_rows(len(images), settings.max_train_samples, settings.seed)
            data = prepare_training_data(rows.images.select(images[chosen]), *encoders, every_row)
            data.weights = torch.tensor(labels[chosen], dtype=torch.float32)
            return data
        images = prepare_training_data(rows.images, *encoders, every_row)
        factors = torch.ones(len(rows.pairs))
        if objective.uses_scores:
            scores = torch.as_tensor(rows.scores, dtype=torch.float64)
            factors = objective.pair_weights(scores, rows.score_range).float()
        return PairData(images, torch.as_tensor(rows.pairs), factors)


def load_pairs(
    settings: TrainingSettings,
    objective: Objective,
    accelerator: Accelerator,
    load_scorer: Callable[[], CompositeScorer] | None = None,
) -> Preferences:
    """The pairs to train on, scored where the objective asks for it; all processes share the scoring."""
    name = settings.data_source
    with accelerator.main_process_first():
        preferences = load_preferences(name, settings)
    if objective.uses_scores and load_scorer is not None:
        if preferences.scores is not None:
            found = "a build" if is_build(name) else "score_0 and score_1"
            raise UserError(f"--rewards: expected pairs without scores to score, found {found} in {name}")
        if settings.score_range is not None and settings.num_pairs is None:  # the others' scores are not asked for
            preferences = _random_pairs(preferences, settings).without_unused_images()
        preferences = score_preferences(preferences.without_repeated_images(), load_scorer(), accelerator)
    if objective.uses_scores:
        preferences = _with_finite_scores(preferences, settings)
    if not is_build(name):
        preferences = best_pairs(preferences, settings.num_pairs)
    if objective.unit == "pair":
        preferences = _random_pairs(preferences, settings)
    preferences = preferences.without_unused_images()
    return preferences if is_build(name) else preferences.without_repeated_images()


def score_preferences(preferences: Preferences, scorer: CompositeScorer, accelerator: Accelerator) -> Preferences:
    """The same pairs with the scores of their images; a pair whose loser scores higher counts the other way round."""
    images, processes = preferences.images, accelerator.num_processes
    mine, own = range(accelerator.process_index, len(images), processes), [np.empty(0)]
    batches = range(0, len(mine), _IMAGES_PER_BATCH)
    for start in tqdm(batches, desc="Scoring pairs", disable=not accelerator.is_local_main_process):
        rows = images[list(mine[start : start + _IMAGES_PER_BATCH])]
        own.append(scorer.score(rows["prompt"], [image.convert("RGB") for image in rows["image"]]))
    scores = np.empty(len(images))
    for process, part in enumerate(gather_object([np.concatenate(own)])):
        scores[process::processes] = part
    return preferences._replace(scores=scores[preferences.pairs], score_range=spread(scores))


def _with_finite_scores(preferences: Preferences, settings: TrainingSettings) -> Preferences:
    """Without the pairs of which an image has no score: rewards may abstain."""
    flag, score_range = settings.data_flag, settings.score_range
    if preferences.scores is None:
        raise UserError(f"{flag}: expected score_0 and score_1, or --rewards to score with, found neither")
    scored = np.isfinite(preferences.scores).all(axis=1)
    if not scored.any():
        raise UserError(f"{flag}: expected pairs with both scores, found none of {len(scored)}")
    if not scored.all():
        words = "%d of %d pairs have an image without a score and are left out."
        logger.warning(words, (~scored).sum(), len(scored))
    preferences = preferences.choose(scored)
    if score_range is not None:
        return preferences._replace(score_range=score_range[1] - score_range[0])
    if not preferences.score_range > 0:
        raise UserError(f"{flag}: expected scores that differ, found all alike")
    return preferences


def _random_pairs(preferences: Preferences, settings: TrainingSettings) -> Preferences:
    return preferences.choose(random_rows(len(preferences.pairs), settings.max_train_samples, settings.seed))


def _prompts(settings: TrainingSettings) -> list[str]:
    """The distinct prompts of a build or of a dataset, or a random subset of them."""
    if is_build(settings.data_source):
        prompts = prompts_of_build(settings.data_source)
    else:
        prompts = list(dict.fromkeys(read_captions(_load_images(settings), settings)))
    return [prompts[row] for row in random_rows(len(prompts), settings.max_train_samples, settings.seed)]


def _load_images(settings: TrainingSettings) -> Dataset:
    where = {"cache_dir": settings.cache_dir, "flag": settings.data_flag}
    return load_craft_dataset(settings.data_source, settings.dataset_config_name, **where)
