# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Deterministic moves along a base's `models.noise.NoisePath`: from noise to images (arXiv 2010.02502), and back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


RENOISE = ("none", "final", "every")


def inversion_times(num_timesteps: int, num_steps: int) -> list[int]:
    """Times that an inversion in equal strides visits: T / G - 1, 2 T / G - 1, ..., T - 1 (rounded)."""
    return [round(num_timesteps * (step + 1) / num_steps) - 1 for step in range(num_steps)]


def invert(
    latents: torch.Tensor,
    num_steps: torch.Tensor,
    times: Sequence[int],
    path: Any,
    predict: Callable,
    renoise: str = "none",
    start_level: float | None = None,
) -> torch.Tensor:
    """(B, C, h, w) clean latents, moved in (B,) `num_steps` to the ascending times that end a step.

    `predict` takes latents (b, C, h, w), times (b,) and rows (b,), positions in B; `start_level` is the clean one's.
    """
    # A step to time t uses the prediction at the point where it starts, labelled t (as diffusers' DDIMInverseScheduler
    # does), which costs an error of first order in the stride. ReNoise (arXiv 2403.14602) predicts again at the point
    # reached and repeats the step from where it started: once, after the last step (`final`, as SmPO's paper says, with
    # the new prediction alone), or after every one (`every`, as its code does, with the mean of both predictions).
    result = latents.clone()
    first = torch.as_tensor(path.clean_level if start_level is None else start_level).to(path.levels)
    for step in range(int(num_steps.max())):
        active = (num_steps > step).nonzero()[:, 0]
        told, before = torch.full_like(active, times[step]), result[active]
        start = path.levels[times[step - 1]] if step else first
        levels, to_levels = start.expand(len(active)), path.levels[times[step]].expand(len(active))

        # The model means its output for the level that it was told, not for the one where it looks.
        noise = path.noise(before, predict(before, told, active), to_levels)
        after = path.follow(before, noise, levels, to_levels)
        if renoise == "every":
            noise = (noise + path.noise(after, predict(after, told, active), to_levels)) / 2
            after = path.follow(before, noise, levels, to_levels)
        elif renoise == "final" and (ends := (num_steps[active] == step + 1)).any():
            again = path.noise(after[ends], predict(after[ends], told[ends], active[ends]), to_levels[ends])
            after[ends] = path.follow(before[ends], again, levels[ends], to_levels[ends])
        result[active] = after
    return result


def sample(noise: torch.Tensor, levels: Sequence[float], path: Any, predict: Callable) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise, by moves down the levels, the `step`-th with `predict(latents, step)`."""
    stops = torch.tensor([*levels, path.clean_level], dtype=path.levels.dtype, device=noise.device)
    latents = noise
    for step, (here, there) in enumerate(zip(stops[:-1], stops[1:])):
        latents = path.move(latents, predict(latents, step), here.expand(len(noise)), there.expand(len(noise)))
    return latents


def guided(
    predict: Callable, latents: torch.Tensor, times: torch.Tensor, conditioning: dict, empty: dict, scale: float
) -> torch.Tensor:
    """(B, C, h, w) of `predict(latents, times, conditioning)` with classifier-free guidance (arXiv 2207.12598)."""
    if scale == 1.0:
        return predict(latents, times, conditioning)
    both = {name: torch.cat([value, empty[name]]) for name, value in conditioning.items()}
    return guide(predict(latents.repeat(2, 1, 1, 1), times.repeat(2), both), scale)


def guide(prediction: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, C, h, w) out of (2B, C, h, w) predictions for [captions, empty captions]: empty + scale (caption - empty)."""
    conditional, empty = prediction.chunk(2)
    return empty + scale * (conditional - empty)
