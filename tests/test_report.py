# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The build report: all files, nothing fetched from elsewhere, text escaped, numbers of the right sets, same bytes."""

import html.parser
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from diffusers_craft.build import report
from diffusers_craft.build.report import reward_sets, write_build_report
from diffusers_craft.figures import page
from diffusers_craft.figures.grid import _fit, _wrap
from diffusers_craft.scripts import image_grid
from diffusers_craft.selection.pool import ScoredPool


FILES = ("funnel.png", "gallery.png", "report.html", "rewards.png")


@pytest.fixture
def build():
    """Three groups of one original and three refined candidates; two images selected, one invalid."""
    rng = np.random.default_rng(0)
    variants = np.tile(np.arange(4), 3)
    rewards = {"hps_v2.1": rng.normal(0.25, 0.02, 12).astype(np.float32), "aesthetic": rng.normal(5, 1, 12)}
    rewards["hps_v2.1"][9] = rewards["aesthetic"][9] = np.nan
    funnel = {"prompts": 3, "groups": 3, "candidates": 12, "valid": 11, "kept_groups": 2, "kept_candidates": 6}
    funnel |= {"selected": 2, "selected_prompts": 2, "share_negative_advantages": 0.5}
    pool = ScoredPool(
        groups=np.repeat(np.arange(3), 4),
        variants=variants,
        rewards=rewards,
        composite=np.where(np.arange(12) == 9, np.nan, np.linspace(-1, 1, 12)),
        advantages=np.where(variants == 0, 0, 0.5),
        kept=np.arange(12) < 8,
        selected=np.array([2, 7]),
        rule="ha",
        weights={"hps_v2.1": 0.5, "aesthetic": 0.5},
        constants={},
    )
    options = {"pretrained_model_name_or_path": "sd15 (weights 0123)", "dtype": "float16", "prompts": "my.txt"}
    options |= {"refiner": "openai", "refiner_model": "qwen-plus", "num_refinements": 3, "num_seeds": 1, "seed": 7}
    options |= {"resolution": 512, "num_inference_steps": 30, "guidance_scale": 7.5, "reward_normalization": "zscore"}
    options |= {"filter_rule": "ha", "selection": "top", "num_samples": 2, "max_per_prompt": 1}
    stage = {"prompts": "3 prompts, hash 89ab"}
    funnel |= {"selected_not_beating_own_baseline": 1, "trainable": 8, "refined": 7, "refinements": 9}
    return {
        "record": {"options": options, "stage_options": stage, "funnel": funnel, "versions": {"torch": "2.6"}},
        "pool": pool,
        "all_prompts": ["a <b>red</b> circle & more", "two stars", 'a "blue" square'],
        "rows": {
            "image": [Image.new("RGB", (64, 64), color) for color in ("red", "blue")],
            "prompt": ["a <b>red</b> circle & more", 'a "blue" square'],
            "refined_prompt": ["a red circle, sharp focus", 'a "blue" square'],
        },
    }


class _Page(html.parser.HTMLParser):
    VOID = {"meta", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(data.strip())


def test_report_is_whole_and_self_contained(tmp_path, build):
    write_build_report(tmp_path / "report", **build)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == list(FILES)
    for name in ("funnel.png", "gallery.png", "rewards.png"):
        with Image.open(tmp_path / "report" / name) as image:
            image.load()
            assert image.width >= 400
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert len(page.sources) == 2 + 4 + 2  # funnel charts, reward charts, selected images
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert 'name="viewport"' in text


def test_report_escapes_prompts_and_shows_a_refinement_once(tmp_path, build):
    write_build_report(tmp_path, **build)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert "<b>" not in text and "a <b>red</b> circle & more" in page.words
    assert "a red circle, sharp focus" in page.words
    assert page.words.count('a "blue" square') == 1  # not repeated as its own refinement


def test_report_shows_the_funnel_and_the_means_of_each_set(tmp_path, build):
    write_build_report(tmp_path, **build)
    words = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).words
    for label, value in (("candidate images", "12"), ("groups kept by the filter", "2")):
        assert words[words.index(label) + 1] == value
    assert words[words.index("share of negative advantages") + 1] == "50.0%"
    pool = build["pool"]
    hps = pool.rewards["hps_v2.1"]
    expected = [hps[pool.variants == 0], hps[(pool.variants > 0) & np.isfinite(hps)], hps[pool.selected]]
    start = words.index("hps_v2.1 x100") + 1  # in the table of means and on each picture's card
    assert words[start : start + 3] == [f"{100 * values.mean():.4g}" for values in expected]
    cards = [words[i + 1] for i, word in enumerate(words) if word == "hps_v2.1 x100"][1:]
    assert cards == [f"{100 * value:.3f}" for value in hps[pool.selected]]
    start = words.index("advantage") + 1
    assert words[start : start + 3] == ["–", "0.5", "0.5"]


