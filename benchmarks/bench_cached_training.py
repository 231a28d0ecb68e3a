# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What caching latents and embeddings saves: a training step on cached tensors against one that encodes its batch.

Both kinds of step alternate in one process on tiny-sd15; the result is a ratio, printed and appended to
benchmarks/results/cached_training.jsonl with date and hardware.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffusers_craft import SD15, ModelSource, craft_loss


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    components = SD15.load(ModelSource("tiny-sd15"))
    unet, scheduler = components.unet.train(), components.noise_scheduler
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(args.batch_size, 3, 64, 64, generator=generator) * 2 - 1
    captions = [
        f"a red circle and a {color} square" for color in ("blue", "green") for _ in range(args.batch_size // 2)
    ]
    advantages = torch.ones(args.batch_size)

    @torch.no_grad()
    def encode() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = components.vae.encode(pixels).latent_dist.mean * components.vae.config.scaling_factor
        return latents, SD15.encode_prompts(components, captions)

    def train(latents: torch.Tensor, conditioning: dict[str, torch.Tensor]) -> None:
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(1000, (len(latents),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        craft_loss(SD15.predict(unet, noisy, timesteps, conditioning), noise, advantages).backward()
        optimizer.step()
        optimizer.zero_grad()

    cached = encode()
    train(*cached)  # warm-up
    pairs = [(seconds(lambda: train(*encode())), seconds(lambda: train(*cached))) for _ in range(args.rounds)]
    ratio = statistics.median(encoded / plain for encoded, plain in pairs)
    result = {
        "date": datetime.date.today().isoformat(),
        "device": f"CPU {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "encoding_over_cached": round(ratio, 3),
        "spread": [round(float(q), 3) for q in np.quantile([a / b for a, b in pairs], [0.1, 0.9])],
    }
    path = Path(__file__).parent / "results" / "cached_training.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
