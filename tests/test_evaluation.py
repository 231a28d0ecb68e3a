# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Means, medians, win rates and intervals against hand-computed cases and brute force; written files."""

import json

import numpy as np
import pytest

from diffusers_craft import EvaluationResults, bootstrap_interval, win_rate
from diffusers_craft.core.records import REFINED_SCHEMA
from diffusers_craft.evaluation.alarms import run_checks
from diffusers_craft.evaluation.measures import image_statistics
from diffusers_craft.evaluation.summary import evaluation_rows, summarize


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
    keys = ["category", "model", "metric", "n", "mean", "median", "mean_of_categories"]
    keys += ["win_rate", "win_rate_low", "win_rate_high"]
    assert all(list(row) == keys for row in rows)
    assert rows[0] == dict(zip(keys, [None, "base", "h", 4, 2.5, 2.5, None, None, None, None]))
    assert rows[3]["win_rate"] == 0.75 and rows[3]["mean"] == 1
    assert rows[2]["win_rate"] == 0.875 and rows[2]["win_rate_low"] <= 0.875 <= rows[2]["win_rate_high"]
    assert summarize(scores, seed=5) == rows


def test_summarize_counts_only_prompts_with_both_scores():
    nan = np.nan
    base, a, b = np.array([1, 2, 3, nan]), np.array([2, nan, 1, 9]), np.full(4, nan)
    rows = {row["model"]: row for row in summarize({"base": {"h": base}, "a": {"h": a}, "b": {"h": b}})}
    assert (rows["base"]["n"], rows["base"]["mean"]) == (3, 2)
    assert (rows["a"]["n"], rows["a"]["mean"], rows["a"]["win_rate"]) == (2, 1.5, 0.5)
    assert rows["b"] == {"category": None, "model": "b", "metric": "h", "n": 0} | dict.fromkeys(
        ("mean", "median", "mean_of_categories", "win_rate", "win_rate_low", "win_rate_high")
    )


def test_a_row_does_not_depend_on_other_models():
    rng = np.random.default_rng(0)
    base, a, b = ({"h": rng.random(30)} for _ in range(3))
    alone, both = summarize({"base": base, "b": b}), summarize({"base": base, "a": a, "b": b})
    assert alone[-1] == both[-1]


def test_summarize_refuses_other_metrics():
    with pytest.raises(ValueError, match=r"scores of 'a': expected the metrics \['h'\], found \['p'\]"):
        summarize({"base": {"h": np.zeros(2)}, "a": {"p": np.zeros(2)}})


def test_results_are_written_as_strict_json(tmp_path):
    rows = summarize({"base": {"h": np.array([1, np.nan])}, "craft": {"h": np.full(2, np.nan)}})
    alarms = run_checks({"base": image_statistics([None, None])}, {}, {}, {})
    EvaluationResults({"seed": 3, "notes": ["left out"]}, rows, alarms).write(tmp_path / "new")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    results = json.loads((tmp_path / "new" / "results.json").read_text(), parse_constant=refuse)
    assert results == {
        "format": 1,
        "settings": {"seed": 3, "notes": ["left out"]},
        "rows": rows,
        "alarms": alarms,
        "checks": alarms,
    }
    table = (tmp_path / "new" / "table.md").read_text()
    assert (
        "| craft" in table
        and "\n- left out\n" in table
        and "- Alarm: " + alarms[0]["message"] + "\n\n| Check" in table
    )


def test_evaluation_rows_are_unrefined_groups_of_one():
    table = evaluation_rows(["a red circle", "two stars"])
    assert table.schema == REFINED_SCHEMA
    assert table["group"].to_pylist() == table["row"].to_pylist() == [0, 1]
    assert table["refined_prompt"].to_pylist() == table["prompt"].to_pylist() == ["a red circle", "two stars"]
    assert not any(table["variant"].to_pylist()) and not any(table["refined"].to_pylist())


def test_several_images_a_prompt_count_as_their_mean():
    """Two prompts of two images: per prompt 1 win + 1 tie, and 1 loss + 1 pair without a score."""
    nan = np.nan
    base, tuned = np.array([[1.0, 2], [3, 4]]), np.array([[2.0, 2], [1, nan]])
    assert win_rate(tuned, base) == (0.75 + 0) / 2
    _, row = summarize({"base": {"h": base}, "craft": {"h": tuned}})
    assert (row["n"], row["mean"], row["median"], row["win_rate"]) == (2, (2 + 1) / 2, 1.5, 0.375)


