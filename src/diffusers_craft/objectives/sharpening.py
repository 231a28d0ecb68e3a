# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-Sharpening (arXiv 2502.12146): follow several noisings of an image for a few DDIM steps, learn the best path.

A reward judges each state's one-step estimate of the clean image. Trajectories are chosen without gradient and their
states evaluated anew, where the released code sends gradients through the moves.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from ..errors import UserError
from . import base
from .base import Batch, Context, LossOutput, Objective, check_range, choice, noise_errors, number
from .chains import guided, inversion_times, sample


class Trajectories(NamedTuple):
    """n trajectories of each of B latents; states that would pass t = 0 are masked out."""

    states: torch.Tensor  # (m, B, n, C, h, w)
    times: torch.Tensor  # (m, B) int64
    valid: torch.Tensor  # (m, B) bool
    latents: torch.Tensor  # (B, n, C, h, w) clean latents that the first states were made of,
    noises: torch.Tensor  # (B, n, C, h, w) and their noises
    rewards: torch.Tensor  # (B, n) mean over the valid states, NaN where the reward abstained from one


@torch.no_grad()
def follow(
    latents: torch.Tensor, noises: torch.Tensor, batch: Batch, context: Context, num_states: int, stride: int
) -> Trajectories:
    """Noises (B, n, C, h, w) clean latents at the batch's times; follows them for m states, `stride` times apart."""
    count, ways = noises.shape[:2]
    path, device = context.path, latents.device
    owner = torch.arange(count, device=device).repeat_interleave(ways)
    wide = {name: value[owner] for name, value in batch.conditioning.items()}
    times = batch.times - stride * torch.arange(num_states, device=batch.times.device)[:, None]
    valid, times = times >= 0, times.clamp(min=0)
    levels = path.levels[times]  # (m, B)
    current = path.mix(latents.flatten(0, 1), noises.flatten(0, 1), levels[0][owner])
    states, total = [], torch.zeros(count, ways, device=device)
    for step in range(num_states):
        states.append(current)
        is_last = step == num_states - 1
        if is_last and ways == 1:  # nothing to choose from, nor to move on to
            break
        output = context.predict(current, times[step][owner], wide)
        if ways > 1:
            scores = context.score(path.clean(current, output, levels[step][owner]), owner).reshape(count, ways)
            total += scores.masked_fill(~valid[step][:, None], 0.0)  # a product would keep the NaN of states left out
        if not is_last:
            current = path.move(current, output, levels[step][owner], levels[step + 1][owner])
    rewards = total / valid.sum(0)[:, None]
    return Trajectories(torch.stack(states).unflatten(1, (count, ways)), times, valid, latents, noises, rewards)


def chosen_states(paths: Trajectories, with_worst: bool, batch: Batch, path: Any) -> Batch:
    """The S valid states of the best trajectories, and with `with_worst` then S of the worst ones.

    Weights are 1 / (number of a latent's states), negative for the worst, and 0 where the reward could not compare.
    """
    best, worst, gaps, judged = base.best_and_worst(paths.rewards)
    if paths.rewards.shape[1] == 1:
        judged = torch.ones_like(judged)
    step, unit = paths.valid.nonzero(as_tuple=True)  # (S,) each, first states first
    extras = {"unit": unit, "step": step, "num_units": len(judged), "judged": judged, "gaps": gaps}
    weights, way = judged[unit] / paths.valid.sum(0)[unit].float(), best[unit]
    if with_worst:
        weights, way = torch.cat([weights, -weights]), torch.cat([way, worst[unit]])
        step, unit = step.repeat(2), unit.repeat(2)
    times, states, noises = paths.times[step, unit], paths.states[step, unit, way], paths.noises[unit, way]
    levels = path.levels[times]
    # Later states have left the line of latents and noise. What a model says there in whose eyes the noise is still this
    # one means other latents; the first states may be pure noise, which means none.
    is_first = base.per_row(step == 0, states).bool()
    clean = torch.where(is_first, paths.latents[unit, way], path.implied_clean(states, noises, levels))
    wide = {name: value[unit] for name, value in batch.conditioning.items()}
    target, scale = path.target(clean, noises, levels), path.noise_error_scale(levels)
    return Batch(states, times, path.labels[times], wide, target, weights, error_scale=scale, extras=extras)


