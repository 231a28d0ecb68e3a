# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Alarms: closed forms of what they measure, silence on honest change, and each fired by pictures made for it."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from rebuild_tiny.pictures import degrade, render, sample_caption, sample_scene

from diffusers_craft.evaluation.alarms import (
    change_checks,
    decided_win_rate,
    diversity_checks,
    gap_check,
    memory_check,
    nearest_distances,
    pair_diversity,
    run_checks,
)
from diffusers_craft.evaluation.measures import MEASURES, Measure, clip_embedding, image_statistics


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(0)
    return [render(sample_scene(sample_caption(rng), rng)) for _ in range(60)]


@pytest.fixture(scope="module")
def base(clean):
    return image_statistics(clean)


def alarms_of(statistics):
    return [check for check in run_checks(statistics, {}, {}, {}) if check["fired"]]


def fired(checks):
    return {check["alarm"] for check in checks if check["fired"]}


def test_image_statistics_closed_forms():
    red = Image.new("RGB", (300, 200), (255, 0, 0))
    half = Image.fromarray(np.repeat([[0, 255]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    found = image_statistics(image for image in (red, half, None))
    np.testing.assert_allclose(found.measures["saturation"], [1, 0, np.nan])
    np.testing.assert_allclose(found.measures["contrast"], [0, 0.5, np.nan], atol=1e-9)
    # One step of 1 among 63 horizontal differences, none among the vertical ones; variance 1 / 4.
    np.testing.assert_allclose(found.measures["high_frequency"], [0, (1 / 63 + 0) / 2 / (2 * 0.25), np.nan])
    np.testing.assert_allclose(found.embeddings[0].reshape(16, 16, 3)[3, 5], np.array([1, 0, 0]) / np.sqrt(768))
    assert np.isnan(found.embeddings[2]).all() and found.valid.tolist() == [True, True, False]
    assert red.size == (300, 200), "the caller's image was changed"


def test_high_frequency_of_white_noise_is_one():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    assert image_statistics([Image.fromarray(noise)]).measures["high_frequency"][0] == pytest.approx(1, abs=0.02)


def test_thumbnail_distance_is_the_root_mean_square_difference():
    white, black = (Image.new("RGB", (32, 32), (level,) * 3) for level in (255, 0))
    first, second = image_statistics([white, black]).embeddings
    assert np.linalg.norm(first - second) == pytest.approx(1)


def test_clip_embedding_has_unit_length_and_takes_batches():
    import torch

    sizes = []

    def tower(images):
        sizes.append(len(images))
        return torch.tensor([[float(image.width), 4.0] for image in images])

    found = clip_embedding(SimpleNamespace(tower=tower), [Image.new("RGB", (3, 3))] * 20)
    np.testing.assert_allclose(found, [[0.6, 0.8]] * 20)
    assert sizes == [16, 4]


def test_pair_diversity_agrees_with_all_pairs():
    rng = np.random.default_rng(0)
    x, groups = rng.random((12, 6)), np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4])
    pairs = [(np.square(x[i] - x[j]).sum(), groups[i] == groups[j]) for i, j in itertools.combinations(range(12), 2)]
    brute = [np.sqrt(np.mean([d for d, same in pairs if same is wanted])) for wanted in (np.False_, np.True_)]
    assert pair_diversity(x, groups) == pytest.approx(brute)
    between, within = pair_diversity(x, np.arange(12))
    assert between > 0 and np.isnan(within)
    assert pair_diversity(np.ones((4, 6)), np.arange(4))[0] == 0


def test_nearest_distances_agree_with_brute_force_across_chunks(monkeypatch):
    monkeypatch.setattr("diffusers_craft.evaluation.alarms._CHUNK", 4)
    rng = np.random.default_rng(0)
    x, groups = rng.random((10, 3)), np.arange(10) // 2
    brute = [min(np.linalg.norm(a - b) for b, h in zip(x, groups) if h != g) for a, g in zip(x, groups)]
    np.testing.assert_allclose(nearest_distances(x, x, groups), brute)
    np.testing.assert_allclose(nearest_distances(x, x[:1]), np.linalg.norm(x - x[0], axis=1), atol=1e-7)


def test_no_alarm_for_the_same_images_or_for_cleaning_up(clean, base):
    rng = np.random.default_rng(1)
    mixed = image_statistics([degrade(image, rng) if i % 2 else image for i, image in enumerate(clean)])
    assert alarms_of({"base": mixed, "tuned": base, "same": mixed}) == []


def test_vivid_gray_blurred_and_sharpened_pictures(clean, base):
    vivid = image_statistics([ImageEnhance.Color(image).enhance(1.8) for image in clean])
    (alarm,) = [check for check in change_checks("craft", vivid, base) if check["fired"]]
    assert (alarm["model"], alarm["alarm"], alarm["limit"]) == ("craft", "saturation", "+-30%")
    assert alarm["value"] / alarm["base"] > 1.3
    assert alarm["message"].startswith("craft: mean saturation changed by +")
    gray = image_statistics([ImageEnhance.Contrast(image).enhance(0.3) for image in clean])
    assert fired(change_checks("craft", gray, base)) == {"saturation", "contrast"}
    blurred = image_statistics([image.filter(ImageFilter.GaussianBlur(1)) for image in clean])
    assert fired(change_checks("craft", blurred, base)) == {"high_frequency"}
    sharp = image_statistics([image.filter(ImageFilter.UnsharpMask(2, 200, 0)) for image in clean])
    assert "high_frequency" in fired(change_checks("craft", sharp, base))


def test_a_measure_is_one_line(clean, monkeypatch):
    """Of the table `MEASURES`, which the alarms and the stored statistics follow."""
    monkeypatch.setitem(MEASURES, "red", Measure(lambda small, crop: small[..., 0].mean(), 0.1))
    redder = [Image.merge("RGB", [i.getchannel("R").point(lambda v: v // 2), *i.split()[1:]]) for i in clean]
    checks = change_checks("craft", image_statistics(redder), image_statistics(clean))
    (red,) = [check for check in checks if check["alarm"] == "red"]
    assert red["fired"] and red["limit"] == "+-10%" and red["value"] == pytest.approx(red["base"] / 2, rel=0.02)


def test_one_picture_for_all_prompts(clean, base):
    checks = diversity_checks("craft", image_statistics(clean[:1] * len(clean)), base)
    assert fired(checks) == {"diversity", "twins"}
    message = "craft: images of different prompts differ 0% as much as the base's (limit 80%)"
    assert checks[0]["message"] == message and checks[0]["value"] == 0


def test_collapse_onto_a_few_pictures_that_differ_is_seen_by_their_twins(clean, base):
    """Six distinct pictures in turn: the mean distance hardly moves, each picture has nine copies elsewhere."""
    few = image_statistics([clean[i % 6] for i in range(len(clean))])
    assert fired(diversity_checks("craft", few, base)) == {"twins"}


def test_loss_of_variety_between_the_seeds_of_a_prompt(clean):
    """Pairs of images per prompt; the tuned model draws the first one twice. No two prompts look alike."""
    base, tuned = image_statistics(clean, images_per_prompt=2), clean[:]
    tuned[1::2] = clean[::2]
    checks = diversity_checks("craft", image_statistics(tuned, images_per_prompt=2), base)
    assert fired(checks) == {"seed_diversity"}
    assert [check["value"] for check in checks if check["alarm"] == "seed_diversity"] == [0]


def test_repeated_training_images(clean, base):
    training = image_statistics(clean[:5]).embeddings
    rng = np.random.default_rng(0)
    other = image_statistics([render(sample_scene(sample_caption(rng), rng)) for _ in range(60)][::-1])
    (own,) = memory_check("craft", other, other, training)
    assert not own["fired"]
    (alarm,) = memory_check("craft", image_statistics(clean[:5] * 12), base, training)
    assert alarm["fired"] and alarm["value"] == 1 and alarm["base"] == round(5 / 60, 6)
    assert "100% of its images nearly repeat a training image, 8% of the base's" in alarm["message"]


def test_ties_do_not_hide_who_wins():
    wins, losses, ties, missing = np.ones(30), -np.ones(10), np.zeros(200), np.full(5, np.nan)
    tuned = np.concatenate([wins, losses, ties, missing])
    assert decided_win_rate(tuned, np.zeros(245)) == 0.75
    assert np.isnan(decided_win_rate(np.ones(3), np.ones(3)))


def test_a_few_decided_pairs_say_nothing():
    """Twelve prompts on which one judge happened to prefer the base five times."""
    assert np.isnan(decided_win_rate(np.array([-1.0] * 5 + [0] * 7), np.zeros(12)))
    zero = np.zeros(29)
    (check,) = gap_check("craft", {"a": zero + 1, "exact": zero - 1}, {"a": zero, "exact": zero}, ["a"])
    assert not check["fired"] and "with 30 decided pairs each" in check["limit"]


def test_gap_between_rewards_trained_on_and_others():
    zero, win, lose = np.zeros(30), np.ones(30), -np.ones(30)
    base = {"aesthetic": zero, "exact": zero}
    (honest,) = gap_check("craft", {"aesthetic": win, "exact": win}, base, ["aesthetic"])
    assert not honest["fired"] and (honest["value"], honest["base"]) == (1, 1)
    (hacked,) = gap_check("craft", {"aesthetic": win, "exact": lose}, base, ["aesthetic"])
    assert hacked["fired"] and (hacked["value"], hacked["base"]) == (1, 0)
    both, mixed = base | {"hps": zero}, {"aesthetic": win, "exact": lose, "hps": win}
    (lowest,) = gap_check("craft", mixed, both, ["aesthetic"])
    assert lowest["fired"] and lowest["limit"] == "exact + 25%", "one judge that likes it hid another that does not"
    (unknown,) = gap_check("craft", {"aesthetic": win, "exact": win}, base, ["aesthetic", "exact"])
    assert not unknown["fired"] and unknown["value"] is None and unknown["limit"].startswith("not checked")


def test_what_cannot_be_checked_is_said(clean, base):
    checks = run_checks({"base": base, "craft": base}, {}, training={}, trained_on={})
    assert [check["alarm"] for check in checks if check["value"] is None] == ["memory", "reward_gap"]
    assert all(check["limit"].startswith("not checked: ") for check in checks if check["value"] is None)


def test_valid_images_are_paired_up_and_others_counted(clean):
    base = image_statistics([None, *clean[1:]])
    alarms = alarms_of({"base": base, "craft": image_statistics([*clean[:-2], None, None]), "gone": base})
    assert [(alarm["model"], alarm["alarm"], alarm["value"]) for alarm in alarms] == [
        ("base", "invalid", 1),
        ("craft", "invalid", 2),
        ("gone", "invalid", 1),
    ]
    nothing = alarms_of({"base": base, "none": image_statistics([None] * len(clean))})
    assert [alarm["alarm"] for alarm in nothing] == ["invalid", "invalid"]
