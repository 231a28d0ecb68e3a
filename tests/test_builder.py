# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The builder: original prompts are scored, finished stages are never repeated, bad options are refused at once."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from build_driver import REWARDS, BrightnessReward

import diffusers_craft.build.builder as builder_module
from diffusers_craft import (
    CRAFTDatasetBuilder,
    GenerationSettings,
    RewardSettings,
    composite_reward,
    crf_filter,
    group_advantages,
    load_craft_dataset,
    load_pipeline,
    tiny,
)
from diffusers_craft.scripts import WorkDir, format_funnel, vae_fingerprint


PROMPTS = [f"prompt number {i}" for i in range(12)]
WEIGHTS = {"hps_v2.1": 0.4, "pickscore": 0.4, "aesthetic": 0.2}
SETTINGS = GenerationSettings(num_inference_steps=1, guidance_scale=2.0, batch_size=16)


@pytest.fixture(scope="module")
def pipeline(random_sd15: Path):
    return load_pipeline(str(random_sd15), device="cpu")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take seconds; the module's `built` is made before this and has its report."""
    monkeypatch.setattr(builder_module, "write_build_report", lambda *args: None)


def make_builder(pipeline, folder: Path | None, **options: Any) -> CRAFTDatasetBuilder:
    models = {name: BrightnessReward(name) for name in options.get("rewards", WEIGHTS)}
    defaults = {"rewards": WEIGHTS, "settings": SETTINGS, "num_samples": 4, "reward_models": models, "seed": 3}
    return CRAFTDatasetBuilder(pipeline, output_dir=folder, **{**defaults, **options})


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory: pytest.TempPathFactory):
    """A finished build: (builder, dataset, folder). Tests must not change its folder's stages."""
    folder = tmp_path_factory.mktemp("built")
    builder = make_builder(pipeline, folder)
    return builder, builder.build(PROMPTS), folder