def test_report_says_what_the_build_is_of(tmp_path, build):
    write_build_report(tmp_path, **build)
    words = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert words.count("CRAFT dataset: sd15") == 2  # the page's title and its heading
    for name, value in {
        "base model": "sd15 (weights 0123), float16",
        "prompts": "my.txt; 3 prompts, hash 89ab",
        "refiner": "openai (qwen-plus): 3 refinements of each prompt asked for, 1 image(s) of each; refined 7 of 9 candidates",
        "filter rule": "ha",
        "composite reward": "hps_v2.1 0.5, aesthetic 0.5; normalisation zscore",
        "seed": "7",
        "candidate images of refined prompts": "7 of 9",
    }.items():
        assert words[words.index(name) + 1] == value
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", words[words.index("date") + 1])


def test_shares_of_the_funnel_are_of_what_could_be_kept(build):
    """Images of original prompts are no loss of the filter."""
    images, prompts = report.funnel_panels(build["record"]["funnel"])
    for panel, expected in (
        (images, ["11", "8", "6 (75.0%)", "2 (25.0%)"]),
        (prompts, ["3", "2 (66.7%)", "2 (66.7%)"]),
    ):
        axes = Figure().subplots()
        panel(axes)
        texts = [text.get_text().strip() for text in axes.texts]
        assert [text.partition(" (")[0] if i < len(texts) - 2 else text for i, text in enumerate(texts)][
            1:
        ] == expected


def test_numbers_that_cancel_out_have_a_mean_of_zero(tmp_path, build):
    rng = np.random.default_rng(1)
    values = rng.normal(size=9)
    advantages = np.zeros(12)
    advantages[build["pool"].variants > 0] = values - values.mean()
    write_build_report(tmp_path, **build | {"pool": replace(build["pool"], advantages=advantages)})
    words = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).words
    start = words.index("advantage") + 1
    assert words[start : start + 2] == ["–", "0"] and float(words[start + 2]) != 0


def test_kinds_of_prompts_in_the_pool_and_among_the_selected(tmp_path, build):
    captions = ["a red circle", "two stars", "a blue square"]
    assert report.kind_rows(captions, build["pool"]) == [("colors", "66.7%", "50.0%"), ("counting", "33.3%", "50.0%")]
    assert report.kind_rows([*captions[:2], "a photo of my cat"], build["pool"]) == []
    kinds = ["plants", None, "plants"]
    assert report.kind_rows(build["all_prompts"], build["pool"], kinds) == [
        ("plants", "66.7%", "50.0%"),
        ("–", "33.3%", "50.0%"),
    ]
    many = [str(number) for number in range(report.MAX_KINDS + 1)]
    assert report.kind_rows(many, build["pool"], many) == []
    for prompts, categories, shown in (
        (captions, [None] * 3, True),
        (build["all_prompts"], None, False),
        (build["all_prompts"], kinds, True),
    ):
        write_build_report(tmp_path, **build | {"all_prompts": prompts, "categories": categories})
        words = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).words
        assert ("Kinds of prompts" in words) == shown


def test_same_input_gives_the_same_bytes(tmp_path, build):
    for folder in ("a", "b"):
        write_build_report(tmp_path / folder, **build)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)


