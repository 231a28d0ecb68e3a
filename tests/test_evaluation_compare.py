# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Merging result files: what compares, what is refused by name, what is said when it is allowed."""

import copy
import csv
import io
import json

import numpy as np
import pytest

from diffusers_craft import UserError, compare_results
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


def paper(**numbers):
    return {"settings": {}, "rows": [{"model": "SmPO", "metric": "hps_v2.1", **numbers}]}


def test_numbers_of_a_paper_print_without_interval_and_prompts(files, tmp_path):
    """Papers print a win rate alone; rows without a prompt set have none in their column's title."""
    files = {"paper": paper(win_rate=0.55, prompts="hpdv2"), "other": paper(win_rate=0.6, win_rate_low=0.5)}
    text = write_comparison(tmp_path, compare_results(files, "win_rate"))
    header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    assert header == ["Win rate", "hpdv2: hps_v2.1 x100", "hps_v2.1 x100"] and lines[0] == ["SmPO", "55.0", "60.0"]
    rows = [{"model": m, "metric": "h", "category": "c", "mean": 1.0} for m in "ab"]
    text = write_comparison(
        tmp_path, compare_results({"x": {"settings": {}, "rows": [*rows, *paper(mean=1)["rows"]]}})
    )
    assert "None" not in text and "| : " not in text


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ('"mean": "0.55"', 'expected a number or null as mean of row 1 of .*x.json, found "0.55"'),
        ('"median": true', "expected a number or null as median of row 1 of .*x.json, found true"),
        ('"n": [2]', "expected a number or null as n of row 1"),
        ('"mean": NaN', "expected finite numbers or null in .*x.json, found NaN"),
        ('"mean": 1e999', "expected finite numbers or null in .*x.json, found 1e999"),
        ('"mean": 0.5, "extra": -Infinity', "expected finite numbers or null in .*x.json, found -Infinity"),
        ('"win_rate": 55', "expected a share from 0 to 1 as win_rate of row 1 of .*x.json, found 55"),
        ('"mean": 1, "prompts": ["a"]', "expected text as prompts of row 1"),
        ('"mean": 1, "category": 5', "expected text as category of row 1"),
        ('"mean": 1, "prompts": " "', "expected text as prompts of row 1"),
        ('"mean": 1, "prompts": "\\ud83d"', "expected a results.json of an evaluation, found .*UnicodeEncodeError"),
    ],
)
def test_numbers_that_are_none_are_refused_by_row(tmp_path, numbers, words):
    text = '{"settings": {}, "rows": [{"model": "a", "metric": "b", ' + numbers + "}]}"
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=f"^results: {words}"):
        load_results(tmp_path / "x.json")


ROW = {"model": "a", "metric": "b"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "an object as the content"),
        ({"settings": [], "rows": []}, "an object as settings"),
        ({"rows": []}, "an object as settings"),
        ({"settings": {}, "rows": {}}, "a list as rows"),
        ({"settings": {}, "rows": ["model metric"]}, "rows with model and metric"),
        ({"settings": {}, "rows": [[1]]}, "rows with model and metric"),
        ({"settings": {}, "rows": [{**ROW, "model": {}}]}, "text as model of row 1"),
        ({"settings": {}, "rows": [ROW, {**ROW, "metric": None}]}, "text as metric of row 2"),
        ({"settings": {"models": []}, "rows": []}, "an object as settings.models"),
        ({"settings": {"models": {"a": 1}}, "rows": []}, "an object as settings of a"),
        ({"settings": {"metrics": "b"}, "rows": []}, "an object as settings.metrics"),
        ({"settings": {"prompts": {"p": "x"}}, "rows": []}, "an object as settings of p"),
        ({"settings": {"base": ["a"]}, "rows": []}, "text as settings.base"),
        (
            {"settings": {"models": {"a": {"pretrained_model_name_or_path": 1}}}, "rows": []},
            "text as pretrained_model_name_or_path of a",
        ),
    ],
)
def test_other_json_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^results: expected {words}.* x?.*x.json, found") as error:
        load_results(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_files_that_are_hardly_json_are_refused_too(tmp_path):
    for number, data in enumerate([b"", b"\xff\xfe", b"[" * 100_000, b'{"settings": {}']):
        (tmp_path / f"{number}.json").write_bytes(data)
        with pytest.raises(UserError, match=f"^results: expected .*{number}.json"):
            load_results(tmp_path / f"{number}.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(paper(mean=1)).encode())
    assert load_results(tmp_path / "bom.json") == paper(mean=1)


@pytest.mark.parametrize("setting", ["guidance_scale", "scheduler"])
def test_no_text_of_a_file_leaves_its_line(files, tmp_path, setting):
    hostile = "5\n\\input{/etc/passwd}\n<script>alert(1)</script>\r%x"
    files["two"]["settings"]["models"]["base"][setting] = hostile
    files["one"]["settings"]["models"]["base"][setting] = 7.5
    files["two"]["rows"][-1]["model"] = "=<script>\n| x"
    text = write_comparison(tmp_path, compare_results(files, allow=["all"]))
    lines = (tmp_path / "comparison.tex").read_text().splitlines()
    assert not any(r"\input" in line for line in lines if not line.startswith("% Not comparable"))
    assert "<script" not in text and "&lt;script>" in text
    assert not any(line.startswith("\\input") or line.startswith("<") for line in text.splitlines())
    models = [row["model"] for row in csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text()))]
    assert "'=<script>\n| x" in models


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
