# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Deterministic and stochastic DDIM moves between any two noise levels (arXiv 2010.02502), and their inversion.

All functions take abar as tensors that broadcast over (B, C, h, w); abar = 1 is the clean image.
"""

from collections.abc import Callable, Sequence

import torch

from ..errors import UserError


RENOISE = ("none", "final", "every")


def rows(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) values as (B, 1, 1, 1) in the dtype of `like`."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def clean_estimate(noisy: torch.Tensor, noise: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """x_0 = (x_t - sqrt(1 - abar) noise) / sqrt(abar), for (B,) abar in (0, 1]."""
    abar = rows(abar, noisy)
    return (noisy - (1 - abar).sqrt() * noise) / abar.sqrt()


def ddim_move(
    noisy: torch.Tensor, noise: torch.Tensor, abar_from: torch.Tensor, abar_to: torch.Tensor
) -> torch.Tensor:
    """Moves x along the line that (x, noise) define, down or up in noise (eq. 12 with sigma 0).

    Args:
        noisy (`torch.Tensor`): (B, C, h, w) latents at `abar_from`.
        noise (`torch.Tensor`): (B, C, h, w) predicted noise.
        abar_from, abar_to (`torch.Tensor`): (B,) in (0, 1].

    Returns:
        `torch.Tensor`: (B, C, h, w) latents at `abar_to`.
    """
    target = rows(abar_to, noisy)
    return target.sqrt() * clean_estimate(noisy, noise, abar_from) + (1 - target).sqrt() * noise


def ddim_mean_std(
    noisy: torch.Tensor, noise: torch.Tensor, abar_from: torch.Tensor, abar_to: torch.Tensor, eta: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, C, h, w) and standard deviation (B,) of a stochastic move (eq. 12 and 16); eta 0 is `ddim_move`."""
    variance = (1 - abar_to) / (1 - abar_from) * (1 - abar_from / abar_to)
    sigma = eta * variance.clamp(min=0).sqrt()
    target, spread = rows(abar_to, noisy), rows(sigma, noisy)
    direction = (1 - target - spread.square()).clamp(min=0).sqrt()
    return target.sqrt() * clean_estimate(noisy, noise, abar_from) + direction * noise, sigma


def inversion_times(num_timesteps: int, num_steps: int) -> list[int]:
    """Times that an inversion in equal strides visits: T / G - 1, 2 T / G - 1, ..., T - 1 (rounded)."""
    return [round(num_timesteps * (step + 1) / num_steps) - 1 for step in range(num_steps)]


def invert(
    latents: torch.Tensor,
    num_steps: torch.Tensor,
    times: Sequence[int],
    alphas_cumprod: torch.Tensor,
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    renoise: str = "none",
    abar_start: float = 1.0,
) -> torch.Tensor:
    """DDIM inversion: from each clean latent up to the time `times[num_steps - 1]`, with the noise the model predicts.

    A step to time t uses the prediction at the point where it starts, labelled t (as diffusers' DDIMInverseScheduler
    does), which costs an error of first order in the stride. ReNoise (arXiv 2403.14602) predicts again at the point
    reached and repeats the step from where it started: once, after the last step (`final`, as SmPO's paper says, with
    the new prediction alone), or after every one (`every`, as its code does, with the mean of both predictions).

    Args:
        latents (`torch.Tensor`): (B, C, h, w) clean latents.
        num_steps (`torch.Tensor`): (B,) int64 steps of each row, 0 to len(times); 0 leaves a row as it is.
        times (`Sequence[int]`): ascending timesteps that end a step.
        alphas_cumprod (`torch.Tensor`): (T,) abar.
        predict (`Callable`): noise of (latents (b, C, h, w), timesteps (b,), rows (b,)), rows being positions in B.
        renoise (`str`, *optional*, defaults to `"none"`): one of `RENOISE`.
        abar_start (`float`, *optional*, defaults to 1): abar of the clean latents; diffusers takes abar_0 where a
            schedule has `set_alpha_to_one=False`.

    Returns:
        `torch.Tensor`: (B, C, h, w) latents at each row's time.
    """
    if renoise not in RENOISE:
        raise UserError(f"--renoise: expected one of {', '.join(RENOISE)}, found {renoise!r}")
    result = latents.clone()
    for step in range(int(num_steps.max())):
        active = (num_steps > step).nonzero()[:, 0]
        labels = torch.full_like(active, times[step])
        before = result[active]
        start = alphas_cumprod[times[step - 1]] if step else torch.as_tensor(abar_start).to(alphas_cumprod)
        abar_from, abar_to = start.expand(len(active)), alphas_cumprod[times[step]].expand(len(active))
        noise = predict(before, labels, active)
        after = ddim_move(before, noise, abar_from, abar_to)
        if renoise == "every":
            noise = (noise + predict(after, labels, active)) / 2
            after = ddim_move(before, noise, abar_from, abar_to)
        elif renoise == "final" and (ends := (num_steps[active] == step + 1)).any():
            again = predict(after[ends], labels[ends], active[ends])
            after[ends] = ddim_move(before[ends], again, abar_from[ends], abar_to[ends])
        result[active] = after
    return result


def implied_noise(noisy: torch.Tensor, latents: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """tau = (x_t - sqrt(abar) x_0) / sqrt(1 - abar): the noise that takes (B, ...) x_0 to x_t at (B,) abar."""
    abar = rows(abar, noisy)
    return (noisy - abar.sqrt() * latents) / (1 - abar).sqrt()


def ddim_sample(
    noise: torch.Tensor,
    num_steps: int,
    alphas_cumprod: torch.Tensor,
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise by `num_steps` deterministic moves at T - 1, ..., T / num_steps - 1, then 0.

    Args:
        noise (`torch.Tensor`): (B, C, h, w) standard normal.
        num_steps (`int`): moves, at most T.
        alphas_cumprod (`torch.Tensor`): (T,) abar.
        predict (`Callable`): noise of (latents (B, C, h, w), timesteps (B,)).
    """
    times = inversion_times(len(alphas_cumprod), num_steps)[::-1]
    abars = [*(alphas_cumprod[time] for time in times), torch.ones((), dtype=alphas_cumprod.dtype)]
    latents, count = noise, len(noise)
    for step, time in enumerate(times):
        timesteps = torch.full((count,), time, device=noise.device)
        here, there = (abar.to(noise.device).expand(count) for abar in abars[step : step + 2])
        latents = ddim_move(latents, predict(latents, timesteps), here, there)
    return latents
