# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Scoring: reward weights from the command line; shards of raw scores that survive a kill."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffusers_craft import WorkDir, parse_reward_weights, score_candidates
from diffusers_craft.records import CANDIDATE_SCHEMA, SCORE_SCHEMA
from diffusers_craft.rewards import reward_names
from diffusers_craft.workdir import Stage


class Brightness:
    """Scores an image by its red value plus the length of its prompt; keeps what it was asked."""

    name = "brightness"

    def __init__(self, fail_at: int | None = None):
        self.asked: list[str] = []
        self.fail_at = fail_at

    def score(self, prompts: list[str], images: list[Image.Image]) -> np.ndarray:
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise KeyboardInterrupt
        self.asked += prompts
        return np.array([image.convert("RGB").getpixel((0, 0))[0] + len(p) for p, image in zip(prompts, images)])


class Fixed:
    name = "fixed"

    def __init__(self, values: object):
        self.values = values

    def score(self, prompts: list[str], images: list[Image.Image]) -> object:
        return self.values


def candidates(n: int = 10, invalid: tuple[int, ...] = (3,)) -> pa.Table:
    """n rows in groups of two: red value = 10 * row, prompt "p" * (group + 1), a longer refined prompt."""
    records = []
    for row in range(n):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (10 * row, 0, 0)).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        prompt = "p" * (row // 2 + 1)
        records.append(
            {
                "row": row,
                "group": row // 2,
                "variant": row % 2,
                "prompt": prompt,
                "refined_prompt": prompt + ", refined",
            }
            | {"seed": row, "image": image, "valid": row not in invalid}
        )
    return pa.Table.from_pylist(records, schema=CANDIDATE_SCHEMA)


def expected(n: int = 10, invalid: tuple[int, ...] = (3,)) -> np.ndarray:
    scores = np.array([10 * row + row // 2 + 1 for row in range(n)], dtype=np.float32)
    scores[list(invalid)] = np.nan
    return scores


def open_stage(folder: Path, rows_per_shard: int = 4, name: str = "scores/brightness") -> Stage:
    return WorkDir(folder).stage(name, {"seed": 0}, 10, rows_per_shard)


def test_scores_use_the_original_prompt_and_skip_invalid_images(tmp_path: Path):
    reward, stage = Brightness(), open_stage(tmp_path)
    score_candidates(candidates(), reward, stage)
    table = stage.read()
    assert table.schema == SCORE_SCHEMA
    assert table["row"].to_pylist() == list(range(10))
    np.testing.assert_array_equal(table["score"].to_numpy(), expected())
    assert len(reward.asked) == 9 and not any("refined" in prompt for prompt in reward.asked)


@pytest.mark.parametrize("rows_per_shard", [3, 4, 5, 16])
def test_candidates_in_shards_of_any_size(rows_per_shard: int, tmp_path: Path):
    source = open_stage(tmp_path, rows_per_shard, "candidates")
    for shard in range(source.num_shards):
        source.write(shard, candidates().slice(source.rows(shard).start, len(source.rows(shard))))
    stage = open_stage(tmp_path, 4)
    score_candidates(source, Brightness(), stage)
    np.testing.assert_array_equal(stage.read()["score"].to_numpy(), expected())


def test_interrupted_scoring_resumes_to_the_same_bytes(tmp_path: Path):
    whole, cut = open_stage(tmp_path / "whole"), open_stage(tmp_path / "cut")
    score_candidates(candidates(), Brightness(), whole)
    with pytest.raises(KeyboardInterrupt):
        score_candidates(candidates(), Brightness(fail_at=3), cut)
    assert cut.missing() == [1, 2]
    rest = Brightness()
    score_candidates(candidates(), rest, open_stage(tmp_path / "cut"))
    assert len(rest.asked) == 6, "the finished shard was scored again"
    for shard in range(whole.num_shards):
        assert cut.shard_path(shard).read_bytes() == whole.shard_path(shard).read_bytes()
    done = Brightness()
    score_candidates(candidates(), done, cut)
    assert done.asked == []


def test_ranks_split_the_shards(tmp_path: Path):
    stage = open_stage(tmp_path)
    shares = [stage.missing()[rank::2] for rank in range(2)]
    for share in shares:
        score_candidates(candidates(), Brightness(), stage, share)
    np.testing.assert_array_equal(stage.read()["score"].to_numpy(), expected())


def test_shard_of_invalid_images_only(tmp_path: Path):
    stage, reward = open_stage(tmp_path), Brightness()
    score_candidates(candidates(invalid=(0, 1, 2, 3)), reward, stage)
    np.testing.assert_array_equal(stage.read()["score"].to_numpy(), expected(invalid=(0, 1, 2, 3)))
    assert len(reward.asked) == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_reward_that_is_not_finite_is_refused(bad: float, tmp_path: Path):
    stage = open_stage(tmp_path, 10)
    values = np.arange(9.0)
    values[3] = bad  # the fourth valid row: row 3 is not valid, so row 4
    with pytest.raises(ValueError) as error:
        score_candidates(candidates(), Fixed(values), stage)
    text = f"reward fixed: expected a finite score for every valid image, found {bad} for row 4 ('ppp')"
    assert str(error.value) == text
    assert stage.missing() == [0]


@pytest.mark.parametrize("values, shape", [(np.zeros(8), "(8,)"), (np.zeros((9, 1)), "(9, 1)"), (0.5, "()")])
def test_reward_of_another_shape_is_refused(values: object, shape: str, tmp_path: Path):
    with pytest.raises(ValueError) as error:
        score_candidates(candidates(), Fixed(values), open_stage(tmp_path, 10))
    assert str(error.value) == f"reward fixed: expected 9 scores, found shape {shape}"


def test_candidates_of_another_number(tmp_path: Path):
    with pytest.raises(ValueError, match="candidates: expected 10 rows, found 8"):
        score_candidates(candidates(8), Brightness(), open_stage(tmp_path))


def test_parse_reward_weights_keeps_order():
    weights = parse_reward_weights(["pickscore=0.4", "hps_v2.1=.35", "aesthetic=0"])
    assert list(weights.items()) == [("pickscore", 0.4), ("hps_v2.1", 0.35), ("aesthetic", 0.0)]
    assert parse_reward_weights(["pickscore"]) == {"pickscore": 1.0}
    assert parse_reward_weights(["mine=2"], known=["mine"]) == {"mine": 2.0}


@pytest.mark.parametrize(
    "values, message",
    [
        (["hps=0.4"], f"--rewards: expected one of {', '.join(reward_names())} or MODULE:CLASS, found 'hps'"),
        (["pickscore=much"], "--rewards: expected pickscore=NUMBER, found 'pickscore=much'"),
        (["pickscore="], "--rewards: expected pickscore=NUMBER, found 'pickscore='"),
        (["pickscore=nan"], "--rewards: expected pickscore=NUMBER, found 'pickscore=nan'"),
        (["pickscore=inf"], "--rewards: expected pickscore=NUMBER, found 'pickscore=inf'"),
        (["pickscore=-1"], "--rewards: expected weights of at least 0, found 'pickscore=-1'"),
        (["pickscore=1", "pickscore=2"], "--rewards: expected each reward once, found pickscore twice"),
        (["pickscore=0", "aesthetic=0"], "--rewards: expected a weight above 0, found pickscore=0 aesthetic=0"),
        ([], "--rewards: expected at least one reward such as pickscore=0.4, found none"),
    ],
)
def test_parse_reward_weights_errors(values: list[str], message: str):
    with pytest.raises(ValueError) as error:
        parse_reward_weights(values)
    assert str(error.value) == message


def test_no_temporary_files_are_left(tmp_path: Path):
    score_candidates(candidates(), Brightness(), open_stage(tmp_path))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".tmp")]
