# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""HPS v2.1 against `hpsv2.score` of the official package."""

import gc
from pathlib import Path

import pytest
from official_packages import import_hpsv2
from parity_checkpoints import IMAGE_SIZE, hps_config, write_hps
from parity_inputs import assert_equal_scores, pairs, picture, plain_rgb
from PIL import Image

from diffusers_craft import load_reward


@pytest.fixture(scope="module")
def folder(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hps(tmp_path_factory.mktemp("hps"), size)


@pytest.fixture(scope="module")
def hpsv2(official_packages: Path, size: str):
    """`hpsv2.img_score`, which builds its model without downloading CLIP-H first."""
    module = import_hpsv2(official_packages)
    factory = __import__("hpsv2.src.open_clip.factory", fromlist=["factory"])
    with pytest.MonkeyPatch.context() as patch:
        original = module.create_model_and_transforms
        patch.setattr(module, "create_model_and_transforms", lambda name, _, **kw: original(name, None, **kw))
        patch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", hps_config(size))
        module.model_dict.clear()
        yield module
        module.model_dict.clear()
        gc.collect()


@pytest.fixture(scope="module")
def expected(hpsv2, folder: Path, size: str) -> list[float]:
    """`score` image by image. RGBA and 16-bit images are given as RGB: see `test_deviations.py`."""
    cases = pairs(IMAGE_SIZE[size])
    images = [plain_rgb(image) if image.mode in ("RGBA", "I;16") else image for _, _, image in cases]
    checkpoint = str(folder / "HPS_v2.1_compressed.pt")
    scores = [
        float(hpsv2.score(image, prompt, cp=checkpoint, hps_version="v2.1")[0])
        for image, (_, prompt, _) in zip(images, cases)
    ]
    hpsv2.model_dict.clear()
    gc.collect()
    return scores


@pytest.mark.parametrize("batch_size", [1, 7])
def test_hps_is_the_package(batch_size: int, folder: Path, expected: list[float], size: str):
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    scores = load_reward("hps_v2.1", str(folder), batch_size=batch_size).score(prompts, images)
    assert_equal_scores(scores, expected, labels)


def test_package_backend_gives_the_same(folder: Path, hpsv2, size: str):
    if size == "official":
        pytest.skip("the code is that of the small size")
    from diffusers_craft.rewards.packages import PackageHPSReward

    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    package = PackageHPSReward(str(folder))
    built_in = load_reward("hps_v2.1", str(folder))
    assert_equal_scores(package.score(prompts, images), built_in.score(prompts, images).tolist(), labels)
    assert package.source["backend"].startswith("hpsv2") and package.source["dtype"] == "package"
    assert {name: package.source[name] for name in ("revision", "unit")} == {
        name: built_in.source[name] for name in ("revision", "unit")
    }


def test_rgba_fails_there_and_scores_as_rgb_here(folder: Path, hpsv2, size: str):
    """The package keeps four channels, which its model cannot take."""
    image = picture(0, (50, 40), "RGBA")
    with pytest.raises(RuntimeError, match="channels"):
        hpsv2.score(image, "a", cp=str(folder / "HPS_v2.1_compressed.pt"), hps_version="v2.1")
    reward = load_reward("hps_v2.1", str(folder))
    assert reward.score(["a"], [image])[0] == reward.score(["a"], [image.convert("RGB")])[0]


def test_longest_side_of_the_models_size_is_not_padded_there(folder: Path, hpsv2, size: str):
    """The package skips padding together with resizing, and its model fails; here the image is padded."""
    pixels = IMAGE_SIZE[size]
    image = picture(0, (pixels, pixels // 2))
    with pytest.raises(RuntimeError):
        hpsv2.score(image, "a", cp=str(folder / "HPS_v2.1_compressed.pt"), hps_version="v2.1")
    padded = Image.new("RGB", (pixels, pixels))
    padded.paste(image, (0, pixels // 4))
    reward = load_reward("hps_v2.1", str(folder))
    scores = [reward.score(["a"], [pixels])[0] for pixels in (image, padded)]
    assert scores[0] == scores[1]


def test_sixteen_bits_are_clipped_there_and_scaled_here(folder: Path, hpsv2, size: str):
    """PIL turns all but the darkest 1/256 of a 16-bit image white; here its high byte is what is seen."""
    image = picture(4, (40, 40), "I;16")
    checkpoint = str(folder / "HPS_v2.1_compressed.pt")
    there = [hpsv2.score(x, "a", cp=checkpoint, hps_version="v2.1")[0] for x in (image, plain_rgb(image))]
    here = load_reward("hps_v2.1", str(folder)).score(["a"], [image])[0]
    assert abs(there[1] - here) < 1e-5 < 1e-3 < abs(there[0] - here)
