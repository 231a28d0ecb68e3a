# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Win rates and intervals against brute force, missing scores, alarms on pictures made for them, written files."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from diffusers_craft.evaluation import (
    bootstrap_interval,
    diversity,
    diversity_alarm,
    evaluation_rows,
    find_alarms,
    format_table,
    image_statistics,
    saturation_alarm,
    summarize,
    win_rate,
    write_evaluation,
)
from diffusers_craft.records import REFINED_SCHEMA
from diffusers_craft.tiny.world import degrade, render, sample_caption, sample_scene


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(0)
    return [render(sample_scene(sample_caption(rng), rng)) for _ in range(60)]


def test_win_rate_counts_ties_half():
    assert win_rate(np.array([1, 2, 3, 4.0]), np.array([0, 2, 4, 3.0])) == (2 + 0.5) / 4


@pytest.mark.parametrize("seed", range(5))
def test_win_rate_agrees_with_brute_force_and_is_antisymmetric(seed):
    rng = np.random.default_rng(seed)
    tuned, base = rng.integers(0, 4, 50).astype(float), rng.integers(0, 4, 50).astype(float)
    brute = np.mean([1.0 if t > b else 0.5 if t == b else 0.0 for t, b in zip(tuned, base)])
    assert win_rate(tuned, base) == pytest.approx(brute)
    assert win_rate(base, tuned) == pytest.approx(1 - brute)


def test_win_rate_drops_pairs_without_score():
    assert win_rate(np.array([1, np.nan, 3, 0]), np.array([0, 0, np.nan, 1])) == 0.5
    assert np.isnan(win_rate(np.array([np.nan]), np.array([1.0])))


def test_win_rate_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"tuned: expected one score per prompt like the base, \(3,\), found \(2,\)"):
        win_rate(np.zeros(2), np.zeros(3))


def test_bootstrap_interval_agrees_with_resampled_rows():
    values = np.random.default_rng(1).choice([0, 0.5, 1], 80, p=[0.3, 0.1, 0.6])
    rng = np.random.default_rng(2)
    means = [rng.choice(values, len(values)).mean() for _ in range(10_000)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.013)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.random(200) < 0.6, num_resamples=1000, seed=trial)
        covered += low <= 0.6 <= high
    assert 0.92 <= covered / 400 <= 0.98  # 0.95 expected, standard error 0.011


def test_bootstrap_interval_is_seeded_and_defined_for_no_spread_and_no_values():
    values = np.array([0, 1, 1, 0.5])
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(np.ones(3)) == (1, 1)
    assert np.isnan(bootstrap_interval(np.array([]))).all()


def test_summarize_compares_with_the_first_model():
    scores = {
        "base": {"h": np.array([1.0, 2, 3, 4]), "exact": np.array([0.0, 0, 1, 1])},
        "craft": {"exact": np.array([1.0, 1, 1, 1]), "h": np.array([2.0, 3, 4, 4])},
    }
    rows = summarize(scores, seed=5)
    assert [(row["model"], row["metric"]) for row in rows] == [
        ("base", "h"),
        ("base", "exact"),
        ("craft", "h"),
        ("craft", "exact"),
    ]
    keys = ["model", "metric", "n", "mean", "median", "win_rate", "win_rate_low", "win_rate_high"]
    assert all(list(row) == keys for row in rows)
    assert rows[0] == dict(zip(keys, ["base", "h", 4, 2.5, 2.5, None, None, None]))
    assert rows[3]["win_rate"] == 0.75 and rows[3]["mean"] == 1
    assert rows[2]["win_rate"] == 0.875 and rows[2]["win_rate_low"] <= 0.875 <= rows[2]["win_rate_high"]
    assert summarize(scores, seed=5) == rows


def test_summarize_counts_only_prompts_with_both_scores():
    nan = np.nan
    base, a, b = np.array([1, 2, 3, nan]), np.array([2, nan, 1, 9]), np.full(4, nan)
    rows = {row["model"]: row for row in summarize({"base": {"h": base}, "a": {"h": a}, "b": {"h": b}})}
    assert (rows["base"]["n"], rows["base"]["mean"]) == (3, 2)
    assert (rows["a"]["n"], rows["a"]["mean"], rows["a"]["win_rate"]) == (2, 1.5, 0.5)
    assert rows["b"] == {"model": "b", "metric": "h", "n": 0} | dict.fromkeys(
        ("mean", "median", "win_rate", "win_rate_low", "win_rate_high")
    )


def test_a_row_does_not_depend_on_other_models():
    rng = np.random.default_rng(0)
    base, a, b = ({"h": rng.random(30)} for _ in range(3))
    alone, both = summarize({"base": base, "b": b}), summarize({"base": base, "a": a, "b": b})
    assert alone[-1] == both[-1]


def test_summarize_refuses_other_metrics():
    with pytest.raises(ValueError, match=r"scores of 'a': expected the metrics \['h'\], found \['p'\]"):
        summarize({"base": {"h": np.zeros(2)}, "a": {"p": np.zeros(2)}})


