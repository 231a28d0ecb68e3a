# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""How far the latents that training encodes from pictures are from those that the base model generated.

    python benchmarks/latent_roundtrip.py --pretrained_model_name_or_path tiny-sd15 --prompts tiny-train

Generates, and compares for every picture x = decode(z), as 8-bit pixels, the posterior of encode(x) with z itself: what
`--use_generated_latents` spares. Prints JSON; all values are in the UNet's scale, where latents have deviation 1 or so.
"""

import argparse
import json
import tempfile

import numpy as np
import torch
from datasets import Dataset

from diffusers_craft import SD15, SDXL, GenerationSettings, generate_images, load_pipeline, load_prompts
from diffusers_craft.scripts import (
    DataSettings,
    ModelSource,
    default_device,
    derive_seed,
    prepare_training_data,
    vae_fingerprint,
)


def encoded_and_generated(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n, C, h, w) each: means and deviations of the encoded pictures, and the generated latents as a build keeps them."""
    device = default_device()
    pipeline = load_pipeline(args.pretrained_model_name_or_path, device=device)
    family = SDXL if type(pipeline).__name__ == SDXL.pipeline_class else SD15
    settings = GenerationSettings(num_inference_steps=args.num_inference_steps, batch_size=16).resolve(pipeline)
    prompts = load_prompts(args.prompts, num_prompts=args.num_prompts)
    made = generate_images(pipeline, prompts, [derive_seed(0, "roundtrip", prompt) for prompt in prompts], settings)
    columns = {"image": made.images, "prompt": prompts, "latent": list(made.latents.astype(np.float16))}
    columns["latent_vae"] = [vae_fingerprint(pipeline.vae)] * len(prompts)
    dataset = Dataset.from_dict(columns).select(np.flatnonzero(made.valid))

    components = family.load(ModelSource(args.pretrained_model_name_or_path), device)
    with tempfile.TemporaryDirectory() as cache:
        common = {"resolution": settings.resolution, "cache_dir": cache}
        encoded, stored = (
            prepare_training_data(dataset, family, components, DataSettings(use_generated_latents=exact, **common))
            for exact in (False, True)
        )
    return encoded.latents[0], encoded.latent_stds[0], stored.latents[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default="tiny-sd15")
    parser.add_argument("--prompts", default="tiny-train")
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=12)
    args = parser.parse_args()
    means, stds, generated = encoded_and_generated(args)

    def rms(values: torch.Tensor) -> float:
        return values.square().mean().sqrt().item()

    difference = means - generated
    each = difference.square().flatten(1).mean(1).sqrt() / generated.square().flatten(1).mean(1).sqrt()
    result = {
        "model": args.pretrained_model_name_or_path,
        "pictures": len(generated),
        "rms_generated": rms(generated),
        "rms_difference": rms(difference),
        "rms_posterior_deviation": rms(stds),
        "mean_difference_by_channel": difference.mean((0, 2, 3)).tolist(),
        "relative_difference_10_50_90": [each.quantile(q).item() for q in (0.1, 0.5, 0.9)],
        "correlation": torch.corrcoef(torch.stack([means.flatten(), generated.flatten()]))[0, 1].item(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
