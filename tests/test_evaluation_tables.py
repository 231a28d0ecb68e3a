# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Tables: which value is best and second best, groups of prompt sets, by category; Markdown, LaTeX, CSV."""

import csv
import io
import re

import numpy as np
import pytest

from diffusers_craft.core.printed import PRINTED_TIMES
from diffusers_craft.evaluation.alarms import skipped_check
from diffusers_craft.evaluation.summary import summarize
from diffusers_craft.evaluation.tables import (
    category_tables,
    format_checks,
    format_csv,
    format_latex,
    format_table,
    markdown_text,
)
from diffusers_craft.rewards.settings import reward_factories


def cells(markdown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]


@pytest.fixture
def rows():
    """Two prompt sets, three models; a metric that only one set has."""
    values = {"base": 0.2, "sft": 0.25, "craft": 0.3}
    first = {m: {"hps_v2.1": np.full(2, v), "own": np.full(2, 100 * v)} for m, v in values.items()}
    second = {m: {"hps_v2.1": np.full(3, 1 - v)} for m, v in values.items()}
    return [{"prompts": "parti", **row} for row in summarize(first)] + [
        {"prompts": "hpd", **row} for row in summarize(second)
    ]


def test_marks_best_and_second():
    values = {"base": 1.0, "sft": 2.0, "craft": 3.0}
    rows = summarize({model: {"h": np.full(2, value)} for model, value in values.items()})
    lines = cells(format_table(rows))
    assert ["base", "1"] in lines and ["sft", "<ins>2</ins>"] in lines and ["craft", "**3**"] in lines
    assert ["craft", "**100.0 [100.0, 100.0]**"] in lines
    assert "**" not in format_table(rows, marks=False)
    assert format_table(rows).startswith("2 prompts.\n")


def test_values_that_print_alike_rank_alike():
    values = {"base": 1.0, "a": 2.00001, "b": 2.00002, "c": 0.5}
    lines = cells(format_table(summarize({model: {"h": np.array([value])} for model, value in values.items()})))
    assert ["a", "**2**"] in lines and ["b", "**2**"] in lines
    assert ["base", "<ins>1</ins>"] in lines and ["c", "0.5"] in lines


def test_a_model_without_scores_is_a_dash_and_never_best():
    lines = cells(format_table(summarize({"base": {"h": np.array([-5.0])}, "a": {"h": np.array([np.nan])}})))
    assert ["base", "-5"] in lines and ["a", "-"] in lines  # nothing to rank among one


def test_the_lowest_is_best_where_a_row_says_so():
    rows = summarize({model: {"fid": np.full(2, value)} for model, value in {"base": 9, "a": 3, "b": 5}.items()})
    lines = cells(format_table([row | {"lower_is_better": True} for row in rows]).split("\n\n")[1])
    assert lines[2:] == [["base", "9"], ["a", "**3**"], ["b", "<ins>5</ins>"]]


def test_metrics_with_a_scale_of_their_own_are_rewards():
    assert set(PRINTED_TIMES) <= set(reward_factories())


def test_the_base_alone_has_no_win_rates():
    assert "Win rate" not in format_table(summarize({"base": {"h": np.ones(2)}}))


def test_columns_are_prompt_sets_and_metrics_in_the_papers_scale(rows):
    header, _, *lines = cells(format_table(rows))[:5]
    assert header == ["Mean", "parti: hps_v2.1 x100", "parti: own", "hpd: hps_v2.1 x100"]
    assert lines[0] == ["base", "20", "20", "**80**"] and lines[2] == ["craft", "**30**", "**30**", "70"]
    assert format_table(rows).startswith("2 to 3 prompts of parti, hpd.")


def test_latex_escapes_marks_and_spans(rows):
    text = format_latex([row | {"model": row["model"].replace("sft", "sft_1&2")} for row in rows])
    assert r" & \multicolumn{2}{c}{parti} & \multicolumn{1}{c}{hpd} \\" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert r"craft & \textbf{30} & \textbf{30} & 70 \\" in text
    assert r"sft\_1\&2 & \underline{25} & \underline{25} & \underline{75} \\" in text
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\end{tabular}") == 3  # mean, median, win rate


HOSTILE = [
    "a|b\nc",
    "<script>alert(1)</script>",
    "[x](javascript:y)",
    "![x](http://z/t.png)",
    "`a` **b**",
    "\x1b[31mred",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("key", ["model", "metric", "category", "prompts"])
def test_no_name_breaks_a_markdown_table(name, key):
    row = {"prompts": "p", "category": "c", "model": "m", "metric": "h", "n": 1, "mean": 1.0, "median": None}
    row |= {"win_rate": None, "mean_of_categories": None}
    text = format_table([{**row, "category": None}, {**row, "prompts": "q"}, {**row, key: name}])
    assert "<script" not in text and "](" not in text and "\x1b" not in text
    tables = [part.strip().splitlines() for part in text.split("\n\n")[1:]]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, "a row with more cells"
    plain = format_table([{**row, "category": None, "model": name}], marks=False)
    assert "\x1b" not in plain and len(plain.splitlines()) == 5
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in plain.splitlines()[2:]}) == 1


def test_a_column_of_one_letter_is_divided():
    row = {"prompts": None, "category": None, "model": "m", "metric": "h", "n": 1, "mean": 1.0, "median": None}
    lines = format_table([row | {"win_rate": None, "mean_of_categories": None}]).splitlines()
    assert lines[2:] == ["| Mean |  h |", "| ---- | -: |", "| m    |  1 |"]


