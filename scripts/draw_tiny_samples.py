# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Draws the README's grid of samples: held-out captions, plain and with words of quality, by an embedded model.

python scripts/draw_tiny_samples.py [--model tiny-sd15] [--output docs/images/tiny_samples.png]
"""

import argparse
from pathlib import Path

from PIL import Image

from diffusers_craft import GenerationSettings, generate_images, load_pipeline, load_prompts, load_refiner


COLUMNS = 16
SCALE = 2  # screen pixels a picture's pixel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-sd15")
    parser.add_argument("--output", type=Path, default=Path("docs/images/tiny_samples.png"))
    args = parser.parse_args()
    pipeline = load_pipeline(args.model)
    settings = GenerationSettings(num_inference_steps=12, guidance_scale=2.0, batch_size=COLUMNS)
    captions = load_prompts("tiny-heldout")[: 2 * COLUMNS]
    refiner = load_refiner("template")
    refined = [refiner.refine(caption, 1, seed)[0] for seed, caption in enumerate(captions)]
    rows = []
    for start in (0, COLUMNS):
        for texts in (captions, refined):
            part = texts[start : start + COLUMNS]
            rows.append(generate_images(pipeline, part, range(start, start + COLUMNS), settings).images)
    side = rows[0][0].width * SCALE
    grid = Image.new("RGB", (COLUMNS * (side + 4) - 4, len(rows) * (side + 4) - 4), "white")
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            grid.paste(image.resize((side, side), Image.Resampling.NEAREST), (x * (side + 4), y * (side + 4)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    grid.save(args.output, optimize=True)
    print("\n".join(captions))


if __name__ == "__main__":
    main()
