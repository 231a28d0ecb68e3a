# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Metrics of a whole set of images, such as FID or diversity, by name; metrics of one image are rewards.

A new one is a class with `name` and `compute`; a line in `_METRICS`, `register_metric` or `module:Class` names it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..core.files import is_file_name
from ..core.load import import_object
from ..core.workdir import Stage
from ..errors import UserError
from .alarms import pair_diversity
from .measures import StoredImages, thumbnail_embedding


VALUE_SCHEMA = pa.schema([("row", pa.int64()), ("value", pa.float64()), ("n", pa.int64())])  # n: prompts that count


class SetMetric(ABC):
    """A number that a set of images has as a whole.

    Subclasses set `name` and implement `compute`; those that read weights say in `source` which ones.
    """

    name: str
    unit: str = "raw value"
    lower_is_better: bool = False

    @property
    def source(self) -> dict[str, Any]:
        """What determines the number besides the images; finished work is reused only where it is the same."""
        return {"metric": f"{type(self).__module__}:{type(self).__qualname__}", "unit": self.unit}

    @abstractmethod
    def compute(self, images: Sequence[Image.Image], reference_images: Sequence[Image.Image] | None = None) -> float:
        """The number of a model's images.

        Args:
            images (`Sequence[PIL.Image.Image]`): n RGB images, decoded as they are asked for.
            reference_images (`Sequence[PIL.Image.Image]`, *optional*): the base's n images of the same prompts and
                seeds in the same order; `None` where `images` are the base's own.

        Returns:
            `float`: NaN where there is none, as for a distance to the base of the base.
        """


class Diversity(SetMetric):
    """Root mean square distance between two of the images as thumbnails of 16 x 16 pixels."""

    name = "diversity"
    unit = "root mean square difference of thumbnails, 0 to 1"

    def compute(self, images: Sequence[Image.Image], reference_images: Sequence[Image.Image] | None = None) -> float:
        embeddings = np.concatenate([thumbnail_embedding([image]) for image in images])
        return pair_diversity(embeddings, np.arange(len(images)))[0]


_METRICS: dict[str, str | Callable[[], SetMetric]] = {"diversity": Diversity}


def register_metric(name: str, factory: str | Callable[[], SetMetric]) -> None:
    """Makes a metric of a set of images available by name, e.g. to `--set_metrics`. One of single images is a reward.

    Args:
        name (`str`): letters, digits, `.`, `_` and `-`.
        factory (`Callable` or `str`): what gives the `SetMetric` when called, or its `"module:Class"`.

    Raises:
        UserError: if the name cannot be the name of a folder and of a column.
    """
    if not is_file_name(name):
        raise UserError(f"register_metric: expected a name of letters, digits, '.', '_' and '-', found {name!r}")
    _METRICS[name] = factory


def load_set_metrics(wanted: Iterable[str | SetMetric], taken: Iterable[str] = ()) -> dict[str, SetMetric]:
    """Name to metric, of registered names, `module:Class` and objects; `taken` are names of other metrics."""
    metrics: dict[str, SetMetric] = {}
    for one in wanted:
        metric = one
        if isinstance(one, str):
            factory = _METRICS.get(one, one)
            if factory is one and ":" not in one:
                raise UserError(f"--set_metrics: expected one of {', '.join(_METRICS)} or MODULE:CLASS, found {one!r}")
            metric = (import_object(factory, flag="--set_metrics") if isinstance(factory, str) else factory)()
        if not callable(getattr(metric, "compute", None)) or not isinstance(getattr(metric, "name", None), str):
            raise UserError(f"--set_metrics: expected an object with name and compute(images), found {one!r}")
        if not is_file_name(metric.name):
            wanted = "expected a name of letters, digits, '.', '_' and '-'"
            raise UserError(f"--set_metrics: {wanted}, found {metric.name!r}")
        if metric.name in metrics or metric.name in taken:
            raise UserError(f"--set_metrics: expected metrics of different names, found {metric.name} twice")
        metrics[metric.name] = metric
    return metrics


def measure_set(metric: SetMetric, images: Stage, base: Stage | None, into: Stage, images_per_prompt: int = 1) -> None:
    """Computes a metric of a model's images that are valid, here and in `base`, unless it is there; one rank does."""
    for shard in into.share():
        valid = [one.read(["valid"])["valid"].to_numpy() for one in (images, base) if one is not None]
        rows = np.flatnonzero(np.logical_and.reduce(valid)).tolist()
        pictures = [None if one is None else StoredImages(one, rows) for one in (images, base)]
        value = float(metric.compute(*pictures)) if rows else float("nan")
        prompts = len({row // images_per_prompt for row in rows})
        into.write(shard, pa.table({"row": [0], "value": [value], "n": [prompts]}, schema=VALUE_SCHEMA))
    into.finish()


def set_metric_rows(values: Mapping[str, Mapping[str, Stage]], metrics: dict[str, SetMetric]) -> list[dict[str, Any]]:
    """What `measure_set` wrote by model and metric, as rows in the form of `summarize`, the number as `mean`."""
    empty = dict.fromkeys(("median", "mean_of_categories", "win_rate", "win_rate_low", "win_rate_high"))
    rows = []
    for model, stages in values.items():
        for name, stage in stages.items():
            (found,) = stage.read().to_pylist()
            value = found["value"] if np.isfinite(found["value"]) else None
            row = {"category": None, "model": model, "metric": name, "n": found["n"], "mean": value, **empty}
            rows.append(row | ({"lower_is_better": True} if metrics[name].lower_is_better else {}))
    return rows
