# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""GenEval's detector and colour classifier, T2I-CompBench's BLIP-VQA and 3-in-1, on random weights against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_checkpoints import randomize, write_bert_tokenizer, write_clip
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_mask2former import Mask2FormerImageProcessor

from diffusers_craft import load_reward
from diffusers_craft.prompts.sets import EvaluationPrompt
from diffusers_craft.rewards.base import feature_tensor
from diffusers_craft.rewards.benchmarks.compbench import attribute_score, evaluators
from diffusers_craft.rewards.benchmarks.geneval import CLASSES, COLORS, Detection, crop_object, find_instances
from diffusers_craft.scripts import PromptSet


def prompt_set(*rows):
    return PromptSet("set", tuple(EvaluationPrompt(*row) for row in rows))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), "small", "L")


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        num_labels=len(CLASSES),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=10,
    )
    folder = tmp_path_factory.mktemp("detector")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


@pytest.fixture
def geneval(detector_folder, clip_folder):
    reward = load_reward("geneval", f"{detector_folder},{clip_folder}", device="cpu")
    reward.short_side = 64
    return reward


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    write_bert_tokenizer(folder)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words[2748], words[2053] = "yes", "no"  # their numbers in bert-base-uncased
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 30524, "encoder_hidden_size": 32, "projection_dim": 16}
    vision = {**small, "image_size": 32, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    randomize(BlipForQuestionAnswering(config), seed=3).save_pretrained(folder)
    return folder


def parse(prompt: str) -> tuple[list[str], str]:
    """The words that follow `a`, and the prompt without `red`."""
    return [f"a {part.strip()}" for part in prompt.split("a ")[1:]], prompt.replace("red ", "")


@pytest.fixture
def compbench(blip_folder, clip_folder):
    reward = load_reward("t2i_compbench", f"{blip_folder},{clip_folder}", device="cpu")
    reward.image_size, reward.parse = 32, parse
    return reward


def test_instances_of_a_case_made_by_hand():
    """Two queries: a sure dog in the left half of the picture, and no object. The right quarter of the input is padding."""
    classes = torch.full((2, 81), -20.0)
    classes[0, CLASSES.index("dog")], classes[1, 80] = 20.0, 20.0
    masks = torch.full((2, 8, 8), -10.0)
    masks[0, :, :3] = 10.0  # three of the six columns that are not padding
    (found,) = find_instances(classes, masks, inside=(32, 24), size=(64, 48))
    assert found.label == "dog" and found.box == (0, 0, 24, 64)
    assert found.mask.shape == (64, 48) and found.mask[:, :24].all() and not found.mask[:, 24:].any()
    assert found.score == pytest.approx(torch.sigmoid(torch.tensor(10.0)).item(), abs=0.05)


def test_instances_are_those_of_transformers():
    """Its post-processing works at 384 pixels; a picture of that size without padding makes both the same."""
    torch.manual_seed(0)
    classes, masks = 6 * torch.randn(1, 20, 81), 3 * torch.randn(1, 20, 96, 96)
    output = type("Output", (), {"class_queries_logits": classes, "masks_queries_logits": masks})
    (theirs,) = Mask2FormerImageProcessor().post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[(384, 384)], return_binary_maps=True
    )
    ours = [one for one in find_instances(classes[0], masks[0], (384, 384), (384, 384)) if one.score >= 0.3]
    expected = {
        (CLASSES[s["label_id"]], s["score"]): m for s, m in zip(theirs["segments_info"], theirs["segmentation"])
    }
    assert len(ours) == len(expected) > 3
    for one in ours:
        (mask,) = [m for (label, score), m in expected.items() if label == one.label and abs(score - one.score) < 2e-6]
        np.testing.assert_array_equal(one.mask, mask.numpy().astype(bool))


def test_an_object_is_cropped_on_gray():
    mask = np.zeros((20, 30), bool)
    mask[5:10, 10:20] = True
    crop = crop_object(Image.new("RGB", (30, 20), "red"), Detection("dog", 1, (8, 5, 20, 12), mask))
    pixels = np.asarray(crop)
    assert crop.size == (12, 7) and (pixels[:5, 2:] == (255, 0, 0)).all()
    assert (pixels[5:] == 0x99).all() and (pixels[:, :2] == 0x99).all()