def stored_pool(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Raw scores, groups and variants of a work folder, read without the builder."""
    stages = {}
    for name in ("candidates", *(f"scores/{reward}" for reward in REWARDS)):
        record = json.loads((folder / name / "options.json").read_text())
        stages[name] = WorkDir(folder).stage(name, record["options"], record["num_rows"], record["rows_per_shard"])
    table = stages["candidates"].read(["group", "variant"])
    rewards = {reward: stages[f"scores/{reward}"].read()["score"].to_numpy() for reward in REWARDS}
    return rewards, table["group"].to_numpy(), table["variant"].to_numpy()


def test_categories_reach_the_report_of_the_prompts_that_are_kept_and_nothing_else(
    pipeline, built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(builder_module, "write_build_report", lambda *args: shown.append(args[-2:]))
    folder = shutil.copytree(built[2], tmp_path / "again")
    given = [" ", PROMPTS[0], f" {PROMPTS[0]} ", *PROMPTS[1:]]
    dataset = make_builder(pipeline, folder).build(given, categories=["x", "first", "second", *"abcdefghijk"])
    assert shown == [(PROMPTS, ["first", *"abcdefghijk"])]
    assert dataset.to_dict() == built[1].to_dict()
    assert (folder / "craft_build.json").read_text().count("first") == 0
    with pytest.raises(ValueError, match="^categories: expected one for each of 14 prompts, found 1$"):
        make_builder(pipeline, folder).build(given, categories=["a"])


def test_prompts_that_the_encoder_cuts_are_said_once(pipeline, tmp_path: Path, caplog) -> None:
    make_builder(pipeline, tmp_path, num_samples=1).build(["a dog", "a very long prompt number 1"])
    said = [text for text in caplog.messages if "text encoder reads" in text]
    assert len(said) == 1 and said[0].endswith(
        "prompts are longer than the 16 tokens that the text encoder reads: the rest is ignored"
    ), said


def test_dataset_agrees_with_the_stored_scores(built) -> None:
    _, dataset, folder = built
    rewards, groups, variants = stored_pool(folder)
    composite = composite_reward(rewards, WEIGHTS)
    advantages = group_advantages(composite, groups, variants)
    assert len(dataset) == 4 and len(set(dataset["group"])) == 4
    assert dataset["reward"][:] == sorted(dataset["reward"], reverse=True)
    for row in dataset.remove_columns("image"):
        index = row["group"] * 5 + row["variant"]
        assert row["variant"] >= 1 and row["prompt"] == PROMPTS[row["group"]]
        assert row["refined_prompt"].startswith(row["prompt"] + ", ")
        assert row["advantage"] == pytest.approx(advantages[index], rel=1e-6)
        assert row["reward"] == pytest.approx(composite[index], rel=1e-6)
        assert all(row[name] == rewards[name][index] for name in REWARDS)
    kept = crf_filter(rewards, groups, variants, "hpa")
    assert all(kept[row["group"] * 5 + row["variant"]] for row in dataset)


def test_every_image_is_scored_against_its_original_prompt(built) -> None:
    builder, _, _ = built
    for model in builder.reward_models.values():
        assert model.prompts == [prompt for prompt in PROMPTS for _ in range(5)]


def test_folder_holds_dataset_report_and_records(built) -> None:
    _, dataset, folder = built
    loaded = load_craft_dataset(folder)
    assert loaded.features == dataset.features
    assert [row["image"].tobytes() for row in loaded] == [row["image"].tobytes() for row in dataset]
    assert {path.name for path in (folder / "report").iterdir()} >= {"report.html", "funnel.png", "rewards.png"}
    constants = json.loads((folder / "normalization.json").read_text())
    assert constants["normalization"] == "zscore"
    assert constants["rewards"]["pickscore"]["count"] == 60
    assert constants["rewards"]["pickscore"]["source"] == {"checkpoint": "brightness"}
    record = json.loads((folder / "craft_build.json").read_text())
    assert record["seed"] == 3 and record["options"]["filter_rule"] == "hpa"
    assert record["options"]["guidance_scale"] == 2.0 and record["composite_weights"] == pytest.approx(WEIGHTS)
    assert record["funnel"]["candidates"] == 60 and record["funnel"]["selected"] == 4


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a finished stage was repeated")

    for name in ("generate_candidates", "score_images"):
        monkeypatch.setattr(builder_module, name, refuse)
    monkeypatch.setattr("diffusers_craft.prompts.refining.refine_prompts", refuse)


@pytest.mark.parametrize(
    "change",
    [
        {"filter_rule": "a"},
        {"filter_rule": ["pickscore"], "num_samples": 3},
        {"filter_rule": "none", "reward_normalization": "rank"},
        {"rewards": {"hps_v2.1": 0.0, "pickscore": 0.0, "aesthetic": 1.0}},
        {"selection": "low", "reward_normalization": "minmax"},
        {"selection": "random", "num_samples": 2},
        {"selection": "all", "max_per_prompt": 0},
    ],
)
def test_selecting_anew_repeats_nothing(pipeline, built, monkeypatch, change: dict[str, Any]) -> None:
    _, _, folder = built
    forbid_work(monkeypatch)
    builder = make_builder(pipeline, folder, **change)
    dataset = builder.build(PROMPTS)
    rewards, groups, variants = stored_pool(folder)
    kept = crf_filter(rewards, groups, variants, change.get("filter_rule", "hpa"))
    assert all(kept[row["group"] * 5 + row["variant"]] for row in dataset.remove_columns("image"))
    wanted = (kept & (variants > 0)).sum() if change.get("selection") == "all" else change.get("num_samples", 4)
    assert len(dataset) == wanted == len(load_craft_dataset(folder)) == builder.funnel["selected"]


def test_composite_uses_the_rule_s_rewards_only(pipeline, built) -> None:
    _, _, folder = built
    dataset = make_builder(pipeline, folder, filter_rule="pa").build(PROMPTS)
    rewards, _, _ = stored_pool(folder)
    expected = composite_reward(rewards, {"pickscore": 2 / 3, "aesthetic": 1 / 3})
    row = dataset.remove_columns("image")[0]
    assert row["reward"] == pytest.approx(expected[row["group"] * 5 + row["variant"]], rel=1e-6)


def test_another_batch_size_is_no_other_option(pipeline, built, monkeypatch, capsys) -> None:
    """A user who ran out of memory goes on with a smaller batch. What a build found out is printed by scripts only."""
    forbid_work(monkeypatch)
    settings = GenerationSettings(num_inference_steps=1, guidance_scale=2.0, batch_size=1)
    make_builder(pipeline, built[2], settings=settings).build(PROMPTS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "stage", "difference"),
    [
        (
            {"settings": GenerationSettings(num_inference_steps=1, guidance_scale=5.0)},
            "candidates",
            "--guidance_scale (2.0 there, 5.0 now)",
        ),
        ({"save_latents": True}, "candidates", "--save_latents (false there, true now)"),
        ({"refiner": None}, "refined", '--refiner ("template" there, "none" now)'),
        ({"seed": 4}, "refined", "--seed (3 there, 4 now)"),
        (
            {"reward_models": {name: BrightnessReward(name, "other") for name in REWARDS}},
            "scores/hps_v2.1",
            '--reward hps_v2.1.checkpoint ("brightness" there, "other" now)',
        ),
    ],
)
def test_a_folder_with_other_options_is_refused(
    pipeline, built, monkeypatch, change: dict[str, Any], stage: str, difference: str
) -> None:
    _, _, folder = built
    forbid_work(monkeypatch)
    with pytest.raises(ValueError) as error:
        make_builder(pipeline, folder, **change).build(PROMPTS)
    assert str(error.value) == (
        f"work folder {folder}: stage '{stage}' was built with other options: {difference};"
        " use another --output_dir or remove it"
    )


def _reversed(data: bytes) -> bytes:
    table, sink = pq.read_table(io.BytesIO(data)).replace_schema_metadata(), io.BytesIO()
    pq.write_table(table.take(list(reversed(range(len(table))))), sink)
    return sink.getvalue()


def _with_score(value: float) -> Callable[[bytes], bytes]:
    """Row 7 gets another score, in a file of another tool."""

    def change(data: bytes) -> bytes:
        table, sink = pq.read_table(io.BytesIO(data)).replace_schema_metadata(), io.BytesIO()
        scores = table["score"].to_numpy().copy()
        scores[7] = value
        pq.write_table(table.set_column(1, table.schema.field("score"), pa.array(scores)), sink)
        return sink.getvalue()

    return change


def _flipped(data: bytes) -> bytes:
    place = len(data) * 3 // 10
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGES = [
    *(("refined", damage, "a Parquet file") for damage in (lambda data: b"", lambda data: data[:99], _flipped)),
    *(("candidates", damage, "a Parquet file") for damage in (lambda data: data[:-9], _flipped)),
    ("scores/pickscore", _flipped, "a Parquet file"),
    ("scores/aesthetic", _reversed, "the rows 0 to 59 in order, found 60 rows from 59 to 0"),
    ("scores/aesthetic", _with_score(np.inf), "finite scores, found inf in row 7"),
    ("scores/hps_v2.1", _with_score(np.nan), "finite scores, found nan in row 7"),
]


@pytest.mark.parametrize(("stage", "damage", "expected"), DAMAGES)
def test_damage_of_a_finished_build_is_named_and_mended(pipeline, built, tmp_path, stage, damage, expected) -> None:
    folder = shutil.copytree(built[2], tmp_path / "out")
    make_builder(pipeline, folder).build(PROMPTS)
    dataset = {file.name: file.read_bytes() for file in (folder / "dataset").iterdir()}
    path = folder / stage / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(ValueError) as error:
        make_builder(pipeline, folder).build(PROMPTS)
    assert str(error.value).startswith(f"{path}: expected {expected}") and "\n" not in str(error.value)
    assert str(error.value).endswith("; remove it, and the command that wrote it makes it anew")
    path.unlink()
    make_builder(pipeline, folder).build(PROMPTS)
    assert path.read_bytes() == whole
    assert {file.name: file.read_bytes() for file in (folder / "dataset").iterdir()} == dataset


def test_a_link_for_the_dataset_is_refused_before_anything_is_made(pipeline, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="--output_dir: expected a folder or nothing at .*dataset, found a symbolic"):
        make_builder(pipeline, tmp_path / "out").build(PROMPTS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dataset"]


def test_other_prompts_are_refused(pipeline, built) -> None:
    with pytest.raises(ValueError, match=r"--prompts \(\"12 prompts, hash .* there, \"11 prompts, hash .* now\)"):
        make_builder(pipeline, built[2]).build(PROMPTS[1:])


def test_a_reward_added_later_is_scored_alone(pipeline, tmp_path: Path, monkeypatch) -> None:
    two = {"pickscore": 1.0, "aesthetic": 1.0}
    make_builder(pipeline, tmp_path, rewards=two, filter_rule="pa", num_samples=1).build(PROMPTS[:4])
    monkeypatch.setattr(builder_module, "generate_candidates", None)
    builder = make_builder(pipeline, tmp_path, num_samples=1, filter_rule="none")
    builder.build(PROMPTS[:4])
    counts = {name: model.num_images for name, model in builder.reward_models.items()}
    assert counts == {"hps_v2.1": 20, "pickscore": 0, "aesthetic": 0}


def test_invalid_images_are_never_scored_nor_selected(pipeline, tmp_path: Path, monkeypatch) -> None:
    calls = iter(range(10**6))
    monkeypatch.setattr(
        "diffusers_craft.models.generation.find_problem", lambda image: "black" if next(calls) % 3 else None
    )
    builder = make_builder(pipeline, tmp_path, filter_rule="none", selection="all", max_per_prompt=0)
    dataset = builder.build(PROMPTS)
    assert builder.funnel["valid"] == 20 == builder.reward_models["pickscore"].num_images
    assert all((row["group"] * 5 + row["variant"]) % 3 == 0 for row in dataset.remove_columns("image"))
    assert np.isfinite(dataset["advantage"]).all() and len(dataset) > 5


def test_a_reward_of_nan_is_named_and_costs_no_finished_work(pipeline, tmp_path: Path, monkeypatch) -> None:
    class Broken(BrightnessReward):
        def score(self, prompts, images):
            return super().score(prompts, images) * np.nan

    models = {name: BrightnessReward(name) for name in REWARDS} | {"aesthetic": Broken("aesthetic")}
    with pytest.raises(ValueError, match=r"reward aesthetic: .* found nan for row 0 \('prompt number 0'\)"):
        make_builder(pipeline, tmp_path, reward_models=models).build(PROMPTS)
    builder = make_builder(pipeline, tmp_path)
    monkeypatch.setattr(builder_module, "generate_candidates", None)
    assert len(builder.build(PROMPTS)) == 4
    assert builder.reward_models["pickscore"].num_images == 0 and builder.reward_models["aesthetic"].num_images == 60


def test_no_refinement_varies_seeds_only(pipeline, tmp_path: Path) -> None:
    builder = make_builder(
        pipeline, tmp_path, refiner=None, num_refinements=1, num_seeds=3, filter_rule="none", save_latents=True
    )
    dataset = builder.build(PROMPTS[:5])
    assert dataset["prompt"][:] == dataset["refined_prompt"][:] and len(set(dataset["seed"])) == 4
    assert np.shape(dataset["latent"][0]) == (4, 8, 8)
    assert set(load_craft_dataset(tmp_path)["latent_vae"]) == {vae_fingerprint(pipeline.vae)}


def test_without_output_dir_the_dataset_lives_in_memory(pipeline) -> None:
    builder = make_builder(pipeline, None, num_samples=1, filter_rule="none")
    dataset = builder.build(PROMPTS[:2])
    builder._temporary.cleanup()
    assert dataset[0]["image"].size == (64, 64)


class FixedRefiner:
    name = "fixed"
    options = {"words": "in oil"}

    def refine(self, prompt: str, n: int, seed: int) -> list[str]:
        return [f"{prompt} in oil {i}" for i in range(n)]


def test_a_refiner_of_one_s_own(pipeline, tmp_path: Path) -> None:
    builder = make_builder(pipeline, tmp_path, refiner=FixedRefiner(), filter_rule="none", num_samples=2)
    assert all(" in oil " in text for text in builder.build(PROMPTS[:2])["refined_prompt"])
    record = json.loads((tmp_path / "refined" / "options.json").read_text())
    assert record["options"]["refiner"] == "fixed" and record["options"]["words"] == "in oil"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter_rule": "xyz"}, "--filter_rule: expected one of h, p, a, ha, pa, hpa, none or"),
        (
            {"rewards": {"pickscore": 1.0}, "filter_rule": "ha"},
            "--rewards: expected a weight above 0 for a reward of --filter_rule (hps_v2.1, aesthetic), found none",
        ),
        (
            {"rewards": {"pickscore": 1.0}, "filter_rule": "pa"},
            "--filter_rule: expected one of h, p, a, ha, pa, hpa, none or scored rewards (pickscore), found rule 'pa',"
            " which needs 'aesthetic'",
        ),
        (
            {"rewards": {**WEIGHTS, "mps": 1000.0}, "reward_models": {}},
            "--rewards: expected weights of the rewards that --filter_rule compares (hps_v2.1, pickscore, aesthetic), found"
            " mps=1000; name mps in --filter_rule too, or give mps=0 to score it only",
        ),
        ({"rewards": {"pickscore": -1.0}}, "--rewards: expected weights of at least 0, found pickscore=-1"),
        ({"reward_normalization": "max"}, "--reward_normalization: expected one of zscore, minmax, rank, found 'max'"),
        ({"selection": "best"}, "--selection: expected one of top, random, low, all, found 'best'"),
        ({"max_per_prompt": -1}, "--max_per_prompt: expected at least 0 (0 is no limit), found -1"),
        ({"num_refinements": 0}, "--num_refinements, --num_seeds: expected at least 1 each, found 0 and 1"),
        ({"refiner": "poet"}, "--refiner: expected one of openai, transformers, template, none, found 'poet'"),
        (
            {"reward_checkpoints": {"mps": "x"}},
            "--reward_checkpoint: expected names of hps_v2.1, pickscore, aesthetic, found 'mps'",
        ),
        (
            {"reward_settings": RewardSettings(backends={"mps": "package"})},
            "--reward_backend: expected names of hps_v2.1, pickscore, aesthetic, found 'mps'",
        ),
        (
            {"settings": GenerationSettings(resolution=33)},
            "--resolution: expected a multiple of 8 pixels, found 33",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_made(
    pipeline, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        make_builder(pipeline, tmp_path, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        ("a red circle", "a list of texts, found 'a red circle'"),
        (None, "a list of texts, found None"),
        (3, "a list of texts, found 3"),
        (["a cat", None], "text, found None"),
        (["a cat", 1], "text, found 1"),
        ([{"prompt": "a cat"}], "text, found {'prompt': 'a cat'}"),
        ([b"a cat"], "text, found b'a cat'"),
        (["a cat \ud83d"], "text that can be written as UTF-8, found 'a cat \\ud83d'"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_before_anything_is_made(pipeline, tmp_path, prompts, found) -> None:
    with pytest.raises(ValueError) as error:
        make_builder(pipeline, tmp_path).build(prompts)
    assert str(error.value) == f"prompts: expected {found}" and list(tmp_path.iterdir()) == []


def test_prompts_count_once_without_space_around_them(pipeline, tmp_path) -> None:
    given = ["a red circle"] * 2 + [" a red circle ", "", "  ", "two stars\n"]
    builder = make_builder(pipeline, tmp_path, filter_rule="none", num_samples=2)
    assert sorted(builder.build(given)["prompt"]) == ["a red circle", "two stars"]
    assert builder.funnel["prompts"] == 2
    with pytest.raises(ValueError, match="--num_samples: expected at most 1 "):
        make_builder(pipeline, tmp_path / "b", num_samples=2).build(given[:5])


class LimitedRefiner:
    """Refines the first `limit` prompts it is asked for."""

    name, options = "limited", {"model": "m"}

    def __init__(self, limit: int):
        self.left, self.asked = limit, []

    def refine(self, prompt: str, n: int, seed: int) -> list[str]:
        self.asked.append(prompt)
        self.left -= 1
        return [f"{prompt} in oil {i}" if self.left >= 0 else prompt for i in range(n)]


def test_what_was_not_refined_is_asked_for_until_images_are_drawn(pipeline, tmp_path, monkeypatch) -> None:
    options = {"filter_rule": "none", "num_samples": 2}
    with monkeypatch.context() as patch:
        patch.setattr(builder_module, "generate_candidates", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            make_builder(pipeline, tmp_path, refiner=LimitedRefiner(2), **options).build(PROMPTS[:4])
    second = LimitedRefiner(1)
    builder = make_builder(pipeline, tmp_path, refiner=second, **options)
    builder.build(PROMPTS[:4])
    assert second.asked == PROMPTS[2:4], "what was refined is kept"
    assert (builder.funnel["refined"], builder.funnel["refinements"]) == (12, 16)
    record = json.loads((tmp_path / "craft_build.json").read_text())
    assert record["funnel"]["refined"] == 12 and "12 of 16" in format_funnel(record["funnel"])

    third = LimitedRefiner(9)
    make_builder(pipeline, tmp_path, refiner=third, **options).build(PROMPTS[:4])
    assert third.asked == [], "images of the old texts are there"
    with pytest.raises(ValueError, match="--refiner limited: expected refinements of the prompts, found none of 16"):
        make_builder(pipeline, tmp_path / "b", refiner=LimitedRefiner(0), **options).build(PROMPTS[:4])
    assert not list((tmp_path / "b" / "candidates").glob("*.parquet"))


def test_no_refiner_has_no_failures(pipeline, tmp_path) -> None:
    builder = make_builder(pipeline, tmp_path, refiner=None, filter_rule="none", num_samples=1)
    builder.build(PROMPTS[:2])
    assert "refined" not in builder.funnel


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_reward_may_return_any_tensor(pipeline, tmp_path, kind) -> None:
    class Own(BrightnessReward):
        def score(self, prompts, images):
            return torch.tensor(super().score(prompts, images)).to(kind).requires_grad_()

    builder = make_builder(
        pipeline, tmp_path, reward_models={name: Own(name) for name in REWARDS}, filter_rule="none", num_samples=1
    )
    assert np.isfinite(builder.build(PROMPTS[:2])["pickscore"]).all()


@pytest.mark.parametrize(
    ("options", "prompts", "message"),
    [
        ({}, [], "--prompts: expected at least one prompt, found none"),
        ({}, [" ", ""], "--prompts: expected at least one prompt, found none"),
        (
            {"num_samples": 13},
            PROMPTS,
            "--num_samples: expected at most 12 (12 prompts, 1 images of a prompt), found 13",
        ),
        (
            {"num_samples": 49, "max_per_prompt": 0},
            PROMPTS,
            "--num_samples: expected at most 48 (12 prompts, 4 images of a prompt), found 49",
        ),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_anything_is_made(
    pipeline, tmp_path: Path, options: dict[str, Any], prompts: list[str], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        make_builder(pipeline, tmp_path, **options).build(prompts)
    assert str(error.value) == message and list(tmp_path.iterdir()) == []


def test_more_samples_than_the_filter_kept(pipeline, built) -> None:
    builder, _, folder = built
    kept = builder.funnel["kept_groups"]
    assert kept < 12, "the fixture's filter must drop a group"
    with pytest.raises(ValueError) as error:
        make_builder(pipeline, folder, num_samples=12).build(PROMPTS)
    message = f"--num_samples: expected at most {kept} (what the filter kept, --max_per_prompt 1), found 12"
    assert str(error.value) == message


def test_a_tiny_base_brings_its_rewards(pipeline, tmp_path: Path, monkeypatch, caplog) -> None:
    loaded = {}

    def load(name: str, checkpoint: str | None, *_: Any, **options: Any) -> BrightnessReward:
        loaded[name] = checkpoint
        return BrightnessReward(name, checkpoint)

    monkeypatch.setattr(tiny, "is_tiny", lambda name: True)
    monkeypatch.setattr(tiny, "reward_checkpoint", lambda name: f"/tiny/{name}")
    monkeypatch.setattr("diffusers_craft.rewards.settings.load_reward", load)
    with caplog.at_level("INFO", "diffusers_craft"):
        settings = RewardSettings(checkpoints={"pickscore": "mine"})
        make_builder(pipeline, tmp_path, reward_models={}, reward_settings=settings)
    expected = {"hps_v2.1": "/tiny/hps_v2.1", "pickscore": "mine", "aesthetic": "/tiny/aesthetic"}
    assert loaded == expected
    assert caplog.messages == [
        "The base is a tiny model: scoring with the embedded checkpoints of hps_v2.1, aesthetic"
    ]
    make_builder(pipeline, tmp_path, reward_models={}, reward_checkpoints={"pickscore": "mine"})
    assert loaded == expected


def test_other_bases_use_the_official_rewards(pipeline, tmp_path: Path, monkeypatch) -> None:
    loaded = []
    monkeypatch.setattr(
        "diffusers_craft.rewards.settings.load_reward",
        lambda name, checkpoint, *_, **__: loaded.append((name, checkpoint)),
    )
    make_builder(pipeline, tmp_path, reward_models={})
    assert loaded == [(name, None) for name in WEIGHTS]


def test_only_the_first_rank_publishes(built, pipeline, monkeypatch) -> None:
    pushed = []
    monkeypatch.setattr(builder_module, "publish_dataset", lambda *args: pushed.append(args) or "address")
    builder, _, folder = built
    assert builder.push_to_hub("org/craft", private=True, license="mit") == "address"
    assert pushed == [(folder, "org/craft", True, None, None, "mit")]
    monkeypatch.setenv("RANK", "1")
    assert builder.push_to_hub("org/craft") is None and len(pushed) == 1
    with pytest.raises(ValueError, match=r"push_to_hub: expected a dataset, found none; call build\(prompts\) first"):
        make_builder(pipeline, None).push_to_hub("org/craft")


def test_format_funnel(built) -> None:
    lines = format_funnel(built[0].funnel).splitlines()
    assert lines[0] == "Funnel"
    assert lines[1].split() == ["prompts", "12"] and lines[3].split() == ["candidate", "images", "60"]
    assert any(line.startswith("  share of negative advantages") and line.endswith("%") for line in lines)
