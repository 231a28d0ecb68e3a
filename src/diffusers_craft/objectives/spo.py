# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""SPO (arXiv 2406.04314), online, step by step: of several next states of one noisy image, prefer the best scored one.

The paper trains a step-aware preference model; here any reward on a state's one-step estimate of the clean image takes its
place. Winner and loser share their start, so the loss needs one prediction per state, not two.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..errors import UserError
from . import base
from .base import Batch, Context, LossOutput, Objective, check_range, number
from .chains import guide, guided, inversion_times


def spo_log_ratios(
    next_states: torch.Tensor, mean: torch.Tensor, reference_mean: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """(N,) log p_theta(x') / p_ref(x') of (N, C, h, w) Gaussian moves, as a mean (not a sum) over C, h, w."""
    gain = (next_states - reference_mean).square() - (next_states - mean).square()
    return gain.flatten(1).mean(1) / (2 * sigma.square()).to(gain)


def spo_loss(
    winner_log_ratios: torch.Tensor,
    loser_log_ratios: torch.Tensor,
    beta: float = 10.0,
    clip: float = 0.1,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """mean_N softplus(-beta (log rho_w - log rho_l)), rho being likelihood ratios clamped to [1 - clip, 1 + clip].

    Outside the clamp a side has no gradient; infinity clamps nothing. beta is the paper's, clip the code's. Rows that
    the (N,) bool mask leaves out count as 0, so that the mean does not depend on how a batch is cut.
    """
    if clip != math.inf:  # the logarithm is clamped: the ratio itself would overflow, with NaN for its gradient
        bounds = math.log(max(1e-30, 1 - clip)), math.log1p(clip)
        winner_log_ratios, loser_log_ratios = (x.clamp(*bounds) for x in (winner_log_ratios, loser_log_ratios))
    losses = F.softplus(-beta * (winner_log_ratios - loser_log_ratios))
    return losses.mean() if mask is None else (losses * mask).mean()


@dataclass
class SPO(Objective):
    """SPO with the trained model's own chain of stochastic DDIM moves.

    Candidates of a state are exchangeable, so the chain goes on from the first of them, whatever its score: that is the
    random choice the paper asks for.

    Args:
        beta (`float`, *optional*, defaults to 10): see `spo_loss`.
        clip (`float`, *optional*, defaults to 0.1): see `spo_loss`.
        num_candidates (`int`, *optional*, defaults to 4): next states that are compared.
        chain_steps (`int`, *optional*, defaults to 20): moves from noise to image.
        first_step (`int`, *optional*, defaults to 4): moves before any comparison.
        states_per_prompt (`int`, *optional*, defaults to 4): compared states of each chain, drawn at random; the released
            code compares at every one, in several optimizer steps.
        threshold (`float`, *optional*, defaults to 0): difference of softmax([best, worst]) above which a state counts;
            the others add nothing to the mean over all states (the released code draws its batches from those kept).
        guidance_scale (`float`, *optional*, defaults to 5): of chain and loss; 1 halves the cost.
    """

    title: ClassVar[str] = "SPO"
    paper: ClassVar[str] = "2406.04314"
    beta: float = number(10.0, 0, above=True)
    clip: float = 0.1
    num_candidates: int = number(4, 2)
    chain_steps: int = number(20, 1)
    first_step: int = 4
    states_per_prompt: int = 4
    threshold: float = number(0.0, 0, 1)
    guidance_scale: float = number(5.0, 0)
    name: ClassVar[str] = "spo"
    unit: ClassVar[str] = "prompt"
    uses_reference: ClassVar[bool] = True
    uses_reward: ClassVar[bool] = True
    own_noise: ClassVar[bool] = True
    follows_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip != math.inf:
            check_range("clip", self.clip, 0, above=True)
        check_range("first_step", self.first_step, 0, self.chain_steps - 1)
        available = self.chain_steps - self.first_step
        if not 1 <= self.states_per_prompt <= available:
            expected = f"expected 1 to {available} (--chain_steps less --first_step)"
            raise UserError(f"--states_per_prompt: {expected}, found {self.states_per_prompt}")

    @torch.no_grad()
    def prepare(self, batch: Batch, context: Context) -> Batch:
        """Runs the chains; rows are [states with caption, the same states with the empty caption]."""
        shape, conditioning = batch.latents.shape[1:], batch.conditioning
        device, count, path = batch.latents.device, len(batch.latents), context.path
        check_range("chain_steps", self.chain_steps, 1, len(path) // 2)  # the last move must not start at t = 0
        grid = inversion_times(len(path), self.chain_steps)[::-1]
        empty = context.empty_conditioning(conditioning)
        order = context.uniform("states", self.chain_steps - self.first_step).argsort(1)
        chosen = order[:, : self.states_per_prompt].to(device) + self.first_step  # (B, states)
        current = context.normal("start", *shape).to(batch.latents)
        parts = []
        for step, time in enumerate(grid):
            times = torch.full((count,), time, device=device)
            here = path.levels[time].expand(count)
            # The last move ends at time 0, which still has a spread, and is judged as the clean image.
            following = grid[step + 1] if step + 1 < len(grid) else 0
            there = path.levels[following].expand(count)
            output = guided(context.predict, current, times, conditioning, empty, self.guidance_scale)
            mean, sigma = path.random_move(current, output, here, there)
            candidates = context.normal(f"move {step}", self.num_candidates, *shape).to(mean)
            candidates = mean[:, None] + base.per_row(sigma, candidates) * candidates  # (B, k, C, h, w)
            active = (chosen == step).any(1).nonzero()[:, 0]
            if len(active):
                compared = self._compare(candidates[active], active, following, conditioning, context)
                parts.append((active, current[active], times[active], here[active], there[active], *compared))
            current = candidates[:, 0]
        unit, states, times, here, there, best, worst, gap = (torch.cat(values) for values in zip(*parts))
        wide = {name: value[unit] for name, value in conditioning.items()}
        if self.guidance_scale != 1.0:
            wide = {name: torch.cat([value, empty[name][unit]]) for name, value in wide.items()}
            times = times.repeat(2)
        noisy = states.repeat(len(times) // len(states), 1, 1, 1)
        extras = {"path": path, "states": states, "from": here, "to": there, "best": best, "worst": worst, "gap": gap}
        unweighted = torch.zeros(len(noisy), device=device)
        return Batch(noisy, times, path.labels[times], wide, torch.zeros_like(noisy), unweighted, extras=extras)

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        extras = batch.extras
        outputs = prediction.float(), reference.float()
        if self.guidance_scale != 1.0:
            outputs = [guide(output, self.guidance_scale) for output in outputs]
        move = extras["path"].random_move
        (mean, sigma), (frozen, _) = (move(extras["states"], o, extras["from"], extras["to"]) for o in outputs)
        winners, losers = (spo_log_ratios(extras[name], mean, frozen, sigma) for name in ("best", "worst"))
        mask = extras["gap"] > self.threshold
        metrics = {"accuracy": base.order_accuracy(-winners, -losers), "states_used": mask.double().mean()}
        return LossOutput(spo_loss(winners, losers, self.beta, self.clip, mask), metrics)

    def _compare(
        self, candidates: torch.Tensor, unit: torch.Tensor, time: int, conditioning: dict, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Best and worst (b, C, h, w) of (b, k, C, h, w) candidates at `time`, and how sure it is, in [0, 1)."""
        owner, clean = unit.repeat_interleave(self.num_candidates), candidates.flatten(0, 1)
        if time > 0:
            wide = {name: value[owner] for name, value in conditioning.items()}
            output = context.predict(clean, torch.full_like(owner, time), wide)
            clean = context.path.clean(clean, output, context.path.levels[time].expand(len(owner)))
        best, worst, gap, _ = base.best_and_worst(context.score(clean, owner).reshape(candidates.shape[:2]))
        place = torch.arange(len(candidates), device=clean.device)
        sure = torch.tanh(gap / 2)  # softmax([a, b])_1 - softmax([a, b])_2; 0 where not two rewards are finite
        return candidates[place, best], candidates[place, worst], sure
