# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Stage 3: raw scores of every candidate by every reward, always against the original prompt.

Scores are kept raw and for all candidates, so that filters, weights and selections can change without scoring again.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm.auto import tqdm

from .records import SCORE_SCHEMA
from .rewards import reward_names
from .workdir import Stage


if TYPE_CHECKING:
    from .rewards.base import Reward

COLUMNS = ["row", "prompt", "image", "valid"]  # of the candidates


def parse_reward_weights(values: Sequence[str], known: Sequence[str] | None = None) -> dict[str, float]:
    """Reads the values of `--rewards`.

    Args:
        values (`Sequence[str]`): each `name=weight`; a bare `name` has weight 1.
        known (`Sequence[str]`, *optional*): the names that are allowed; by default all that `load_reward` takes.

    Returns:
        `dict[str, float]`: weights by name, in the given order.

    Raises:
        ValueError: for an unknown or repeated name, or a weight that is not a number, is negative, or if all are zero.
    """
    known = reward_names() if known is None else known
    weights: dict[str, float] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if name not in known:
            raise ValueError(f"--rewards: expected one of {', '.join(known)}, found {name!r}")
        if name in weights:
            raise ValueError(f"--rewards: expected each reward once, found {name} twice")
        try:
            weight = float(text) if separator else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise ValueError(f"--rewards: expected {name}=NUMBER, found {value!r}")
        if weight < 0:
            raise ValueError(f"--rewards: expected weights of at least 0, found {value!r}")
        weights[name] = weight
    if not weights:
        raise ValueError("--rewards: expected at least one reward such as pickscore=0.4, found none")
    if not any(weights.values()):
        raise ValueError(f"--rewards: expected a weight above 0, found {' '.join(values)}")
    return weights


def score_candidates(
    candidates: Stage | pa.Table, reward: "Reward | Any", stage: Stage, shards: Sequence[int] | None = None
) -> None:
    """Scores every valid candidate against its original prompt and writes the scores shard by shard.

    Shards that are on disk are not scored again; candidates that are not valid get NaN without being scored.

    Args:
        candidates (`Stage` or `pa.Table`): rows of `CANDIDATE_SCHEMA`, as many as `stage` has, sorted by row.
        reward (`Reward`): an object with `name` and `score(prompts, images)`.
        stage (`Stage`): the work folder's `scores/<reward>`; receives rows of `SCORE_SCHEMA`.
        shards (`Sequence[int]`, *optional*): which shards to make; by default all that are missing.

    Raises:
        ValueError: if the reward returns NaN or infinity for a valid image, or another number of scores.
    """
    if (rows := candidates.num_rows) != stage.num_rows:
        raise ValueError(f"candidates: expected {stage.num_rows} rows, found {rows}")
    shards = stage.missing() if shards is None else shards
    total = sum(len(stage.rows(shard)) for shard in shards)
    with tqdm(total=total, desc=f"Scoring {reward.name}", unit="image", disable=not total) as bar:
        for shard in shards:
            rows = stage.rows(shard)
            scores = _score_rows(_read_rows(candidates, rows), reward)
            stage.write(shard, pa.table({"row": np.asarray(rows), "score": scores}, schema=SCORE_SCHEMA))
            bar.update(len(rows))


def _read_rows(candidates: Stage | pa.Table, rows: range) -> pa.Table:
    """The candidates with the given positions, whatever the size of their own shards."""
    if isinstance(candidates, pa.Table):
        return candidates.select(COLUMNS).slice(rows.start, len(rows))
    first, last = rows.start // candidates.rows_per_shard, (rows.stop - 1) // candidates.rows_per_shard
    table = pa.concat_tables([candidates.read_shard(shard, COLUMNS) for shard in range(first, last + 1)])
    return table.slice(rows.start - candidates.rows(first).start, len(rows))


def _score_rows(candidates: pa.Table, reward: "Reward | Any") -> np.ndarray:
    """Raw scores of the candidates of one shard, NaN where not valid: (n,) float32."""
    scores = np.full(len(candidates), np.nan, dtype=np.float32)
    chosen = np.flatnonzero(np.asarray(candidates["valid"]))
    if not len(chosen):
        return scores
    records = candidates.take(chosen).to_pylist()
    images = [Image.open(io.BytesIO(record["image"]["bytes"])) for record in records]
    found = np.asarray(reward.score([record["prompt"] for record in records], images), dtype=np.float32)
    if found.shape != (len(chosen),):
        raise ValueError(f"reward {reward.name}: expected {len(chosen)} scores, found shape {found.shape}")
    if not np.isfinite(found).all():
        bad = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(
            f"reward {reward.name}: expected a finite score for every valid image, found {found[bad]} "
            f"for row {records[bad]['row']} ({records[bad]['prompt']!r})"
        )
    scores[chosen] = found
    return scores
