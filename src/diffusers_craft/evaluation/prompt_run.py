# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""One prompt set of an evaluation: the stages of every model's images, scores and measurements in the work folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..core.files import fingerprint
from ..core.records import CANDIDATE_SCHEMA, SCORE_SCHEMA
from ..core.workdir import Stage, WorkDir
from ..models.generation import ROWS_PER_SHARD, GenerationSettings
from ..prompts.sets import PromptSet
from ..rewards.settings import reward_source
from ..scoring.run import read_scores
from .alarms import Check, run_checks
from .measures import STATISTICS_SCHEMA, Embed, StoredImages, measure_images, read_statistics
from .metrics import VALUE_SCHEMA, SetMetric, measure_set, set_metric_rows
from .results import ExampleRow
from .summary import evaluation_rows, summarize


logger = logging.getLogger(__name__)

GRID_ROWS = 12  # prompts per set shown in the grid and the report


@dataclass
class EvaluatedModel:
    """A model under evaluation: where it comes from, and what determines its images."""

    source: dict[str, Any]
    settings: GenerationSettings
    options: dict[str, Any]


@dataclass
class PromptRun:
    """One set of n prompts with k images per prompt, and by model the stages of what is made of them."""

    prompts: PromptSet
    num_images: int  # k
    metrics: dict[str, Any] = field(default_factory=dict)  # of single images, those that fit the prompts
    set_metrics: dict[str, SetMetric] = field(default_factory=dict)  # of a model's images as a whole
    images: dict[str, Stage] = field(default_factory=dict)
    scores: dict[str, dict[str, Stage]] = field(default_factory=dict)  # by metric
    statistics: dict[str, Stage] = field(default_factory=dict)
    set_values: dict[str, dict[str, Stage]] = field(default_factory=dict)  # by metric of the whole set

    def __post_init__(self) -> None:
        self.rows: pa.Table = evaluation_rows(self.prompts.prompts, self.num_images)

    @property
    def about(self) -> dict[str, Any]:
        """What determines the prompts, for records."""
        found = f"{len(self.prompts.rows)} prompts, hash {fingerprint(self.prompts.prompts)}"
        return {"prompts": found, "images_per_prompt": self.num_images}

    def open(self, work: WorkDir, evaluated: Mapping[str, EvaluatedModel], embedding: Mapping[str, Any]) -> None:
        """Opens all stages; each is bound to what determines its content."""
        size, base = (len(self.rows), ROWS_PER_SHARD), next(iter(evaluated))
        for name, one in evaluated.items():
            place, options = f"{self.prompts.name}/{name}", one.options | self.about
            self.images[name] = work.stage(f"images/{place}", options, *size, CANDIDATE_SCHEMA)
            statistics = f"statistics/{place}", options | embedding
            self.statistics[name] = work.stage(*statistics, *size, STATISTICS_SCHEMA)
            self.scores[name], self.set_values[name] = {}, {}
            for title, metric in self.metrics.items():
                about = options | {f"reward {title}": reward_source(metric)}
                self.scores[name][title] = work.stage(f"scores/{place}/{title}", about, *size, SCORE_SCHEMA)
            for title, metric in self.set_metrics.items():
                about = options | {f"metric {title}": reward_source(metric)}
                about |= {} if name == base else {"base": evaluated[base].options}
                self.set_values[name][title] = work.stage(f"set_metrics/{place}/{title}", about, 1, 1, VALUE_SCHEMA)

    def measure(self, embed: Embed) -> None:
        """Measures what the alarms look at, and computes the metrics of whole sets."""
        base = next(iter(self.images))
        for name, images in self.images.items():
            measure_images(images, self.statistics[name], embed)
            reference = None if name == base else self.images[base]
            for title, stage in self.set_values[name].items():
                measure_set(self.set_metrics[title], images, reference, stage, self.num_images)

    def read_scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Model to metric to (n, k) raw scores."""

        def read(stage: Stage) -> np.ndarray:
            return read_scores(stage).reshape(-1, self.num_images)

        return {model: {name: read(stage) for name, stage in one.items()} for model, one in self.scores.items()}

    def summarize(self, seed: int) -> list[dict[str, Any]]:
        """The rows of the results."""
        scores = self.read_scores()
        for name in self.metrics:
            if not any(np.isfinite(values[name]).any() for values in scores.values()):
                logger.warning("%s: %s scored none of the images, so no table shows it", self.prompts.name, name)
        rows = summarize(scores, seed, self.prompts.categories) + set_metric_rows(self.set_values, self.set_metrics)
        return [{"prompts": self.prompts.name, **row} for row in rows]

    def read_examples(self) -> list[ExampleRow]:
        """The first prompts with the first image of every model and its scores."""
        prompts, scores = self.prompts.prompts[:GRID_ROWS], self.read_scores()
        first = range(0, len(prompts) * self.num_images, self.num_images)
        pictures = {model: StoredImages(stage, first) for model, stage in self.images.items()}
        return [
            ExampleRow(
                prompt,
                {model: images[i] for model, images in pictures.items()},
                {model: {name: float(values[i, 0]) for name, values in by.items()} for model, by in scores.items()},
            )
            for i, prompt in enumerate(prompts)
        ]

    def check(self, memories: Mapping[str, np.ndarray], columns: Mapping[str, Sequence[str]]) -> Iterator[Check]:
        """The checks against reward hacking, with (m, d) embeddings of models' training images and their columns."""
        statistics = {name: read_statistics(stage, self.num_images) for name, stage in self.statistics.items()}
        trained_on = {name: [m for m in self.metrics if m in known] for name, known in columns.items()}
        for found in run_checks(statistics, self.read_scores(), memories, trained_on):
            yield {"prompts": self.prompts.name, **found}
