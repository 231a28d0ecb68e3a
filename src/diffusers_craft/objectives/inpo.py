# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""InPO (arXiv 2503.18454): Diffusion-DPO on inverted latents.

Unlike in the released codes, each pair has its own time, not the first pair's, and inverted latent, label and target
belong to one time (`grid="official"` gives the codes'). The jitter of InPO's code is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Batch, Context, check_range, choice, number
from .chains import RENOISE, inversion_times, invert
from .dpo import DPO


@dataclass
class InPO(DPO):
    """InPO.

    Args:
        beta (`float`, *optional*, defaults to 2000): strength of the reference; 5000 for SDXL in the papers.
        inversion_steps (`int`, *optional*, defaults to 10): grid points; 0 takes forward noise instead.
        renoise (`str`, *optional*, defaults to `"none"`): `none`, `final` (SmPO's paper) or `every` (its code).
        inverter (`str`, *optional*, defaults to `"reference"`): the model that inverts; the code takes the `policy`.
        grid (`str`, *optional*, defaults to `"consistent"`): `official` draws any time, visits the grid points below
            it, and labels the result with the time drawn. It starts at abar_0, as the schedules of SD1.5 and SDXL
            say (`set_alpha_to_one=False`); `consistent` takes the clean latents for clean, abar = 1.
    """

    title: ClassVar[str] = "InPO"
    paper: ClassVar[str] = "2503.18454"
    beta: float = number(2000.0, 0, above=True)
    inversion_steps: int = number(10, 0)
    renoise: str = choice("none", RENOISE)
    inverter: str = choice("reference", ("reference", "policy"))
    grid: str = choice("consistent", ("consistent", "official"))
    name: ClassVar[str] = "inpo"
    follows_model: ClassVar[bool] = True

    @property
    def own_noise(self) -> bool:
        """Inversion makes it."""
        return self.inversion_steps > 0

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, float]:
        """As both papers that invert have it (arXiv 2506.02698, 2503.18454)."""
        return {"beta": 5000.0} if family == "stable-diffusion-xl" else {}

    def prepare(self, batch: Batch, context: Context) -> Batch:
        if not self.inversion_steps:
            return batch
        path = context.path
        check_range("inversion_steps", self.inversion_steps, 0, len(path))
        times, num_steps, told = self._times(batch.times, len(path))
        start = float(path.levels[0]) if self.grid == "official" else None
        predict = context.predict_reference if self.inverter == "reference" else context.predict

        def predict_rows(latents, times, rows):
            return predict(latents, times, {name: value[rows] for name, value in batch.conditioning.items()})

        noisy = invert(batch.latents, num_steps, times, path, predict_rows, self.renoise, start)
        levels = path.levels[told]
        target = path.target(batch.latents, path.implied_noise(noisy, batch.latents, levels), levels)
        inverted = {"noisy_latents": noisy, "times": told, "timesteps": path.labels[told], "target": target}
        return batch._replace(**inverted, error_scale=path.noise_error_scale(levels))

    def _times(self, drawn: torch.Tensor, num_timesteps: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """Grid, number of steps (B,) and the times (B,) that the model is told, for drawn times (B,)."""
        if self.grid == "consistent":
            times = inversion_times(num_timesteps, self.inversion_steps)
            num_steps = drawn * self.inversion_steps // num_timesteps + 1  # uniform on 1 .. G
            return times, num_steps, torch.tensor(times, device=drawn.device)[num_steps - 1]
        stride = num_timesteps // self.inversion_steps
        times = [1 + stride * step for step in range(self.inversion_steps)]  # diffusers' leading spacing, offset 1
        return times, (torch.tensor(times, device=drawn.device) < drawn[:, None]).sum(dim=1), drawn