def test_diversity_agrees_with_all_pairs():
    x = np.random.default_rng(0).random((12, 6))
    brute = np.sqrt(np.mean([np.mean((a - b) ** 2) for a, b in itertools.combinations(x, 2)]))
    assert diversity(x) == pytest.approx(brute)
    assert diversity(np.ones((4, 6))) == 0


def test_image_statistics_closed_forms():
    red = Image.new("RGB", (300, 200), (255, 0, 0))
    half = Image.fromarray(np.repeat([[0, 255]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    found = image_statistics(image for image in (red, half, None))
    np.testing.assert_allclose(found.saturation, [1, 0, np.nan])
    np.testing.assert_allclose(found.contrast, [0, 0.5, np.nan], atol=1e-9)
    np.testing.assert_allclose(found.thumbnails[0].reshape(8, 8, 3)[3, 5], [1, 0, 0])
    assert np.isnan(found.thumbnails[2]).all()
    assert red.size == (300, 200), "the caller's image was changed"


def test_no_alarm_for_the_same_images_or_for_cleaning_up(clean):
    rng = np.random.default_rng(1)
    statistics = image_statistics(clean)
    mixed = image_statistics([degrade(image, rng) if i % 2 else image for i, image in enumerate(clean)])
    assert find_alarms({"base": mixed, "tuned": statistics, "same": mixed}) == []


def test_saturation_and_contrast_alarms(clean):
    base = image_statistics(clean)
    vivid = image_statistics([ImageEnhance.Color(image).enhance(1.8) for image in clean])
    (alarm,) = saturation_alarm("craft", vivid, base)
    assert (alarm["model"], alarm["alarm"]) == ("craft", "saturation")
    assert alarm["value"] / alarm["base"] > 1.3
    assert alarm["message"].startswith("craft: mean saturation changed by +")
    gray = image_statistics([ImageEnhance.Contrast(image).enhance(0.3) for image in clean])
    assert {alarm["alarm"] for alarm in saturation_alarm("craft", gray, base)} == {"saturation", "contrast"}


def test_diversity_alarm_when_all_pictures_look_alike(clean):
    base = image_statistics(clean)
    (alarm,) = diversity_alarm("craft", image_statistics(clean[:1] * len(clean)), base)
    assert (alarm["alarm"], alarm["value"]) == ("diversity", 0)
    assert alarm["message"] == "craft: images of different prompts differ 0% as much as the base's (limit 80%)"


def test_alarms_pair_up_valid_images_and_count_the_others(clean):
    base = image_statistics([None, *clean[1:]])
    alarms = find_alarms({"base": base, "craft": image_statistics([*clean[:-2], None, None]), "gone": base})
    assert [(alarm["model"], alarm["alarm"], alarm["value"]) for alarm in alarms] == [
        ("base", "invalid", 1),
        ("craft", "invalid", 2),
        ("gone", "invalid", 1),
    ]
    nothing = find_alarms({"base": base, "none": image_statistics([None] * len(clean))})
    assert [alarm["alarm"] for alarm in nothing] == ["invalid", "invalid"]


def test_format_table_marks_best_and_second():
    rows = summarize(
        {"base": {"h": np.array([1.0, 1])}, "sft": {"h": np.array([2.0, 2])}, "craft": {"h": np.array([3.0, 3])}}
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in format_table(rows).splitlines()]
    assert ["base", "1"] in lines and ["sft", "<ins>2</ins>"] in lines and ["craft", "**3**"] in lines
    assert ["craft", "**100.0 [100.0, 100.0]**"] in lines
    assert "**" not in format_table(rows, marks=False)
    assert format_table(rows).startswith("2 prompts.\n")


def test_format_table_of_the_base_alone_has_no_win_rates():
    assert "Win rate" not in format_table(summarize({"base": {"h": np.ones(2)}}))


def test_write_evaluation_is_strict_json(tmp_path):
    rows = summarize({"base": {"h": np.array([1, np.nan])}, "craft": {"h": np.full(2, np.nan)}})
    alarms = find_alarms({"base": image_statistics([None, None])})
    write_evaluation(tmp_path / "new", {"seed": 3}, rows, alarms)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    results = json.loads((tmp_path / "new" / "results.json").read_text(), parse_constant=refuse)
    assert results == {"settings": {"seed": 3}, "rows": rows, "alarms": alarms}
    table = (tmp_path / "new" / "table.md").read_text()
    assert "| craft" in table and table.endswith("- Alarm: " + alarms[0]["message"] + "\n")


def test_evaluation_rows_are_unrefined_groups_of_one():
    table = evaluation_rows(["a red circle", "two stars"])
    assert table.schema == REFINED_SCHEMA
    assert table["group"].to_pylist() == table["row"].to_pylist() == [0, 1]
    assert table["refined_prompt"].to_pylist() == table["prompt"].to_pylist() == ["a red circle", "two stars"]
    assert not any(table["variant"].to_pylist()) and not any(table["refined"].to_pylist())
