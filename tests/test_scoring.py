# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Scoring: reward weights from the command line; shards of raw scores that survive a kill."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from diffusers_craft import RewardSettings, score_images
from diffusers_craft.core.records import CANDIDATE_SCHEMA, SCORE_SCHEMA
from diffusers_craft.rewards.settings import reward_factories
from diffusers_craft.scoring import run as scoring_run
from diffusers_craft.scoring.scorer import CompositeScorer
from diffusers_craft.scripts import (
    CandidateImages,
    ScoringJob,
    Stage,
    WorkDir,
    load_rewards,
    parse_reward_weights,
    reward_source,
)


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


def stored(table: pa.Table, folder: Path, rows_per_shard: int = 3) -> Stage:
    """Candidates as a work folder keeps them."""
    stage = WorkDir(folder).stage("candidates", {}, len(table), rows_per_shard)
    for shard in range(stage.num_shards):
        stage.write(shard, table.slice(stage.rows(shard).start, len(stage.rows(shard))))
    return stage


def score_candidates(table: pa.Table, reward: object, stage: Stage, rows_per_shard: int = 3) -> None:
    """Scores by one reward."""
    source = CandidateImages(stored(table, stage.path / "given", rows_per_shard))
    score_images([ScoringJob(source, {reward.name: stage})], {reward.name: reward})


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
    stage = open_stage(tmp_path, 4)
    score_candidates(candidates(), Brightness(), stage, rows_per_shard)
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


