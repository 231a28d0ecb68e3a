# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Metrics of a set of images: closed forms, names, which images they see, what is stored."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffusers_craft import SetMetric, UserError, register_metric
from diffusers_craft.core.records import CANDIDATE_SCHEMA
from diffusers_craft.evaluation import metrics
from diffusers_craft.evaluation.metrics import load_set_metrics, measure_set, set_metric_rows
from diffusers_craft.scripts import Stage, WorkDir


class Levels(SetMetric):
    """The grey levels that it saw."""

    name = "levels"

    def __init__(self):
        self.seen = []

    def compute(self, images, reference_images=None):
        self.seen.append([[image.getpixel((0, 0))[0] for image in one] for one in (images, reference_images or [])])
        return float(len(images))


def stage_of(folder, name, levels, invalid=()):
    """Images of one grey level each, in shards of two."""
    stage = WorkDir(folder).stage(f"images/{name}", {}, len(levels), 2)
    rows = []
    for row, level in enumerate(levels):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (level,) * 3).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        known = {"row": row, "group": row // 2, "variant": row % 2, "prompt": "p", "refined_prompt": "p", "seed": row}
        rows.append(known | {"image": image, "valid": row not in invalid})
    table = pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA)
    for shard in range(stage.num_shards):
        stage.write(shard, table.slice(stage.rows(shard).start, len(stage.rows(shard))))
    stage.finish()
    return stage


def value_stage(folder, name) -> Stage:
    return WorkDir(folder).stage(f"set_metrics/{name}", {}, 1, 1)


def test_diversity_of_two_looks():
    """Half black, half white: of n (n - 1) / 2 pairs (n / 2)^2 are at distance 1, the others at 0."""
    images = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 255) * 3]
    (diversity,) = load_set_metrics(["diversity"]).values()
    assert diversity.compute(images) == pytest.approx(np.sqrt(9 / 15))
    assert diversity.compute(images[:1] * 3) == 0


def test_a_metric_sees_the_pairs_that_are_valid_and_is_computed_once(tmp_path):
    tuned, base = stage_of(tmp_path, "tuned", [10, 20, 30, 40, 50], {1}), stage_of(tmp_path, "base", range(5), {4})
    metric, stage = Levels(), value_stage(tmp_path, "tuned")
    measure_set(metric, tuned, base, stage, images_per_prompt=2)
    measure_set(metric, tuned, base, value_stage(tmp_path, "tuned"), images_per_prompt=2)
    assert metric.seen == [[[10, 30, 40], [0, 2, 3]]]
    alone = value_stage(tmp_path, "base")
    measure_set(metric, base, None, alone)
    assert metric.seen[1:] == [[[0, 1, 2, 3], []]]
    rows = set_metric_rows({"base": {"levels": alone}, "tuned": {"levels": stage}}, {"levels": metric})
    assert [(row["model"], row["metric"], row["mean"], row["n"]) for row in rows] == [
        ("base", "levels", 4, 4),
        ("tuned", "levels", 3, 2),
    ]
    assert not any("lower_is_better" in row or row["win_rate"] for row in rows)


def test_no_valid_image_is_no_number(tmp_path):
    metric, stage = Levels(), value_stage(tmp_path, "x")
    measure_set(metric, stage_of(tmp_path, "x", [1, 2], {0, 1}), None, stage)
    assert metric.seen == [] and set_metric_rows({"x": {"levels": stage}}, {"levels": metric})[0]["mean"] is None


def test_metrics_by_name_by_place_and_as_objects(monkeypatch):
    monkeypatch.setattr(metrics, "_METRICS", dict(metrics._METRICS))
    register_metric("mine", Levels)
    given = Levels()
    given.name = "given"
    found = load_set_metrics(["diversity", f"{__name__}:Levels", given])
    assert list(found) == ["diversity", "levels", "given"] and found["given"] is given
    assert list(load_set_metrics(["mine"])) == ["levels"]
    assert found["levels"].source == {"metric": f"{__name__}:Levels", "unit": "raw value"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["beauty"], "--set_metrics: expected one of diversity or MODULE:CLASS, found 'beauty'"),
        (["nowhere:FID"], "--set_metrics: expected MODULE:CLASS that can be imported, found 'nowhere:FID'"),
        (["diversity", "diversity"], "--set_metrics: expected metrics of different names, found diversity twice"),
        (["builtins:dict"], "--set_metrics: expected an object with name and compute(images), found 'builtins:dict'"),
    ],
)
def test_what_is_no_metric(wanted, message):
    with pytest.raises(UserError) as error:
        load_set_metrics(wanted)
    assert str(error.value).startswith(message)


def test_a_name_that_a_reward_has_is_refused():
    with pytest.raises(UserError, match="different names, found diversity twice"):
        load_set_metrics(["diversity"], taken=["pickscore", "diversity"])
    with pytest.raises(UserError, match="register_metric: expected a name of letters"):
        register_metric("a/b", Levels)
