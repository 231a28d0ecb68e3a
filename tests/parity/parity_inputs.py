# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pictures of every shape and mode, prompts of every kind, and the comparison of two lists of scores."""

from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image


PROMPTS = {
    "plain": "A red Circle, and two blue stars!",
    "entities": "salt &amp; pepper &lt;3 caf&eacute; &amp;amp; more",
    "emoji": "a 🤖 robot 👩‍🚀 riding a 🚲",
    "300 words": " ".join(f"word{i % 17} of many" for i in range(100)),
    "empty": "",
    "mojibake": "schÃ¶ne ﬁne â€œquotesâ€\x9d  and\ttabs",
    "special token": "the end<|endoftext|> and after [SEP] [ENC]",
}
SHAPES = {"square": (1, 1), "3:1": (3, 1), "1:3": (1, 3), "odd margin": (1.43, 1), "odd height": (1, 1.31)}
MODES = ("L", "RGBA", "P", "I;16")

# The official code resizes before it converts; there is nothing to compare with where Pillow refuses.
needs_16_bit_resize = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 11, reason="Pillow before 11 does not resize 16-bit images"
)


def picture(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A random picture with coarse and fine structure; size is (width, height). RGBA and P are partly transparent."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 4), dtype=np.uint8), "RGBA")
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    pixels = (pixels + rng.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8)
    if mode == "RGBA":
        return Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(pixels[..., :3], "RGB").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    return image


def pictures(size: int) -> dict[str, Image.Image]:
    """A picture of each shape, of `size` pixels at the short side or a little more, and of each mode."""
    base = size + size // 8
    shapes = {
        name: picture(i, (round(width * base), round(height * base)))
        for i, (name, (width, height)) in enumerate(SHAPES.items())
    }
    exact = {"exact size": picture(20, (size, size))}
    return {**shapes, **exact, **{mode: picture(10 + i, (base + 5, base), mode) for i, mode in enumerate(MODES)}}


def plain_rgb(image: Image.Image) -> Image.Image:
    """What the picture shows, as RGB without transparency, computed apart from the package."""
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")


def pairs(size: int) -> list[tuple[str, str, Image.Image]]:
    """(label, prompt, image): every picture and every prompt at least once."""
    prompts = list(PROMPTS.items())
    return [
        (f"{name}, {prompts[i % len(prompts)][0]}", prompts[i % len(prompts)][1], image)
        for i, (name, image) in enumerate(pictures(size).items())
    ]


def pil_processor(folder: Path):
    """transformers' image processor of a folder, with PIL's resizing, which the published scores were made with."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:
        from transformers import CLIPImageProcessor as Processor
    return Processor.from_pretrained(folder)


def assert_equal_scores(found: np.ndarray, expected: list[float], labels: list[str], atol: float = 1e-5) -> None:
    """Prints the largest differences, and fails if one is above `atol`, or if the scores could not show one."""
    differences = np.abs(np.asarray(found, dtype=np.float64) - np.asarray(expected, dtype=np.float64))
    for label, difference, score in zip(labels, differences, expected):
        print(f"  {label:32} {score:+.6f}  difference {difference:.1e}")
    assert np.ptp(expected) > 1000 * atol, f"the model does not tell these pairs apart: {expected}"
    worst = int(differences.argmax())
    assert differences[worst] <= atol, f"{labels[worst]}: expected {expected[worst]}, found {found[worst]}"
