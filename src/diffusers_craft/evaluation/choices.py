# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation finds out before it generates: which metrics fit, what the alarms compare, the training data."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..core.files import read_json
from ..core.run_record import recorded_option
from ..core.script import parse_pairs
from ..core.workdir import RUN_FILE
from ..data.dataset import load_craft_dataset
from ..errors import UserError
from ..rewards.settings import reward_source
from ..tiny import is_tiny
from .args import ALARM_EMBEDDINGS, as_texts
from .measures import Embed, clip_embedding, thumbnail_embedding
from .prompt_run import PromptRun


logger = logging.getLogger(__name__)


def find_training_data(models: Mapping[str, str], given: Mapping[str, str] | Sequence[str] = ()) -> dict[str, Dataset]:
    """Tuned model to the dataset it was trained on, where that is known and can still be read."""
    _, *tuned = models
    named, found = parse_pairs("--training_data", as_texts(given), tuned), {}
    for name in tuned:
        folder = Path(models[name])
        record = (folder.parent if folder.name.startswith("checkpoint-") else folder) / RUN_FILE
        run = read_json(record) if record.is_file() else {"options": {}}
        known = (recorded_option(run, option) for option in ("dataset_name", "train_data_dir"))
        source = named.get(name) or next(filter(None, known), None)
        try:
            if source:
                found[name] = load_craft_dataset(source)
        except UserError as error:
            if name in named:
                raise
            logger.warning("%s: training data not found, so not compared with (%s)", name, error)
    return found


def choose_metrics(metrics: Mapping[str, Any], runs: Sequence[PromptRun]) -> None:
    """Gives each prompt set its metrics. One with `bind` says itself whether it is for these prompts."""
    for run in runs:
        run.metrics = [name for name, one in metrics.items() if not hasattr(one, "bind") or one.bind(run.prompts)]
    for name in metrics:
        if name != "exact" and not any(name in run.metrics for run in runs):
            found = ", ".join(run.prompts.name for run in runs)
            raise UserError(f"--rewards {name}: expected prompts that it can judge, {name}=FILE, found {found}")


def choose_embedding(asked: str, base: str, metrics: Mapping[str, Any]) -> tuple[Embed, dict[str, Any]]:
    """How the alarms compare images, and its record. The embedded CLIPs know the tiny world's looks only: thumbnails."""
    if asked not in ALARM_EMBEDDINGS:
        raise UserError(f"--alarm_embedding: expected one of {', '.join(ALARM_EMBEDDINGS)}, found {asked!r}")
    towers = [metric for metric in metrics.values() if hasattr(metric, "tower")]
    if asked == "clip" and not towers:
        raise UserError("--alarm_embedding clip: expected the reward aesthetic or clip_score, found neither")
    if asked == "pixels" or not towers or (asked == "auto" and is_tiny(base)):
        return thumbnail_embedding, {"alarm_embedding": "pixels"}
    source = {"alarm_embedding": "clip", "alarm_embedding_source": reward_source(towers[0])}
    return clip_embedding(lambda images: towers[0].tower(images)), source  # towers may yet be shared
