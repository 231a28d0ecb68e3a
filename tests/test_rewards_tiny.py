# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The tiny rewards: what they are trained on, and how well the shipped checkpoints judge unseen captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rebuild_tiny.pictures import is_held_out, render, sample_caption, sample_captions, sample_scene, write_caption
from rebuild_tiny.preferences import (
    KINDS,
    alter,
    build_pool,
    caption_tensors,
    contradiction,
    malform,
    patch_kinds,
    scene_tensors,
    shows,
    spoil,
)
from rebuild_tiny.rewards import RECIPES, evaluate_rewards, rebuild_caption_model

from diffusers_craft import load_reward
from diffusers_craft.scripts import parse_caption
from diffusers_craft.tiny import reward_checkpoint
from diffusers_craft.tiny.scorer import scene_shows
from diffusers_craft.tiny.world import Object, Scene


NAMES = tuple(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_loading_inside_a_bar_shows_no_other(name, capsys):
    load_reward(name, reward_checkpoint(name), device="cpu").score(["a red circle"], [Image.new("RGB", (64, 64))])
    assert capsys.readouterr().err == ""


def scene(*objects: tuple[str, str, float, float], background: str = "black") -> Scene:
    return Scene(background, [Object(shape, color, x, y, 8.0) for shape, color, x, y in objects])


def shown(text: str, picture: Scene) -> bool:
    return bool(shows(caption_tensors([parse_caption(text)]), scene_tensors([picture])))


def test_shows_agrees_with_the_independent_judge():
    rng = np.random.default_rng(0)
    captions = [sample_caption(rng) for _ in range(150)]
    scenes = [sample_scene(caption, rng) for caption in captions]
    found = shows(caption_tensors(captions), scene_tensors(scenes)).numpy()
    judged = np.array([[scene_shows(s, caption) for s in scenes] for caption in captions])
    related = np.array([caption.relation is not None for caption in captions])
    np.testing.assert_array_equal(found[~related], judged[~related])
    assert not (found[related] & ~judged[related]).any(), "a relation counts as shown within a narrower angle"
    assert found.diagonal().all() and 0.005 < found.mean() < 0.1


@pytest.mark.parametrize(
    "text, picture, expected",
    [
        ("a circle", scene(("circle", "red", 20, 20)), True),
        ("a blue circle", scene(("circle", "red", 20, 20)), False),
        ("a circle", scene(("circle", "red", 20, 20), ("circle", "red", 50, 50)), False),
        ("two circles", scene(("circle", "red", 20, 20), ("circle", "blue", 50, 50)), True),
        ("a circle on a white background", scene(("circle", "red", 20, 20)), False),
        ("a circle left of a star", scene(("circle", "red", 20, 20), ("star", "red", 50, 25)), True),
        ("a circle above a star", scene(("circle", "red", 20, 20), ("star", "red", 50, 25)), False),
        ("a circle right of a star", scene(("star", "red", 20, 20), ("circle", "red", 50, 25)), True),
        ("a star below a circle", scene(("star", "red", 20, 50), ("circle", "red", 25, 20)), True),
    ],
)
def test_shows_by_hand(text: str, picture: Scene, expected: bool):
    assert shown(text, picture) is expected


def test_altered_captions_contradict_and_are_never_held_out():
    rng = np.random.default_rng(1)
    for _ in range(300):
        caption = sample_caption(rng)
        picture, other = sample_scene(caption, rng), alter(caption, rng)
        assert not is_held_out(other) and other.task == caption.task
        assert not shown(write_caption(other), picture), f"{other} of a picture of {caption}"
        assert not shown(write_caption(caption), contradiction(caption, picture, rng))


def test_pool_holds_training_captions_and_what_they_show():
    pool = build_pool(60, seed=3)
    assert not any(is_held_out(parse_caption(text)) for text in pool.captions + pool.altered)
    assert shows(pool.meanings, pool.exact).diagonal().all()
    assert not shows(pool.meanings, pool.wrong).diagonal().any()
    assert not shows(pool.altered_meanings, pool.exact).diagonal().any()
    assert pool.exact_pixels.shape == (60, 64, 64, 3) and pool.exact_pixels.dtype == np.uint8
    again = build_pool(60, seed=3)
    assert again.captions == pool.captions
    np.testing.assert_array_equal(again.wrong_pixels, pool.wrong_pixels)


def test_patch_kinds_name_what_is_drawn():
    labels = patch_kinds(scene_tensors([scene(("circle", "red", 24, 40), ("star", "cyan", 56, 8))])).view(4, 4)
    assert labels[2, 1] == 1 + KINDS.index(("circle", "red"))
    assert labels[0, 3] == 1 + KINDS.index(("star", "cyan"))
    assert (labels > 0).sum() == 2


def test_spoil_grows_with_severity_and_malform_bends():
    pixels = np.stack([np.asarray(render(scene(("star", "red", 30, 30))))] * 3)
    spoilt = spoil(pixels, np.array([0.0, 0.4, 1.0]), np.random.default_rng(0)).astype(float)
    distance = np.abs(spoilt - pixels).mean((1, 2, 3))
    assert distance[0] == 0 < distance[1] < distance[2]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    bent = malform(tensor, torch.Generator().manual_seed(0))
    assert bent.shape == tensor.shape and (bent - tensor).abs().mean() > 1
    torch.testing.assert_close(bent, malform(tensor, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore"])
def test_rebuild_writes_a_checkpoint_that_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], teacher_steps=2, vision_steps=2, vision_layers=1))
    rebuild_caption_model(name, tmp_path, build_pool(150, seed=0))
    rng = np.random.default_rng(0)
    captions = sample_captions(4, 0, held_out=True)
    images = [render(sample_scene(parse_caption(text), rng)) for text in captions]
    scores = load_reward(name, str(tmp_path)).score(captions, images)
    assert np.isfinite(scores).all() and np.ptp(scores) > 0


def test_shipped_rewards_prefer_the_right_picture_of_unseen_captions():
    shares = evaluate_rewards(n=200, seed=8)
    for name in ("hps_v2.1", "pickscore"):
        assert shares[name]["mistake"] > 0.9, (name, shares[name])
        assert shares[name]["other"] > 0.95, (name, shares[name])
    assert all(shares[name]["flawed"] > 0.96 for name in NAMES), shares
    assert shares["hps_v2.1"]["content_first"] > 0.5 > shares["pickscore"]["content_first"], shares
    assert shares["aesthetic"]["content_first"] < 0.1, "it sees looks only"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_rewards_are_small_and_ignore_words_of_quality(name: str):
    folder = Path(reward_checkpoint(name))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.5e6
    rng = np.random.default_rng(4)
    captions = sample_captions(64, 4, held_out=True)
    images = [render(sample_scene(parse_caption(text), rng)) for text in captions]
    reward = load_reward(name, str(folder))
    plain = reward.score(captions, images)
    rich = reward.score([f"{text}, sharp focus, masterpiece" for text in captions], images)
    spread = np.abs(reward.score(captions[1:] + captions[:1], images) - plain).mean()
    assert name == "aesthetic" or np.abs(rich - plain).mean() < 0.35 * spread
