# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The tiny world: its grammar reads itself, its pictures show their captions, its judge is exact."""

import numpy as np
import pytest
from PIL import Image
from rebuild_tiny.data import enrich
from rebuild_tiny.lexicon import MAX_TOKENS, build_tokenizer, lexicon
from rebuild_tiny.pictures import (
    degrade,
    is_held_out,
    mistake,
    render,
    sample_caption,
    sample_captions,
    sample_scene,
    write_caption,
)

from diffusers_craft import exact_score
from diffusers_craft.prompts.refiners import MODIFIERS
from diffusers_craft.scripts import parse_caption
from diffusers_craft.tiny import prompt_file
from diffusers_craft.tiny.scorer import read_scene, scene_shows
from diffusers_craft.tiny.world import COLORS, RELATIONS, TASKS, Caption, Group, Object, Scene


@pytest.mark.parametrize("task", TASKS)
def test_the_parser_reads_every_caption_of_a_task_also_in_a_refined_prompt(task):
    rng = np.random.default_rng(1)
    for _ in range(300):
        caption = sample_caption(rng, task)
        assert caption.task == task
        assert parse_caption(write_caption(caption)) == caption
        assert parse_caption(f"A professional picture of {enrich(write_caption(caption), rng)}") == caption


def test_what_captions_mean():
    assert parse_caption("three green crosses") == Caption("counting", (Group(3, "cross", "green"),))
    binding = parse_caption("a blue square above a yellow cross on a black background")
    assert binding == Caption("position", (Group(1, "square", "blue"), Group(1, "cross", "yellow")), "above", "black")
    with pytest.raises(ValueError, match="caption: expected a sentence of the tiny world .*, found 'a cat'"):
        parse_caption("a cat")


@pytest.mark.parametrize("task", TASKS)
def test_the_scorer_is_right_on_clean_renders_and_on_clean_mistakes(task):
    rng = np.random.default_rng(2)
    captions = [sample_caption(rng, task) for _ in range(200)]
    right, wrong = [], []
    for caption in captions:
        scene = sample_scene(caption, rng)
        right.append(exact_score([write_caption(caption)], [render(scene)])[0])
        other = mistake(scene, rng)
        # The judgement by the drawn objects themselves is the oracle: some mistakes still show the caption.
        wrong.append(exact_score([write_caption(caption)], [render(other)])[0] == scene_shows(other, caption))
    assert np.mean(right) >= 0.97
    assert np.mean(wrong) >= 0.97


def test_the_scorer_tells_what_it_sees():
    scene = Scene("black", [Object("star", "cyan", 16, 20, 9), Object("square", "red", 45, 40, 10)])
    read = read_scene(render(scene))
    assert read.background == "black"
    assert [(o.shape, o.color) for o in read.objects] == [("star", "cyan"), ("square", "red")]
    np.testing.assert_allclose([(o.x, o.y) for o in read.objects], [(16, 20), (45, 40)], atol=2)


def test_position_follows_genevals_rule_of_a_normalised_offset_above_one_half():
    square = Object("square", "red", 32, 32, 8)
    # cos 60 degrees is the limit: an offset of (-10, y) is "left of" while 10 / sqrt(100 + y^2) > 0.5, i.e. y < 17.32.
    for dy, expected in ((0, True), (17, True), (18, False)):
        scene = Scene("gray", [Object("star", "blue", 22, 32 + dy, 8), square])
        assert scene_shows(scene, parse_caption("a star left of a square")) is expected
    mirrored = {"left of": (-20, 0), "right of": (20, 0), "above": (0, -20), "below": (0, 20)}
    for shown, (dx, dy) in mirrored.items():
        scene = Scene("gray", [Object("star", "blue", 32 + dx, 32 + dy, 8), square])
        named = [
            relation for relation in RELATIONS if scene_shows(scene, parse_caption(f"a star {relation} a square"))
        ]
        assert named == [shown]


def test_additional_objects_and_specks_of_no_shape_break_a_caption():
    scene = Scene("white", [Object("circle", "blue", 20, 20, 9)])
    extra = Scene("white", [*scene.objects, Object("circle", "red", 45, 45, 9)])
    assert exact_score(["a blue circle"] * 2, [render(scene), render(extra)]).tolist() == [1.0, 0.0]
    blot = render(scene)
    blot.paste((220, 40, 40), (40, 40, 50, 42))  # 20 pixels: a speck
    assert exact_score(["a blue circle"], [blot])[0] == 1.0
    blot.paste((90, 10, 10), (40, 40, 62, 44))  # 88 pixels of no colour and no shape of this world
    assert exact_score(["a blue circle"], [blot])[0] == 0.0
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert exact_score(["a blue circle"], [noise])[0] == 0.0


def test_flawed_pictures_keep_their_scene_but_lose_colour_and_contrast():
    rng = np.random.default_rng(3)
    scenes = [sample_scene(parse_caption("a red circle on a white background"), rng) for _ in range(20)]
    clean = [render(scene) for scene in scenes]
    flawed = [degrade(image, rng) for image in clean]
    contrast = [np.mean([np.asarray(image, dtype=float).std() for image in images]) for images in (clean, flawed)]
    assert contrast[1] < 0.75 * contrast[0]
    for scene, image in zip(scenes, flawed):
        pixels = np.asarray(image.convert("RGB"), dtype=float)
        x, y = int(scene.objects[0].x), int(scene.objects[0].y)
        assert np.linalg.norm(pixels[y, x] - COLORS["red"]) > 20  # the ink is muddy
        elsewhere = np.median(pixels.reshape(-1, 3), axis=0)
        assert pixels[y, x, 0] - pixels[y, x, 1] > 1.5 * (elsewhere[0] - elsewhere[1])  # but still red


@pytest.mark.parametrize(("name", "held_out"), [("tiny-train", False), ("tiny-heldout", True)])
def test_prompt_files_keep_to_their_side_of_the_split(name, held_out):
    captions = prompt_file(name).read_text().splitlines()
    assert len(captions) == len(set(captions)) >= 600
    assert {is_held_out(parse_caption(caption)) for caption in captions} == {held_out}
    assert {parse_caption(caption).task for caption in captions} == set(TASKS)
    assert captions[:500] == sample_captions(500, seed=0, held_out=held_out)  # the more, the longer it looks for one


def test_every_word_is_one_token_and_every_refined_caption_fits(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    assert all(len(tokenizer(word)["input_ids"]) == 3 for word in lexicon())
    rng = np.random.default_rng(4)
    longest = "a purple triangle right of a yellow triangle on a white background"
    for _ in range(50):
        assert len(tokenizer(enrich(longest, rng))["input_ids"]) <= MAX_TOKENS
    assert set(" ".join([*COLORS, *MODIFIERS]).split()) <= set(lexicon())


def test_open_clip_reads_the_same_vocabulary(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    tokenizer = build_tokenizer(tmp_path)
    other = open_clip.SimpleTokenizer(
        bpe_path=str(tmp_path / "bpe_simple_vocab_16e6.txt.gz"), context_length=MAX_TOKENS
    )
    for text in ("three green crosses, sharp focus", "zebra & 7 cafés"):
        ids = tokenizer(text)["input_ids"]
        assert other([text])[0, : len(ids)].tolist() == ids