def test_colors_are_clips_zero_shot_classes(geneval, clip_folder, make_images):
    images = make_images(6, size=40)
    whole = [Detection("dog", 1, (0, 0, 40, 40), np.ones((40, 40), bool))]
    found = [geneval.find_colors(image, whole)[0] for image in images]
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    texts = [
        t
        for c in COLORS
        for t in (f"a photo of a {c} dog", f"a photo of a {c}-colored dog", f"a photo of a {c} object")
    ]
    with torch.no_grad():
        words = processor(text=texts, return_tensors="pt", padding=True)
        text = torch.nn.functional.normalize(feature_tensor(model.get_text_features(**words)), dim=-1)
        classes = torch.nn.functional.normalize(text.view(10, 3, -1).mean(1), dim=-1)
        pixels = processor(images=images, return_tensors="pt")
        pictures = torch.nn.functional.normalize(feature_tensor(model.get_image_features(**pixels)), dim=-1)
    assert found == [COLORS[i] for i in (pictures @ classes.T).argmax(-1).tolist()]


def test_scores_come_from_the_detections(geneval, monkeypatch, make_images):
    dogs = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}
    red = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert geneval.bind(prompt_set(("two dogs", "counting", {"metadata": dogs}), ("red dog", "colors", red)))
    one, two, three = make_images(3)
    sure, unsure = Detection("dog", 0.95, (0, 0, 9, 9)), Detection("dog", 0.5, (0, 0, 9, 9))
    found = {id(one): [sure, unsure], id(two): [sure, sure], id(three): [sure] * 3}
    monkeypatch.setattr(geneval, "detect", lambda image: found[id(image)])
    colors = iter([["red"], ["blue"]])
    monkeypatch.setattr(geneval, "find_colors", lambda image, objects: next(colors))
    scores = geneval.score(["two dogs"] * 3 + ["red dog"] * 2, [one, two, three, one, one])
    assert scores.tolist() == [0, 1, 0, 1, 0]
    assert geneval.explain("two dogs", one) == ["expected 2 dog, found 1"]


def test_the_detector_runs_on_pictures_of_any_shape(geneval, make_images):
    geneval.bind(prompt_set(("x", None, {"include": [{"class": "dog", "count": 1}]})))
    wide = make_images(1)[0].resize((90, 41))
    for one in geneval.detect(wide):
        assert one.mask.shape == (41, 90) and one.box[2] <= 90 and one.box[3] <= 41
    assert geneval.score(["x"], [wide]).tolist() in ([0.0], [1.0])
    assert geneval.source["calibrated"] == "no" and "not comparable" in geneval.note
    geneval.release()


def test_geneval_takes_its_own_prompts_only(geneval, make_images):
    assert not geneval.bind(prompt_set(("a cat", None, {})))
    with pytest.raises(ValueError, match="--rewards geneval: expected a prompt of GenEval's own file, found 'a cat'"):
        geneval.score(["a cat"], make_images(1))
    with pytest.raises(ValueError, match="--rewards geneval: expected classes of COCO, found 'unicorn'"):
        geneval.bind(prompt_set(("x", None, {"include": [{"class": "unicorn", "count": 1}]})))


def test_a_detector_of_other_classes_is_refused(detector_folder, clip_folder, tmp_path, make_images):
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detector_folder)
    model.config.num_labels = 3
    Mask2FormerForUniversalSegmentation(model.config).save_pretrained(tmp_path)
    reward = load_reward("geneval", f"{tmp_path},{clip_folder}", device="cpu")
    with pytest.raises(
        ValueError, match="--reward_checkpoint geneval: expected a detector of COCO's 80 classes, found 3"
    ):
        reward.detect(make_images(1)[0])


