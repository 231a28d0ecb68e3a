# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`report.html`: one file without outside references, what it shows, and nothing that a prompt could inject."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diffusers_craft import EvaluationResults
from diffusers_craft.evaluation import report
from diffusers_craft.evaluation.alarms import skipped_check
from diffusers_craft.evaluation.report import (
    distribution_panel,
    draw_comparison,
    win_rate_panel,
    write_evaluation_report,
)
from diffusers_craft.evaluation.results import ExampleRow
from diffusers_craft.evaluation.summary import summarize


PROMPT = 'a <script>alert("x")</script> & a star'


class Page(html.parser.HTMLParser):
    """Collects tags, the visible text and alternative texts; checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.alternatives = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.alternatives.append(dict(attributes)["alt"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def rows_and_scores():
    rng = np.random.default_rng(0)
    scores = {
        m: {"hps_v2.1": 0.2 + 0.1 * rng.random((6, 2)), "none": np.full((6, 2), np.nan)} for m in ("base", "craft")
    }
    rows = [{"prompts": "parti", **row} for row in summarize(scores, categories=list("aaabbb"))]
    return rows, {"parti": scores}


@pytest.fixture
def page(rows_and_scores, tmp_path, tiny_images):
    rows, scores = rows_and_scores
    checks = [
        {"model": "craft", "alarm": "twins", "base": 0.1, "value": 0.5, "limit": "base + 20%", "fired": True},
        {
            "model": "craft",
            "alarm": "memory",
            "base": None,
            "value": None,
            "limit": "not checked: why",
            "fired": False,
        },
    ]
    checks = [{"prompts": "parti", "message": f"{check['model']}: {check['alarm']}!", **check} for check in checks]
    checks += [{"prompts": "parti", **skipped_check("sft", "twins", "few & far")}]
    row = ExampleRow(
        PROMPT, {"base": tiny_images[0], "craft": None}, {"base": {"hps_v2.1": 0.25}, "craft": {"hps_v2.1": np.nan}}
    )
    settings = {"models": {"base": {}, "craft": {}}, "notes": ["not comparable"], "seed": 3}
    write_evaluation_report(tmp_path / "new", EvaluationResults(settings, rows, checks, scores, {"parti": [row]}))
    return (tmp_path / "new" / "report.html").read_text()


def test_one_file_that_needs_no_other(page):
    assert not re.search(r"https?://|@import|url\(|src=\"(?!data:)|<link", page)
    parsed = Page(page)
    assert parsed.open == [] and "script" not in parsed.tags
    assert f"base: {PROMPT}" in parsed.alternatives
    assert 'name="viewport"' in page


def test_shows_alarms_scores_pictures_and_settings(page):
    text = " ".join(Page(page).words)
    for words in (
        "craft: twins!",
        "craft: memory!",
        "sft: twins not checked: few & far",
        "ALARM",
        "hps_v2.1 x100",
        "Win rate against base",
        PROMPT,
    ):
        assert words in text
    assert "not checked: why" not in re.findall("<td>(.*?)</td>", page), (
        "a sentence in a cell pushes numbers off a phone"
    )
    for words in ("hps_v2.1 x100 by category", "mean of categories", "no valid image", '"seed": 3', "not comparable"):
        assert words in text
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Alarms", "Scores", "Win rates", "Distributions", "By category", "Side by side", "Settings"]


def test_the_grid_has_the_units_of_the_report(tiny_images, monkeypatch):
    """Times 100 where papers print it so, and a dash for none."""
    seen = {}
    monkeypatch.setattr(report, "image_grid", lambda pictures, columns, captions, *_, **__: seen.update(c=captions))
    scores = {"base": {"hps_v2.1": 0.2779, "geneval": 1.0, "pickscore": 21.5}}
    scores["craft"] = dict.fromkeys(scores["base"], float("nan"))
    draw_comparison([ExampleRow("a", dict.fromkeys(scores, tiny_images[0]), scores)])
    assert seen["c"] == [
        "hps_v2.1 x100 27.79\ngeneval x100 100\npickscore 21.5",
        "hps_v2.1 x100 –\ngeneval x100 –\npickscore –",
    ]


@pytest.mark.parametrize("prompt", ["1girl,solo,long_hair," * 60, "猫" * 130, "a word " * 400])
def test_no_prompt_widens_the_page_or_fills_it(rows_and_scores, tmp_path, tiny_images, prompt):
    rows, scores = rows_and_scores
    images = dict.fromkeys(("base", "craft"), tiny_images[0])
    row = ExampleRow(prompt, images, {"base": {"hps_v2.1": 0.2}, "craft": {"hps_v2.1": 0.3}})
    write_evaluation_report(tmp_path, EvaluationResults({}, rows, [], scores, {"parti": [row]}))
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"h1, h2, h3, [^{}]*\{ overflow-wrap: anywhere", text)
    (heading,) = [found for found in re.findall(r"<h3>(.*?)</h3>", text) if prompt[:20] in found]
    assert len(re.sub("<span.*", "", heading)) <= 300
    assert prompt in re.sub(r'<span class="more">.*?</span>|</?(h3|summary|details)>', "", text)
    assert len(Page(text).alternatives[-1]) < 320


def test_wide_tables_show_that_they_go_on(page):
    assert re.search(r"\.wide \{ overflow-x: auto; background: linear-gradient", page)
    assert "background-attachment: local, local, scroll, scroll" in page


def test_pictures_are_embedded_larger_than_they_are_shown(rows_and_scores, tmp_path, monkeypatch):
    rows, scores = rows_and_scores
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1024, 512, 3), dtype=np.uint8))

    def sizes():
        row = ExampleRow("a", {"base": image, "craft": image}, {"base": {"m": 0.2}, "craft": {"m": 0.3}})
        write_evaluation_report(tmp_path, EvaluationResults({}, rows, [], scores, {"parti": [row]}))
        text = (tmp_path / "report.html").read_text()
        data = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
        return {Image.open(io.BytesIO(base64.b64decode(one))).size for one in data}

    assert sizes() == {(384, 768)}
    monkeypatch.setattr(report, "MANY", 1)
    assert sizes() == {(256, 512)}


def test_win_rates_and_intervals_are_drawn_where_they_are(rows_and_scores):
    rows, _ = rows_and_scores
    own = [row for row in rows if row["category"] is None]
    axes = Figure().subplots()
    win_rate_panel(own, axes)
    (container,) = axes.containers
    row = next(row for row in own if row["model"] == "craft" and row["metric"] == "hps_v2.1")
    assert container.lines[0].get_xdata()[0] == pytest.approx(100 * row["win_rate"])
    (segment,) = container.lines[2][0].get_segments()
    assert segment[:, 0] == pytest.approx([100 * row["win_rate_low"], 100 * row["win_rate_high"]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hps_v2.1"]


def test_distributions_are_shares_of_the_images_with_a_score():
    scores = {"base": np.array([[0.1, 0.2], [0.3, np.nan]]), "craft": np.full((2, 2), 0.3)}
    axes = Figure().subplots()
    distribution_panel(scores, "hps_v2.1", axes)
    first, second = axes.patches
    assert first.get_xy()[:, 1].max() == pytest.approx(100 / 3) and second.get_xy()[:, 1].max() == pytest.approx(100)
    assert first.get_xy()[:, 0].max() == pytest.approx(30), "not in the printed scale"