def test_one_prompt_gives_its_own_numbers_and_an_interval_without_width():
    base, row = summarize({"base": {"h": np.array([1.5])}, "craft": {"h": np.array([2.0])}})
    assert (base["n"], base["mean"], base["median"]) == (1, 1.5, 1.5)
    assert [row[key] for key in ("mean", "win_rate", "win_rate_low", "win_rate_high")] == [2, 1, 1, 1]


def test_infinite_scores_count_as_missing():
    _, row = summarize({"base": {"h": np.array([1.0, 1, 1])}, "craft": {"h": np.array([np.inf, 2, -np.inf])}})
    assert (row["n"], row["mean"], row["win_rate"]) == (1, 2, 1)


def test_rows_by_category_and_their_unweighted_mean():
    """Three prompts of one style and one of another: GenEval's overall score weighs the styles, not the prompts."""
    scores = {"base": {"h": np.array([0.0, 0, 0, 1])}, "craft": {"h": np.array([1.0, 1, np.nan, 0])}}
    rows = summarize(scores, categories=["a", "a", "a", "b"])
    assert [(row["category"], row["model"]) for row in rows] == [
        (None, "base"),
        (None, "craft"),
        ("a", "base"),
        ("b", "base"),
        ("a", "craft"),
        ("b", "craft"),
    ]
    assert (rows[0]["mean"], rows[0]["mean_of_categories"]) == (0.25, 0.5)
    assert (rows[1]["mean"], rows[1]["mean_of_categories"], rows[1]["win_rate"]) == (pytest.approx(2 / 3), 0.5, 2 / 3)
    assert (rows[4]["n"], rows[4]["mean"], rows[4]["win_rate"]) == (2, 1, 1)
    assert (rows[5]["n"], rows[5]["mean"], rows[5]["win_rate"]) == (1, 0, 0)
    with pytest.raises(ValueError, match="categories: expected one for each of 4 prompts, found 3"):
        summarize(scores, categories=["a", "a", "b"])


def test_a_category_without_any_score_is_empty_and_does_not_enter_the_mean_of_categories():
    nan = np.nan
    rows = summarize({"base": {"h": np.array([1.0, nan])}, "c": {"h": np.array([3.0, nan])}}, categories=["a", "b"])
    empty = next(row for row in rows if row["category"] == "b" and row["model"] == "c")
    assert empty["n"] == 0 and empty["mean"] is None and empty["win_rate"] is None
    assert rows[1]["mean_of_categories"] == 3


@pytest.mark.parametrize(("n", "images"), [(60, 1), (400, 1), (60, 4)])
def test_intervals_of_win_rates_cover_the_truth_in_95_percent_of_cases(n, images):
    """Scores with ties, and images of one prompt that resemble each other: drawn so that the true win rate is known.

    A prompt's advantage is +1, 0 or -1 with fixed odds, each image's is that or, once in four, drawn anew.
    """
    odds = np.array([0.5, 0.2, 0.3])
    truth = odds @ [1, 0.5, 0]
    rng, covered, trials = np.random.default_rng(n + images), 0, 300
    for trial in range(trials):
        prompt = rng.choice([1, 0, -1], p=odds, size=(n, 1)).repeat(images, axis=1)
        fresh = rng.choice([1, 0, -1], p=odds, size=(n, images))
        tuned = np.where(rng.random((n, images)) < 0.25, fresh, prompt).astype(float)
        _, row = summarize({"base": {"h": np.zeros((n, images))}, "craft": {"h": tuned}}, seed=trial)
        covered += row["win_rate_low"] <= truth <= row["win_rate_high"]
    assert 0.91 <= covered / trials <= 0.985  # 0.95 expected, standard error 0.013


def test_rows_of_several_images_a_prompt():
    table = evaluation_rows(["a", "b"], images_per_prompt=2)
    assert table["row"].to_pylist() == [0, 1, 2, 3] and table["group"].to_pylist() == [0, 0, 1, 1]
    assert table["variant"].to_pylist() == [0, 1, 0, 1] and table["prompt"].to_pylist() == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="--images_per_prompt: expected at least 1, found 0"):
        evaluation_rows(["a"], 0)
