# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The noise path of a base model: how clean latents and noise mix, what the model says of a mixture, and how to move on.

At every time the mixture is x = a x_0 + s n, and the model's output o = c x_0 + d n:

    kind          a            s                c    d    det = a d - s c
    epsilon       sqrt(abar)   sqrt(1 - abar)   0    1    a
    sample        as above     as above         1    0    -s
    v_prediction  as above     as above         -s   a    1
    flow          1 - sigma    sigma            -1   1    1

These two lines are solved for x_0 and n, which is all that a loss, a chain or an inversion needs of a base: velocities
(arXiv 2202.00512) and rectified flows (arXiv 2209.03003) come for the price of noise predictions.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ..errors import UserError
from ..objectives.base import Batch, per_row


KINDS = ("epsilon", "v_prediction", "sample", "flow")
_BETAS = ("beta_start", "beta_end", "beta_schedule")
_SCHEDULE = (*_BETAS, "trained_betas", "num_train_timesteps", "rescale_betas_zero_snr")
_USUAL = {"snr_shift_scale": 1.0, "timestep_type": "discrete"}  # what else says how noisy a timestep is


@dataclass(frozen=True)
class NoisePath:
    """Mixtures of clean latents and noise over the T training times, from the cleanest to pure noise.

    A `level` says how much noise there is: abar, or sigma for a flow. Levels need not be those of the T times.

    Args:
        kind (`str`): what the model predicts, one of `KINDS`.
        levels (`torch.Tensor`): (T,) float64 level of every time: abar in [0, 1), or sigma in (0, 1].
        labels (`torch.Tensor`): (T,) what the model is told at every time: int64 timesteps, or 1000 sigma.
        density (`str`, *optional*, defaults to `"uniform"`): of the training times, or `"logit_normal"`.
    """

    kind: str
    levels: torch.Tensor
    labels: torch.Tensor
    density: str = "uniform"

    @classmethod
    def from_scheduler(cls, scheduler: Any, prediction_type: str | None = None) -> "NoisePath":
        """The path that a pipeline's scheduler was made for; `prediction_type` overrules the scheduler's own.

        A scheduler that is not understood, as of EDM, is a `UserError`: guessing would ruin the model.
        """
        config, name = scheduler.config, type(scheduler).__name__
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            if prediction_type is not None:
                raise UserError(f"--prediction_type: expected none for {name}, found {prediction_type!r}")
            fresh = type(scheduler).from_config(config)  # sampling leaves its own steps in the tables
            return cls("flow", fresh.sigmas.flip(0).double(), fresh.timesteps.flip(0), "logit_normal")
        wanted = "--pretrained_model_name_or_path: expected a"
        missing = [] if config.get("trained_betas") is not None else [key for key in _BETAS if key not in config]
        if missing:
            wanted += " scheduler with betas or a FlowMatchEulerDiscreteScheduler"
            raise UserError(f"{wanted}, found {name} without {', '.join(missing)}")
        for key, usual in _USUAL.items():
            if config.get(key, usual) != usual:
                raise UserError(f"{wanted} scheduler with {key} {usual}, found {name} with {config[key]!r}")
        kind = prediction_type or config.get("prediction_type", "epsilon")
        if kind not in KINDS or kind == "flow":
            raise UserError(f"--prediction_type: expected epsilon, v_prediction or sample for {name}, found {kind!r}")
        # Not `from_config`, for which values that the class took by default do not count: others may be DDPM's defaults.
        try:
            schedule = DDPMScheduler(**{key: config[key] for key in _SCHEDULE if key in config})
        except NotImplementedError as error:  # `exp`, which only Heun's has
            wanted += " beta_schedule that diffusers' DDPMScheduler knows"
            raise UserError(f"{wanted}, found {name} with {config['beta_schedule']!r}") from error
        return cls(kind, schedule.alphas_cumprod.double(), torch.arange(len(schedule)))

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def clean_level(self) -> float:
        """The level without noise."""
        return 0.0 if self.kind == "flow" else 1.0

    @property
    def ends_without_signal(self) -> bool:
        """Whether the last time is pure noise, as with zero terminal SNR (arXiv 2305.08891)."""
        return bool(self.squares(self.levels[-1])[0] == 0)

    def to(self, device: torch.device) -> "NoisePath":
        """The same path with its tables on `device`."""
        return replace(self, levels=self.levels.to(device), labels=self.labels.to(device))

    def draw_times(self, uniform: torch.Tensor) -> torch.Tensor:
        """(B,) int64 training times by their density from (B,) float64 numbers in [0, 1).

        A logit-normal density (arXiv 2403.03206, section 3.1) has most of its times in the middle.
        """
        if self.density == "logit_normal":
            uniform = torch.special.ndtri(uniform).sigmoid()
        return (uniform * len(self)).long().clamp(max=len(self) - 1)

    def squares(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a^2 and s^2, in the shape of `levels`."""
        return ((1 - levels).square(), levels.square()) if self.kind == "flow" else (levels, 1 - levels)

    def mixing(self, levels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s of (B,) levels as (B, 1, 1, 1), in the dtype of `like`."""
        levels = per_row(levels, like)
        return (1 - levels, levels) if self.kind == "flow" else (levels.sqrt(), (1 - levels).sqrt())

    def mix(self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """x (B, C, h, w) of clean latents and noise at (B,) levels."""
        a, s = self.mixing(levels, clean)
        return a * clean + s * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """o (B, C, h, w): what the model should say of that mixture."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return clean
        if self.kind == "flow":
            return noise - clean
        a, s = self.mixing(levels, clean)
        return a * noise - s * clean

    def clean(self, noisy: torch.Tensor, output: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """x_0 = (d x - s o) / det: the clean latents (B, C, h, w) that an output (B, C, h, w) at (B,) levels means."""
        if self.kind == "sample":
            return output
        if self.kind == "epsilon":
            return self.implied_clean(noisy, output, levels)
        a, s = self.mixing(levels, noisy)
        return noisy - s * output if self.kind == "flow" else a * noisy - s * output

    def noise(self, noisy: torch.Tensor, output: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """n = (a o - c x) / det: the noise (B, C, h, w) that an output means."""
        if self.kind == "epsilon":
            return output
        if self.kind == "sample":
            return self.implied_noise(noisy, output, levels)
        a, s = self.mixing(levels, noisy)
        return a * output + noisy if self.kind == "flow" else a * output + s * noisy

    def implied_clean(self, noisy: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """x_0 = (x - s n) / a: the clean latents that this noise takes to x at (B,) levels."""
        a, s = self.mixing(levels, noisy)
        return (noisy - s * noise) / a

    def implied_noise(self, noisy: torch.Tensor, clean: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """n = (x - a x_0) / s: the noise that takes clean latents to x at (B,) levels."""
        a, s = self.mixing(levels, noisy)
        return (noisy - a * clean) / s

    def follow(
        self, noisy: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor, to_levels: torch.Tensor
    ) -> torch.Tensor:
        """Moves x (B, C, h, w) from (B,) `levels` to `to_levels` as if it held this noise (B, C, h, w)."""
        return self.mix(self.implied_clean(noisy, noise, levels), noise, to_levels)

    def move(
        self, noisy: torch.Tensor, output: torch.Tensor, levels: torch.Tensor, to_levels: torch.Tensor
    ) -> torch.Tensor:
        """Moves x along the line that x and output define, down or up in noise.

        DDIM (arXiv 2010.02502, eq. 12 with sigma 0), and for a flow the Euler step x + (s' - s) o.
        """
        return self.mix(self.clean(noisy, output, levels), self.noise(noisy, output, levels), to_levels)

    def random_move(
        self,
        noisy: torch.Tensor,
        output: torch.Tensor,
        levels: torch.Tensor,
        to_levels: torch.Tensor,
        eta: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, C, h, w) and standard deviation (B,) of a stochastic move down; `eta=0` is `move`.

        The spread eta s' sqrt(1 - SNR / SNR') is DDIM's (eq. 16); for a flow it keeps the mixture's coefficients.
        """
        signal, noise = self.squares(levels)
        to_signal, to_noise = self.squares(to_levels)
        sigma = eta * (to_noise * (1 - signal * to_noise / (noise * to_signal))).clamp(min=0).sqrt()
        a, _ = self.mixing(to_levels, noisy)
        direction = (per_row(to_noise, noisy) - per_row(sigma, noisy).square()).clamp(min=0).sqrt()
        return a * self.clean(noisy, output, levels) + direction * self.noise(noisy, output, levels), sigma

    def noise_error_scale(self, levels: torch.Tensor) -> torch.Tensor | None:
        """(B,) (a / det)^2: what turns squared errors of the output into those of the noise; `None` where they are it."""
        if self.kind == "epsilon":
            return None
        signal, noise = self.squares(levels)
        return signal / noise if self.kind == "sample" else signal

    def min_snr_weights(self, times: torch.Tensor, gamma: float) -> torch.Tensor:
        """min(SNR, gamma) on the error of x_0, restated for the output: times s^2 / det^2 (arXiv 2303.09556, section 3.4).

        With d = the error of x_0, the error of the noise is SNR d and that of the velocity (SNR + 1) d. Without signal,
        as at the last time of a zero-terminal-SNR schedule, the weight is its limit (1 for noise, 0 else), not 0 / 0.
        (B,) float32 of (B,) int64 times in [0, T); gamma is above 0, 5 in the paper.
        """
        signal, noise = self.squares(self.levels[times].float())
        if self.kind == "epsilon":
            return (gamma * noise / signal).clamp(max=1.0)
        capped = (signal / noise).clamp(max=gamma)
        return capped if self.kind == "sample" else capped * noise


class Draw(NamedTuple):
    """Clean latents and everything random about one micro-batch of B rows, on the training device."""

    latents: torch.Tensor  # (B, C, h, w) sampled from the VAE's posterior, scaled
    noise: torch.Tensor  # (B, C, h, w) standard normal, but for a noise offset
    times: torch.Tensor  # (B,) int64 in [0, T), by the path's density
    conditioning: dict[str, torch.Tensor]  # name -> (B, ...)
    weights: torch.Tensor  # (B,)
    rows: torch.Tensor  # (B,) int64 dataset rows
    slots: torch.Tensor  # (B,) int64, or (B / 2,) of pairs: place of each unit in the global batch; on the CPU


def diffuse(draw: Draw, path: NoisePath, snr_gamma: float | None = None) -> Batch:
    """Adds the noise, and says what a model of this path should make of it; `snr_gamma` is of `min_snr_weights`."""
    levels = path.levels[draw.times]
    return Batch(
        noisy_latents=path.mix(draw.latents, draw.noise, levels),
        timesteps=path.labels[draw.times],
        target=path.target(draw.latents, draw.noise, levels),
        timestep_weights=None if snr_gamma is None else path.min_snr_weights(draw.times, snr_gamma),
        error_scale=path.noise_error_scale(levels),
        **draw._asdict(),
    )