@dataclass
class SFTSharpening(Objective):
    """SFT-Diffusion-Sharpening: the mean denoising error of the best trajectory's states.

    A trajectory counts only if the reward judged all its states, a latent only if two of its trajectories count; one that
    does not adds nothing to the mean over latents.

    Args:
        num_noises (`int`, *optional*, defaults to 3): n; 1 needs no reward.
        num_states (`int`, *optional*, defaults to 3): m. n = m = 1 is plain fine-tuning, by the error of the noise.
        grid_steps (`int`, *optional*, defaults to 50): DDIM steps of a whole path, so that a move is T / grid_steps.
    """

    title: ClassVar[str] = "SFT-Diffusion-Sharpening"
    paper: ClassVar[str] = "2502.12146"
    num_noises: int = number(3, 1)
    num_states: int = number(3, 1)
    grid_steps: int = number(50, 1)
    uses_advantages: ClassVar[bool] = False
    follows_model: ClassVar[bool] = True

    @property
    def uses_reward(self) -> bool:
        """One trajectory needs no judge."""
        return self.num_noises > 1

    own_noise = uses_reward  # the first noise is the data's; were it alone offset, the choice would not be fair

    def prepare(self, batch: Batch, context: Context) -> Batch:
        latents, noises = self._starts(batch, context)
        check_range("grid_steps", self.grid_steps, 1, len(context.path))
        paths = follow(latents, noises, batch, context, self.num_states, len(context.path) // self.grid_steps)
        return chosen_states(paths, self.uses_reference, batch, context.path)

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor | None = None) -> LossOutput:
        loss = (batch.weights * noise_errors(batch, prediction)).sum() / batch.extras["num_units"]
        return LossOutput(loss, self._metrics(batch.extras))

    def _metrics(self, extras: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the reward told apart: the mean gap of best and worst, and the share of latents that count."""
        return {"reward_gap": extras["gaps"].mean(), "units_used": extras["judged"].double().mean()}

    def _starts(self, batch: Batch, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents, and the noises to put on them: (B, n, C, h, w) each."""
        fresh = context.normal("noises", self.num_noises - 1, *batch.noise.shape[1:])
        noises = torch.cat([batch.noise[:, None], fresh.to(batch.noise)], dim=1)
        return batch.latents[:, None].expand_as(noises), noises


def sharpening_preference_loss(
    changes: torch.Tensor,
    gaps: torch.Tensor,
    beta: float,
    eta: float = 1.0,
    form: str = "margin",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """mean_B softplus(-(logit - eta gap)), logit = -beta (d_w - d_l) of (2B,) changes; masked pairs count as 0.

    The paper's eq. 11 lacks the leading minus; the (B,) reward gap inside the sigmoid is a margin that the pair must
    reach. The released code adds it outside (`code`), where it has no gradient: plain DPO. beta is without the 1/2 of
    DPO's: 2500 is its 5000.
    """
    logits = -beta * base.pair_margins(changes)
    losses = F.softplus(-logits) + gaps if form == "code" else F.softplus(eta * gaps - logits)
    return losses.mean() if mask is None else (losses * mask).mean()


@dataclass
class RLHFSharpening(SFTSharpening):
    """RLHF-Diffusion-Sharpening: generates latents from prompts, then prefers the best over the worst trajectory.

    With `eta=0`, one state and the data's latents it is DPO with twice this beta on two noisings of one image.

    Args:
        beta (`float`, *optional*, defaults to 2500): see `sharpening_preference_loss`.
        eta (`float`, *optional*, defaults to 1): scale of the reward gap, which enters as it is.
        form (`str`, *optional*, defaults to `"margin"`): `code` gives the released code's loss, which also takes the
            reference's error at the first state only, so that its logit at the reference is not 0.
        generation_steps (`int`, *optional*, defaults to 25): DDIM steps of generation; 0 takes the data's images, as
            `SFTSharpening` does, and generates nothing.
        guidance_scale (`float`, *optional*, defaults to 5): of generation.
        image_sharing (`str`, *optional*, defaults to `"one"`): whether all trajectories of a prompt start from `one`
            generated image (the paper), so that they differ by their noise alone, or each from its own (`n`, the code).
        fresh_noise (`bool`, *optional*, defaults to `True`): whether an image is noised with new noise (the paper) or
            with the noise that it was generated from (the code), which takes `image_sharing="n"`.
    """

    title: ClassVar[str] = "RLHF-Diffusion-Sharpening"
    beta: float = number(2500.0, 0, above=True)
    eta: float = number(1.0, 0)
    form: str = choice("margin", ("margin", "code"))
    generation_steps: int = number(25, 0)
    guidance_scale: float = number(5.0, 0)
    image_sharing: str = choice("one", ("one", "n"))
    fresh_noise: bool = True
    uses_reference: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        """Prompts are enough where it generates their images."""
        return "prompt" if self.generation_steps else "single"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_noises < 2:
            raise UserError(f"--num_noises: expected at least 2 trajectories to compare, found {self.num_noises}")
        if self.image_sharing == "n" and not self.generation_steps:
            raise UserError("--image_sharing n: expected images to be generated, found --generation_steps 0")
        if not self.fresh_noise and self.image_sharing == "one":
            raise UserError("--no-fresh_noise: expected --image_sharing n, found one image for all noises")

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        extras, ours, count = batch.extras, batch.weights.abs(), batch.extras["num_units"]
        theirs = (extras["step"] == 0).to(ours).repeat(2) if self.form == "code" else ours
        trajectory = torch.cat([extras["unit"], count + extras["unit"]])  # B best ones, then B worst ones

        def sums(values: torch.Tensor) -> torch.Tensor:
            """(2B,) of (2S,) values by the trajectory that they belong to."""
            return values.new_zeros(2 * count).index_add(0, trajectory, values)

        changes = sums(ours * noise_errors(batch, prediction)) - sums(theirs * noise_errors(batch, reference))
        options = (self.beta, self.eta, self.form, extras["judged"])
        loss = sharpening_preference_loss(changes, extras["gaps"], *options)
        return LossOutput(loss, base.pair_metrics(changes) | self._metrics(extras))

    def _starts(self, batch: Batch, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        shape, path = batch.latents.shape[1:], context.path
        fresh = context.normal("noises", self.num_noises, *shape).to(batch.latents)
        check_range("generation_steps", self.generation_steps, 0, len(path))
        if not self.generation_steps:
            return batch.latents[:, None].expand_as(fresh), fresh
        images = self.num_noises if self.image_sharing == "n" else 1
        noise = context.normal("generation", images, *shape).to(batch.latents)
        wide = {name: value.repeat_interleave(images, dim=0) for name, value in batch.conditioning.items()}
        empty = context.empty_conditioning(wide)
        times = inversion_times(len(path), self.generation_steps)[::-1]

        def predict(latents: torch.Tensor, step: int) -> torch.Tensor:
            told = torch.full((len(latents),), times[step], device=latents.device)
            return guided(context.predict, latents, told, wide, empty, self.guidance_scale)

        made = sample(noise.flatten(0, 1), path.levels[times].tolist(), path, predict).reshape(noise.shape)
        return made.expand_as(fresh), (fresh if self.fresh_noise else noise)