def test_yes_and_no_have_no_median():
    once, twice = {"base": [0, 1, np.nan, 1], "a": [1, 1, 1, 0]}, {"base": [[0, 1], [1, 1], [1, 1], [0, 0]]}
    rows = summarize({model: {"geneval": np.array(values)} for model, values in once.items()})
    assert [row["median"] for row in rows] == [None, None] and rows[0]["mean"] == pytest.approx(2 / 3)
    assert "Median" not in format_table(rows)
    (row,) = summarize({model: {"geneval": np.array(values)} for model, values in twice.items()})
    assert row["median"] == 0.75


def test_escaped_names_are_shown_as_they_are():
    assert markdown_text("a|b") == r"a\|b" and markdown_text("hps_v2.1 [1, 2]") == "hps_v2.1 [1, 2]"
    assert markdown_text("<b>") == "&lt;b>" and markdown_text("[a](b)") == r"[a]\(b)"
    assert markdown_text("C:\\x\n*y*") == r"C:\\x \*y\*"


@pytest.mark.parametrize("name", ["[1cm]", "*x", "a\nb % c", "\\input{/etc/passwd}"])
def test_no_name_breaks_a_latex_table(name):
    row = {"prompts": None, "category": None, "model": name, "metric": name, "n": 1, "mean": 1.0, "median": None}
    text = format_latex([row | {"win_rate": None, "mean_of_categories": None}])
    assert not re.search(r"(\\\\|\\toprule|\\midrule)\s*[\[*]", text), "an argument of the line's end"
    assert r"\input{" not in text and not re.search(r"(?<!\\)%", text.split("\n", 1)[1])
    assert len(text.splitlines()) == 8


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1"])
@pytest.mark.parametrize("key", ["prompts", "category", "model", "metric"])
def test_no_spreadsheet_computes_a_cell(name, key):
    row = {"prompts": "p", "category": "c", "model": "m", "metric": "h", "n": 1, "mean": -0.5}
    (line,) = csv.DictReader(io.StringIO(format_csv([row | {key: name}])))
    assert line[key] == "'" + name and line["mean"] == "-0.5" and line["median"] == ""


def test_csv_holds_every_number_unrounded(rows):
    found = list(csv.DictReader(io.StringIO(format_csv(rows))))
    assert len(found) == len(rows)
    for line, row in zip(found, rows):
        assert line["prompts"] == row["prompts"] and float(line["mean"]) == row["mean"]
        assert line["win_rate"] == ("" if row["win_rate"] is None else str(row["win_rate"]))


def test_one_table_a_metric_by_category():
    scores = {"base": {"h": np.array([1.0, 1, 4])}, "craft": {"h": np.array([2.0, 2, 3])}}
    (table,) = category_tables(summarize(scores, categories=["anime", "anime", "photo"]))
    assert table.title == "h by category" and table.columns == ["base", "craft"]
    found = {line: [(cell.text, cell.rank) for cell in marked] for line, marked in table.lines}
    assert found == {
        "anime": [("1", 2), ("2", 1)],
        "photo": [("4", 1), ("3", 2)],
        "mean of categories": [("2.5", 1), ("2.5", 1)],
    }


def test_table_of_checks_has_a_column_a_model():
    twins = {"model": "sft", "alarm": "twins", "base": 0.1, "value": 0.2, "limit": "base + 20%", "fired": False}
    twins["message"] = ""
    fired = twins | {"model": "craft", "value": 0.5, "fired": True}
    skipped = twins | {"alarm": "memory", "base": None, "value": None, "limit": "not checked: why"}
    known = skipped | {"model": "craft", "base": 0.01, "value": 0.02, "limit": "base + 10%"}
    header, _, first, second = cells(format_checks([twins, skipped, fired, known]))
    assert header == ["Check", "sft", "craft", "limit"]
    assert first == ["twins", "0.1 to 0.2", "0.1 to 0.5 ALARM", "base + 20%"]
    assert second == ["memory", "-", "0.01 to 0.02", "base + 10%"]
    assert cells(format_checks([skipped]))[2] == ["memory", "-", "-"]
    sets = cells(format_checks([twins | {"prompts": "a"}, fired | {"prompts": "b"}]))
    assert sets[2:] == [
        ["twins, a", "0.1 to 0.2", "-", "base + 20%"],
        ["twins, b", "-", "0.1 to 0.5 ALARM", "base + 20%"],
    ]


def test_checks_that_were_not_made_are_dashes_with_a_reason_a_model_below():
    made = {"model": "sft", "alarm": "memory", "base": 0.1, "value": 0.2, "limit": "base + 10%", "fired": False}
    made["message"] = "sft: 20% of its images ..."
    skipped = skipped_check("craft", "memory", "its training images are unknown")
    gap = skipped_check("craft", "reward_gap", "needs a reward that was trained on")
    sets = [{"prompts": "parti", **made}, {"prompts": "parti", **skipped}, {"prompts": "parti", **gap}]
    text = format_checks([*sets, {"prompts": "hpd", **made}, {"prompts": "hpd", **skipped}])
    assert ["memory, parti", "0.1 to 0.2", "-", "base + 10%"] in cells(text)
    assert ["reward_gap, parti", "-", "-", "-"] in cells(text)
    assert text.endswith(
        "|\n\n- craft: memory not checked: its training images are unknown\n"
        "- craft: reward_gap not checked: needs a reward that was trained on (parti)\n"
    )
    assert format_checks([made]).endswith("|\n") and "sft:" not in text
