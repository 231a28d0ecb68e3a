# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Merging result files: what compares, what is refused by name, what is said when it is allowed."""

import copy
import json

import numpy as np
import pytest

from diffusers_craft import compare_results
from diffusers_craft.evaluation.summary import summarize
from diffusers_craft.scripts import load_results, write_comparison


def results(model, value, prompts="hpdv2", **settings):
    """An evaluation of `base` and one model on two prompts."""
    model_settings = {"guidance_scale": 5.0, "num_inference_steps": 50, "seed": 0} | settings
    scores = {"base": {"hps_v2.1": np.array([0.25, 0.25])}, model: {"hps_v2.1": np.full(2, value)}}
    weights = {"base": "base (weights 1)", model: "tuned (weights 2)"}
    return {
        "settings": {
            "base": "base",
            "models": {m: {"pretrained_model_name_or_path": w, **model_settings} for m, w in weights.items()},
            "metrics": {"hps_v2.1": {"checkpoint": "xswu/HPSv2", "revision": "a"}},
            "prompts": {prompts: {"prompts": "2 prompts, hash x", "images_per_prompt": 1}},
        },
        "rows": [{"prompts": prompts, **row} for row in summarize(scores)],
    }


@pytest.fixture
def files():
    return {"one": results("craft", 0.3), "two": results("spo", 0.28)}


def test_models_of_several_files_in_one_table_the_base_once(files):
    merged = compare_results(files)
    assert [row["model"] for row in merged["rows"]] == ["base", "craft", "spo"]
    assert merged["differences"] == {}


def test_other_prompt_sets_become_columns(files, tmp_path):
    files["three"] = results("craft", 0.31, prompts="partiprompts")
    text = write_comparison(tmp_path, compare_results(files))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["craft", "**30**", "**31**"] in lines and ["spo", "<ins>28</ins>", "-"] in lines
    assert ["base", "25", "<ins>25</ins>"] in lines
    assert r"\textbf{30}" in (tmp_path / "comparison.tex").read_text()
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1 + 5
    assert json.loads((tmp_path / "comparison.json").read_text())["statistic"] == "mean"


@pytest.mark.parametrize(
    ("setting", "change", "words"),
    [
        ("guidance_scale", lambda s: s["models"]["base"].update(guidance_scale=7.5), "(5.0 in one, 7.5 in two)"),
        (
            "num_inference_steps",
            lambda s: s["models"]["base"].update(num_inference_steps=20),
            "(50 in one, 20 in two)",
        ),
        ("metric hps_v2.1", lambda s: s["metrics"]["hps_v2.1"].update(revision="b"), '({"revision": "a"} in one,'),
        ("prompts hpdv2", lambda s: s["prompts"]["hpdv2"].update(prompts="3 prompts"), "(2 prompts, hash x in one,"),
        (
            "images_per_prompt hpdv2",
            lambda s: s["prompts"]["hpdv2"].update(images_per_prompt=4),
            "(1 in one, 4 in two)",
        ),
    ],
)
def test_settings_that_do_not_compare_are_refused_by_name_unless_allowed(files, tmp_path, setting, change, words):
    change(files["two"]["settings"])
    with pytest.raises(ValueError) as error:
        compare_results(files)
    assert f"expected settings that compare, found {setting} {words}" in str(error.value)
    assert "--allow NAME merges them all the same" in str(error.value)
    with pytest.raises(ValueError, match="settings that compare"):
        compare_results(files, allow=["dtype"])
    for allow in ([setting], ["all"]):
        merged = compare_results(files, allow=allow)
        assert list(merged["differences"]) == [setting]
    assert f"- Not comparable, {setting} differs: " in write_comparison(tmp_path, merged)


def test_mean_and_median_do_not_mix(files):
    """A paper's file may hold one of the two only."""
    files["paper"] = {
        "settings": {},
        "rows": [{"prompts": "hpdv2", "model": "SmPO", "metric": "hps_v2.1", "median": 0.3}],
    }
    with pytest.raises(ValueError, match=r"statistic \(mean asked for, median in paper\)"):
        compare_results(files)
    merged = compare_results(files, statistic="median")
    assert merged["rows"][-1]["model"] == "SmPO"
    with pytest.raises(ValueError, match="--statistic: expected one of mean, median, .*, found 'mode'"):
        compare_results(files, statistic="mode")


def test_win_rates_against_different_bases_do_not_mix(files):
    files["two"]["settings"]["models"]["base"]["pretrained_model_name_or_path"] = "other (weights 9)"
    compare_results(files)
    with pytest.raises(ValueError, match=r"base \(base \(weights 1\) in one, other \(weights 9\) in two\)"):
        compare_results(files, statistic="win_rate")


def test_another_model_of_the_same_name_keeps_its_file_name(files):
    files["two"] = results("craft", 0.29)
    merged = compare_results(files)
    assert [row["model"] for row in merged["rows"]] == ["base", "craft", "craft (two)"]
    assert files["two"] == results("craft", 0.29), "the input was changed"


@pytest.mark.parametrize("model", ["craft", "base"])
def test_other_weights_under_one_name_are_another_model_though_no_prompt_set_is_shared(files, tmp_path, model):
    files["two"] = results("craft", 0.31, prompts="partiprompts")
    settings = files["two"]["settings"]["models"][model]
    settings["pretrained_model_name_or_path"] = settings["pretrained_model_name_or_path"].replace(
        "(weights ", "(weights 9"
    )
    text = write_comparison(tmp_path, compare_results(files))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert {line[0] for line in lines if line[1:]} >= {"base", "craft", f"{model} (two)"}
    (other,) = (line for line in lines if line and line[0] == f"{model} (two)")
    assert other[1] == "-" and other[2] != "-", "rows of two models on one line"


def test_weights_are_compared_by_their_hash_and_where_both_files_say_them(files):
    """A third file's model joins the second's of that name; a copy in another folder and a file without weights, too."""
    copies = {"one": ("tuned", "a"), "two": ("tuned", "b"), "three": ("copy", "b"), "four": None}
    for prompts, (name, weights) in zip("wxyz", copies.items()):
        files[name] = results("craft", 0.3, prompts=prompts)
        about = files[name]["settings"]["models"]["craft"]
        about["pretrained_model_name_or_path"] = weights and "{} (weights {})".format(*weights)
    rows = [row for row in compare_results(files)["rows"] if row["model"] != "base"]
    found = [("craft", "w"), ("craft (two)", "x"), ("craft (two)", "y"), ("craft", "z")]
    assert [(row["model"], row["prompts"]) for row in rows] == found


def test_files_and_folders_load_and_others_are_refused(files, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(files["one"]))
    assert load_results(tmp_path) == load_results(tmp_path / "results.json") == files["one"]
    broken = copy.deepcopy(files["one"])
    del broken["rows"][0]["model"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="results: expected rows with model and metric in .*broken.json"):
        load_results(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="results: expected a results.json of an evaluation, found .*nowhere"):
        load_results(tmp_path / "nowhere")
