# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""PickScore against the computation of its README."""

from pathlib import Path

import pytest
import torch
import transformers
from packaging import version
from parity_checkpoints import IMAGE_SIZE, write_clip
from parity_inputs import assert_equal_scores, pairs, picture, pil_processor, plain_rgb
from PIL import Image

from diffusers_craft import load_reward


@pytest.fixture(scope="module")
def folder(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("pickscore"), size, "H")


@pytest.fixture(scope="module")
def readme(folder: Path):
    """`score(prompt, image)`: the README's `calc_probs` up to its softmax."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    processor, tokenizer = pil_processor(folder), AutoTokenizer.from_pretrained(folder)

    def unit(output) -> torch.Tensor:
        embedding = output if isinstance(output, torch.Tensor) else output.pooler_output
        return embedding / torch.norm(embedding, dim=-1, keepdim=True)

    @torch.no_grad()
    def score(prompt: str, image) -> float:
        image_inputs = processor(images=[image], return_tensors="pt")
        text_inputs = tokenizer(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
        image_embs = unit(model.get_image_features(**image_inputs))
        text_embs = unit(model.get_text_features(**text_inputs))
        return (model.logit_scale.exp() * (text_embs @ image_embs.T)[0]).item()

    return score


@pytest.fixture(scope="module")
def expected(readme, size: str) -> list[float]:
    """Images whose mode it treats otherwise are given as RGB: see the named tests below."""
    return [
        readme(prompt, image if image.mode in ("RGB", "L") else plain_rgb(image))
        for _, prompt, image in pairs(IMAGE_SIZE[size])
    ]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_pickscore_is_its_readme(batch_size: int, folder: Path, expected: list[float], size: str):
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    scores = load_reward("pickscore", str(folder), batch_size=batch_size).score(prompts, images)
    # Scores are a hundred times a cosine, and a float32 near 20 has steps of 2e-6.
    assert_equal_scores(scores, expected, labels, atol=2e-5)


def test_sixteen_bits_are_clipped_there_and_scaled_here(folder: Path, readme, size: str):
    """PIL turns all but the darkest 1/256 of a 16-bit image white; here its high byte is what is seen."""
    image = picture(4, (40, 40), "I;16")
    here = load_reward("pickscore", str(folder)).score(["a"], [image])[0]
    there = [readme("a", x) for x in (image.convert("RGB"), plain_rgb(image))]
    assert abs(there[1] - here) < 2e-5 < 1e-3 < abs(there[0] - here)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_dropped_and_not_laid_on_white(mode: str, folder: Path, readme, size: str):
    """As transformers did when the scores were published; since version 5 its processor composites on white."""
    image = picture(4, (40, 40), mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    here = load_reward("pickscore", str(folder)).score(["a"], [image])[0]
    dropped, composited, there = (readme("a", x) for x in (plain_rgb(image), white, image))
    assert abs(dropped - here) < 2e-5 < 1e-3 < abs(composited - here)
    assert abs(there - (composited if version.parse(transformers.__version__).major >= 5 else dropped)) < 2e-5