def test_ranks_split_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One after the other; the second one does not wait for the first one here."""
    stage, reward = open_stage(tmp_path), Brightness()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "finish", lambda stage: None)
        score_candidates(candidates(), reward, stage)
    assert stage.missing() == [0, 2]
    monkeypatch.setenv("RANK", "0")
    score_candidates(candidates(), reward, stage)
    assert len(reward.asked) == 9
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


def test_a_tensor_of_any_kind_is_a_score_of_the_composite_too():
    values = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    images = [Image.new("RGB", (4, 4))] * 2
    constants = {"normalization": "zscore", "rewards": {"fixed": {"mean": 1.0, "std": 0.5}}}
    for known, scores in ((None, [2, 4]), (constants, [0, 4])):
        scorer = CompositeScorer({"fixed": Fixed(values)}, {"fixed": 2.0}, known)
        np.testing.assert_array_equal(scorer.score(["a", "b"], images), scores)


def test_candidates_of_another_number(tmp_path: Path):
    with pytest.raises(ValueError, match="candidates: expected 10 rows, found 8"):
        score_candidates(candidates(8), Brightness(), open_stage(tmp_path))


def test_parse_reward_weights_keeps_order():
    weights = parse_reward_weights(["pickscore=0.4", "hps_v2.1=.35", "aesthetic=0"])
    assert list(weights.items()) == [("pickscore", 0.4), ("hps_v2.1", 0.35), ("aesthetic", 0.0)]
    assert parse_reward_weights(["pickscore"]) == {"pickscore": 1.0}


@pytest.mark.parametrize(
    "values, message",
    [
        (["hps=0.4"], f"--rewards: expected one of {', '.join(reward_factories())} or MODULE:CLASS, found 'hps'"),
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


class Loadable(Brightness):
    """Knows whether it is in memory, and who else is."""

    def __init__(self, factor: float, loaded: set[float], most: list[int]):
        super().__init__()
        self.factor, self.loaded, self.most = factor, loaded, most

    def score(self, prompts: list[str], images: list[Image.Image]) -> np.ndarray:
        self.loaded.add(self.factor)
        self.most.append(len(self.loaded))
        return super().score(prompts, images) * self.factor

    def release(self) -> None:
        self.loaded.discard(self.factor)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def score_twice(folder: Path, **options: object) -> tuple[int, dict[str, bytes]]:
    """Two rewards on two sets of candidates; the most that were loaded at once, and the shards."""
    loaded, most = set(), []
    rewards = {name: Loadable(factor, loaded, most) for name, factor in (("one", 1.0), ("two", 0.5))}
    source = CandidateImages(stored(candidates(), folder.parent / "given"))
    jobs = [
        ScoringJob(source, {name: open_stage(folder / part, 4, name) for name in rewards})
        for part in ("first", "second")
    ]
    score_images(jobs, rewards, **options)
    assert not loaded, "a reward stayed in memory"
    assert all(stage.is_complete for job in jobs for stage in job.stages.values())
    return max(most), shard_bytes(folder)


def test_residency_decides_over_memory_and_decoding_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, decoded = scoring_run.decode_image, []
    monkeypatch.setattr(scoring_run, "decode_image", lambda data: decoded.append(data) or real(data))
    sequential = score_twice(tmp_path / "sequential")
    assert len(decoded) == 9 * 2 * 2  # valid images, jobs, rewards
    decoded.clear()
    together = score_twice(tmp_path / "together", residency="together")
    assert len(decoded) == 9 * 2
    assert (sequential[0], together[0]) == (1, 2)
    assert sequential[1] == together[1] and len(together[1]) == 2 * 2 * 3


@pytest.mark.parametrize("residency", ["sequential", "together"])
def test_decoding_threads_change_no_byte(residency: str, tmp_path: Path):
    alone = score_twice(tmp_path / "alone")
    assert score_twice(tmp_path / "helped", residency=residency, num_workers=2)[1] == alone[1]


def test_together_makes_only_what_each_reward_lacks(tmp_path: Path):
    """Stages may even have shards of different sizes, from different runs."""
    stages = {"one": open_stage(tmp_path, 4, "one"), "two": open_stage(tmp_path, 5, "two")}
    score_candidates(candidates(), type("One", (Brightness,), {"name": "one"})(), stages["one"])
    stages["one"].shard_path(2).unlink()
    rewards = {name: Brightness() for name in stages}
    score_images([ScoringJob(CandidateImages(stored(candidates(), tmp_path)), stages)], rewards, residency="together")
    assert (len(rewards["one"].asked), len(rewards["two"].asked)) == (2, 9)
    for stage in stages.values():
        np.testing.assert_array_equal(stage.read()["score"].to_numpy(), expected())


def test_rewards_on_one_image_tower_go_over_the_images_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, decoded = scoring_run.decode_image, []
    monkeypatch.setattr(scoring_run, "decode_image", lambda data: decoded.append(data) or real(data))
    rewards = {name: Brightness() for name in ("a", "b", "c")}
    rewards["a"].tower = rewards["c"].tower = object()
    stages = {name: open_stage(tmp_path, 4, name) for name in rewards}
    score_images([ScoringJob(CandidateImages(stored(candidates(), tmp_path)), stages)], rewards)
    assert len(decoded) == 9 * 2


def test_loaded_rewards_on_one_clip_share_its_image_half(tmp_path: Path):
    import torch

    from diffusers_craft.rewards.aesthetic import ClipImageTower

    models = {name: Brightness() for name in ("a", "b", "c")}
    for name, place in (("a", tmp_path), ("b", tmp_path / "other"), ("c", tmp_path)):
        models[name].tower = ClipImageTower(place, torch.device("cpu"), torch.float32)
    rewards = load_rewards(list(models), RewardSettings(), "cpu", models=models)
    assert rewards["a"].tower is rewards["c"].tower is not rewards["b"].tower


class Pictures:
    """Two images, the second of them damaged."""

    num_rows = 2

    def read_rows(self, rows: range) -> list:
        from diffusers_craft.scoring.run import ImageRow

        whole = candidates()["image"][1].as_py()["bytes"]
        return [ImageRow("a.png", "p", whole), ImageRow("b.png", "p", whole[:40])][rows.start : rows.stop]


def test_an_image_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stages = {name: WorkDir(tmp_path).stage(name, {}, 2, 2) for name in ("one", "two")}
    job, rewards = ScoringJob(Pictures(), stages), {name: Brightness() for name in stages}
    with pytest.raises(ValueError, match="image of b.png: expected an image file, found ") as error:
        score_images([job], rewards)
    assert "\n" not in str(error.value) and stages["one"].missing() == [0]
    score_images([job], rewards, skip_unreadable=True)
    for stage in stages.values():
        np.testing.assert_array_equal(stage.read()["score"].to_numpy(), [11, np.nan])
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(
        "image of b.png cannot be read and gets no score"
    )


def test_embedded_checkpoints_by_name_and_release(tmp_path: Path):
    names = ["pickscore", "aesthetic"]
    rewards = load_rewards(names, RewardSettings(checkpoints=dict.fromkeys(names, "tiny"), batch_size=3), "cpu")
    stages = {name: open_stage(tmp_path, 4, name) for name in names}
    score_images([ScoringJob(CandidateImages(stored(candidates(), tmp_path)), stages)], rewards)
    assert not any("model" in vars(reward) for reward in rewards.values())
    scores = stages["aesthetic"].read()["score"].to_numpy()
    assert np.isnan(scores[3]) and np.isfinite(np.delete(scores, 3)).all() and rewards["pickscore"].batch_size == 3
    with pytest.raises(ValueError) as error:
        load_rewards(["mps"], RewardSettings(checkpoints={"mps": "tiny"}))
    assert str(error.value) == "--reward_checkpoint: expected a reward that the package ships, found mps=tiny"


def test_precision_reaches_the_rewards():
    import torch

    for precision, dtype in (("auto", "float32"), ("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")):
        settings = RewardSettings({"aesthetic": "tiny"}, precision=precision)
        reward = load_rewards(["aesthetic"], settings, "cpu")["aesthetic"]
        assert reward.dtype == getattr(torch, dtype) and reward_source(reward)["dtype"] == dtype


def test_the_source_of_a_reward_without_one_is_its_class():
    assert reward_source(Brightness()) == {"checkpoint": f"{__name__}:Brightness"}


def test_number_of_decoding_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert RewardSettings().workers("cpu") == 0 and RewardSettings().workers("cuda") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert RewardSettings().workers("cuda:1") == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert RewardSettings().workers("cuda") == 1
    assert RewardSettings(num_workers=5).workers("cpu") == 5 and RewardSettings(num_workers=0).workers("cuda") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--reward_batch_size: expected at least 1, found 0"),
        ({"precision": "fp8"}, "--reward_precision: expected one of auto, fp16, bf16, fp32, found 'fp8'"),
        ({"residency": "both"}, "--reward_residency: expected one of sequential, together, found 'both'"),
        ({"num_workers": -1}, "--dataloader_num_workers: expected at least 0, found -1"),
    ],
)
def test_reward_settings_errors(options: dict, message: str):
    with pytest.raises(ValueError) as error:
        RewardSettings(**options)
    assert str(error.value) == message


def test_a_reward_that_may_abstain_says_so_by_nan_but_never_by_infinity(tmp_path: Path):
    values = np.arange(9.0)
    values[3] = np.nan
    reward, stage = Fixed(values), open_stage(tmp_path, 10)
    reward.abstains = True
    score_candidates(candidates(), reward, stage)
    assert np.flatnonzero(np.isnan(stage.read()["score"].to_numpy())).tolist() == [3, 4]
    reward.values = np.where(np.isnan(values), np.inf, values)
    with pytest.raises(ValueError, match="expected a finite score for every valid image, found inf for row 4"):
        score_candidates(candidates(), reward, open_stage(tmp_path / "other", 10))
