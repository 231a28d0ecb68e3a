# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""ImageReward against the model of the official package."""

import gc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from official_packages import import_image_reward
from parity_checkpoints import IMAGE_SIZE, write_image_reward
from parity_inputs import assert_equal_scores, needs_16_bit_resize, pairs, picture, plain_rgb
from PIL import Image

from diffusers_craft import load_reward


def tokenizer_of(folder: Path):
    """The official `init_tokenizer` on a local vocabulary."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def build(official_packages: Path, size: str):
    """`build(folder)`: the official model of a folder with `med_config.json` and a vocabulary, in fresh weights."""
    module = import_image_reward(official_packages)
    blip = __import__("ImageReward.models.BLIP.blip_pretrain", fromlist=["blip_pretrain"])
    vit = __import__("ImageReward.models.BLIP.vit", fromlist=["vit"]).VisionTransformer
    pixels = IMAGE_SIZE[size]

    def small_vit(*_):
        return vit(img_size=pixels, patch_size=8, embed_dim=128, depth=2, num_heads=2), 128

    def build(folder: Path) -> torch.nn.Module:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blip, "init_tokenizer", partial(tokenizer_of, folder))
            if size == "small":
                patch.setattr(blip, "create_vit", small_vit)
            model = module.ImageReward(med_config=str(folder / "med_config.json"))
        model.preprocess = module._transform(pixels)
        model.mlp = module.MLP(model.blip.text_encoder.config.hidden_size)
        return model.eval()

    return build


@pytest.fixture(scope="module")
def folder(build, size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_reward(tmp_path_factory.mktemp("image_reward"), size, build)


@pytest.fixture(scope="module")
def official(build, folder: Path):
    """The official model with the weights of the folder, loaded as `ImageReward.load` does."""
    model = build(folder)
    model.load_state_dict(torch.load(folder / "ImageReward.pt", weights_only=True), strict=False)
    yield model
    gc.collect()


@pytest.fixture(scope="module")
def expected(official, size: str) -> list[float]:
    """`score` pair by pair; images whose mode it treats otherwise are given as RGB: see the named tests below."""
    with torch.no_grad():
        return [official.score(prompt, plain_rgb(image)) for _, prompt, image in pairs(IMAGE_SIZE[size])]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_image_reward_is_the_package(batch_size: int, folder: Path, expected: list[float], size: str):
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    scores = load_reward("image_reward", str(folder), batch_size=batch_size).score(prompts, images)
    assert_equal_scores(scores, expected, labels)


def test_tokens_are_those_of_the_package(folder: Path, official, size: str):
    """Prompts are cut to 35 tokens, and the first token stays [CLS]."""
    from diffusers_craft.rewards.image_reward import TOKENS

    _, prompts, _ = zip(*pairs(IMAGE_SIZE[size]))
    options = {"padding": "max_length", "truncation": True, "max_length": 35}
    ours = load_reward("image_reward", str(folder)).model.tokenizer(list(prompts), **options)["input_ids"]
    assert ours == [official.blip.tokenizer(prompt, **options)["input_ids"] for prompt in prompts]
    assert TOKENS == 35 and {row[0] for row in ours} == {101}
    assert 30523 in ours[6], "[ENC] in a prompt is BLIP's token, as in the package"


@torch.no_grad()
def test_palettes_are_resized_as_colours_here(folder: Path, official, size: str):
    """The package resizes before it converts to RGB; of a palette that takes the nearest pixel instead of bicubic ones."""
    image = picture(3, (80, 60), "P")
    here = load_reward("image_reward", str(folder)).score(["a"], [image])[0]
    there = [official.score("a", x) for x in (image, plain_rgb(image))]
    assert abs(there[1] - here) < 1e-5 < 1e-3 < abs(there[0] - here)


@torch.no_grad()
def test_transparency_is_dropped_before_resizing_here(folder: Path, official, size: str):
    """The package resizes RGBA, which weighs colours by their opacity, and then drops the opacity."""
    image = picture(3, (80, 60), "RGBA")
    here = load_reward("image_reward", str(folder)).score(["a"], [image])[0]
    there = [official.score("a", x) for x in (image, image.convert("RGB"))]
    assert abs(there[1] - here) < 1e-5 < 1e-3 < abs(there[0] - here)


@needs_16_bit_resize
@torch.no_grad()
def test_sixteen_bits_are_clipped_there_and_scaled_here(folder: Path, official, size: str):
    image = picture(4, (40, 40), "I;16")
    here = load_reward("image_reward", str(folder)).score(["a"], [image])[0]
    there = [official.score("a", x) for x in (image, plain_rgb(image))]
    assert abs(there[1] - here) < 1e-5 < 1e-3 < abs(there[0] - here)


def test_grayscale_needs_no_conversion(folder: Path, official, expected: list[float], size: str):
    label, prompt, image = next(pair for pair in pairs(IMAGE_SIZE[size]) if pair[2].mode == "L")
    with torch.no_grad():
        np.testing.assert_allclose(
            official.score(prompt, image), official.score(prompt, image.convert("RGB")), atol=1e-6
        )


def test_package_backend_gives_the_same(folder: Path, build, size: str, monkeypatch: pytest.MonkeyPatch):
    if size == "official":
        pytest.skip("the code is that of the small size")
    from types import SimpleNamespace

    from diffusers_craft.rewards import packages

    def load(name: str, device: torch.device, med_config: str):
        model = build(Path(med_config).parent)
        model.load_state_dict(torch.load(name, weights_only=True), strict=False)
        return model

    # `ImageReward.utils` also imports OpenAI's clip; its `load` is these lines.
    monkeypatch.setattr(packages, "import_package", lambda *_: SimpleNamespace(load=load))
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    package = packages.PackageImageReward(str(folder))
    built_in = load_reward("image_reward", str(folder))
    assert_equal_scores(package.score(prompts, images), built_in.score(prompts, images).tolist(), labels)
    assert package.source["backend"].startswith("image-reward")


def test_image_of_one_pixel(folder: Path):
    assert np.isfinite(load_reward("image_reward", str(folder)).score(["a"], [Image.new("RGB", (1, 1))])).all()