def test_yes_and_no_are_the_first_words_of_blips_answer(compbench, blip_folder, make_images):
    image = make_images(1, size=32)[0]
    with torch.inference_mode():
        answers = compbench.yes_and_no(image, ["a red circle?", "a robot riding a robot riding a robot?"])
    model, tokenizer = BlipForQuestionAnswering.from_pretrained(blip_folder).eval(), compbench.model.tokenizer
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    for index, question in enumerate(["a red circle?", "a robot riding a robot riding a robot?"]):
        encoded = tokenizer(question, return_tensors="pt")
        encoded.input_ids[:, 0] = 30523
        with torch.no_grad():
            answer = model.generate(
                encoded.input_ids,
                (pixels - mean) / std,
                encoded.attention_mask,
                max_new_tokens=1,
                output_scores=True,
                return_dict_in_generate=True,
            )
        expected = answer.scores[0][0].softmax(-1)
        assert answers[index] == pytest.approx([expected[2748].item(), expected[2053].item()], rel=1e-3)


def test_each_category_by_its_evaluator(compbench, clip_folder, make_images):
    rows = [
        ("a red circle and a robot", "color", {}),
        ("a robot riding", "non_spatial", {}),
        ("a circle left of a robot", "spatial", {}),
        ("a red robot riding", "complex", {"three_in_one": "action"}),
        ("a red robot above", "complex", {"three_in_one": "spatial"}),
        ("a red robot riding above", "complex", {"three_in_one": "spatialaction"}),
    ]
    assert compbench.bind(prompt_set(*rows))
    image = make_images(1)[0]
    scores = compbench.score([row[0] for row in rows], [image] * 6)
    cosine = load_reward("clip_score", str(clip_folder), device="cpu")

    def blip(*chunks):
        with torch.inference_mode():
            return attribute_score(compbench.yes_and_no(image, [f"{chunk}?" for chunk in chunks]))

    assert scores[0] == pytest.approx(blip("a red circle and", "a robot"), rel=1e-5)
    assert scores[1] == pytest.approx(cosine.score(["a robot riding"], [image])[0] / 100, abs=1e-6)
    action = cosine.score(["a robot riding"], [image])[0] / 100  # without the adjective
    assert scores[3] == pytest.approx((blip("a red robot riding") + action) / 2, abs=1e-6)
    assert np.isnan(scores[[2, 4, 5]]).all(), "a row that needs UniDet has a score"
    assert compbench.abstains and "UniDet left out" in compbench.note


def test_three_in_one_as_the_official_script_merges():
    """Its rule restated: (spatial + attribute) / 2, (action + attribute) / 2, or the mean of the three."""
    assert evaluators("complex", "spatial") == ("blip", "unidet")
    assert evaluators("complex", "action") == ("blip", "clip")
    assert evaluators("complex") == evaluators("complex", "spatialaction") == ("blip", "unidet", "clip")
    assert evaluators("texture") == ("blip",) and evaluators("non_spatial") == ("clip",)
    assert evaluators("spatial") == ("unidet",)
    with pytest.raises(ValueError, match="three_in_one: expected one of spatial, action, spatialaction, found 'x'"):
        evaluators("complex", "x")


def test_attribute_score_is_the_product_over_noun_phrases():
    assert attribute_score([(0.6, 0.2), (0.1, 0.3)]) == pytest.approx(0.75 * 0.25)
    assert attribute_score([]) == 1


def test_compbench_takes_its_own_prompts_only(compbench, make_images):
    assert not compbench.bind(prompt_set(("a cat", "anime", {})))
    with pytest.raises(ValueError, match="--rewards t2i_compbench: expected a prompt of its own file, found 'a cat'"):
        compbench.score(["a cat"], make_images(1))


def test_spacy_is_asked_for_in_one_line(blip_folder, clip_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ValueError, match="reward t2i_compbench: needs the package spacy .* download en_core_web_sm$"):
        load_reward("t2i_compbench", f"{blip_folder},{clip_folder}").bind(prompt_set(("a red circle", "color", {})))


@pytest.mark.parametrize("name", ["geneval", "t2i_compbench"])
def test_missing_weights_name_the_metric(name):
    with pytest.raises(ValueError, match=f"reward {name}: needs .*--reward_checkpoint {name}=PATH"):
        load_reward(name)