def test_report_of_nothing_selected_and_of_an_all_invalid_reward(tmp_path, build):
    rewards = build["pool"].rewards | {"aesthetic": np.full(12, np.nan)}
    pool = replace(build["pool"], selected=np.array([], dtype=int), rewards=rewards)
    build |= {"pool": pool, "rows": {"image": [], "prompt": [], "refined_prompt": []}}
    write_build_report(tmp_path, **build)
    assert "0 of 12 images selected." in _Page((tmp_path / "report.html").read_text(encoding="utf-8")).words


def test_gallery_is_limited_and_reads_no_more(tmp_path, build, monkeypatch):
    monkeypatch.setattr(report, "MAX_GALLERY", 1)

    class Lazy(list):
        def __getitem__(self, index):
            assert index == 0
            return super().__getitem__(index)

    write_build_report(tmp_path, **build | {"rows": {name: Lazy(column) for name, column in build["rows"].items()}})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == 1 and "1 of 2 shown" in text


def test_large_images_are_embedded_small(tmp_path, build):
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    write_build_report(tmp_path, **build | {"rows": build["rows"] | {"image": [Image.fromarray(noise)] * 2}})
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_a_click_enlarges_a_picture_without_a_script(tmp_path, build):
    write_build_report(tmp_path, **build)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('<label class="view"><input type="checkbox" aria-label="larger view" /><img') == 2
    assert "input:checked + img { position: fixed" in text and "<script" not in text


@pytest.mark.parametrize("prompt", ["a red circle " * 150, "1girl,solo,long_hair," * 100], ids=["words", "tags"])
def test_long_prompts_unfold_and_break_anywhere(tmp_path, build, prompt):
    build["rows"] |= {"prompt": [prompt, "short"], "refined_prompt": [prompt + ", sharp", "short"]}
    write_build_report(tmp_path, **build)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<details>") == 2 and 'alt="short"' in text
    shown, rest = re.search(r"<summary><span>(.*?)<span.*?</summary>(.*?)</details>", text).groups()
    assert shown + rest == prompt and len(shown) <= page.LONG_TEXT
    assert max(len(alt) for alt in re.findall('alt="(.*?)"', text)) <= page.LONG_TEXT + 1
    assert "summary, details { overflow-wrap: anywhere; }" in text


def test_reward_sets_split_by_variant_and_selection():
    sets = reward_sets(np.arange(6.0), np.array([0, 1, 2, 0, 1, 2]), np.array([5]))
    assert {name: values.tolist() for name, values in sets.items()} == {
        "original prompts": [0, 3],
        "refined prompts": [1, 2, 4, 5],
        "selected": [5],
    }


def test_image_grid_places_images_in_row_order():
    colors = ["red", "lime", "blue", None, "yellow"]
    images = [color and Image.new("RGB", (8, 8), color) for color in colors]
    grid = image_grid(images, columns=2, cell_size=32)
    assert grid.size == (2 * 40 + 8, 3 * 40 + 8)
    centers = [grid.getpixel((8 + i % 2 * 40 + 16, 8 + i // 2 * 40 + 28)) for i in (0, 1, 2, 4)]
    assert centers == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    assert grid.getpixel((48 + 16, 48 + 30)) == (255, 255, 255)  # the missing image


def test_image_grid_makes_room_for_titles_and_captions():
    images = [Image.new("RGB", (32, 32), "red")] * 4
    grid = image_grid(
        images, 2, captions=["x"] * 4, column_titles=["a", "b"], row_titles=["p", "q"], cell_size=32, caption_lines=2
    )
    plain = image_grid(images, 2, cell_size=32)
    assert grid.width == plain.width + 40 and grid.height == plain.height + 26 + 2 * 38
    top_left = np.asarray(grid)[:26, :40]
    assert (top_left == 255).all(), "nothing stands above the row titles"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 64), (192, 192)), ((128, 64), (192, 96)), ((1024, 512), (192, 96)), ((1000, 1), (192, 1))],
)
def test_fit_keeps_the_aspect(shape, expected):
    assert _fit(Image.new("RGB", shape), 192).size == expected


def test_wrap_breaks_at_words_and_ends_in_an_ellipsis():
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
    lines = _wrap("a very long prompt " * 10, font, 120, 3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 120 for line in lines)
    assert _wrap("one\ntwo", font, 120, 3) == ["one", "two"]
