# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT's theorem 3.1 on a diffusion whose likelihood is known: what holds, and what does not (docs/theory.md).

Data are numbers; every reverse step is Gaussian with an affine noise prediction a_t x + b_t, so that log p_theta(x_0), the
expected denoising errors and all their gradients are closed forms. G1, the gradient identity on a network, is in
test_objectives.py.
"""

import math

import pytest
import torch

from diffusers_craft.scripts import transform_advantages


STEPS = 20
BETAS = torch.linspace(1e-2, 0.35, STEPS, dtype=torch.float64)
ALPHAS = 1 - BETAS
ABAR = ALPHAS.cumprod(0)
ONES = torch.ones(STEPS, dtype=torch.float64)
# ELBO weight of the noise error for uniform t (DDPM, arXiv 2006.11239, eq. 12, with reverse variance beta_t), times T.
ELBO = STEPS * BETAS**2 / (2 * BETAS * ALPHAS * (1 - ABAR))
DATA_MEAN, DATA_VARIANCE = 0.3, 0.5
GROUP = 8


def optimal_model(spread: float = 0.0) -> torch.Tensor:
    """(2, T) a_t and b_t of the best noise prediction, perturbed by `spread`."""
    slope = (1 - ABAR).sqrt() / (ABAR * DATA_VARIANCE + 1 - ABAR)
    model = torch.stack([slope, -slope * ABAR.sqrt() * DATA_MEAN])
    return model + spread * torch.randn(model.shape, generator=_generator(7), dtype=torch.float64)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marginal(model: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of x_0: the reverse chain is affine with Gaussian noise."""
    mean, variance = torch.zeros(()).double(), torch.ones(()).double()
    for t in reversed(range(STEPS)):
        pull = BETAS[t] / (1 - ABAR[t]).sqrt()
        factor = (1 - pull * model[0, t]) / ALPHAS[t].sqrt()
        mean = factor * mean - pull * model[1, t] / ALPHAS[t].sqrt()
        variance = factor**2 * variance + BETAS[t]
    return mean, variance


def log_likelihood(x: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    mean, variance = marginal(model)
    return -0.5 * (2 * math.pi * variance).log() - (x - mean) ** 2 / (2 * variance)


def denoising_errors(x: torch.Tensor, model: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """M_i: exact expectation over t and noise of w_t (a (sqrt(abar) x + sqrt(1 - abar) eps) + b - eps)^2."""
    bias = model[0] * ABAR.sqrt() * x[:, None] + model[1]
    spread = model[0] * (1 - ABAR).sqrt() - 1
    return (weights * (bias**2 + spread**2)).mean(1)


def draw_group(model: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A group from the model itself and its advantages for the reward -(x - 1)^2."""
    mean, variance = (value.detach() for value in marginal(model))
    x = mean + variance.sqrt() * torch.randn(GROUP, generator=_generator(seed), dtype=torch.float64)
    rewards = -((x - 1) ** 2)
    return x, (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-8)


def gap(x: torch.Tensor, advantages: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> float:
    """J(new) - (C - L(new)), which the theorem says is at least 0: mean A (exp(-dM) - 1 + dM)."""
    change = denoising_errors(x, new, ELBO) - denoising_errors(x, old, ELBO)
    return (advantages * (torch.expm1(-change) + change)).mean().item()


def _gradient(value: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, model)[0].flatten()


def _direction(seed: int) -> torch.Tensor:
    direction = torch.randn(2, STEPS, generator=_generator(seed), dtype=torch.float64)
    return direction / direction.norm()


def test_the_surrogate_differs_from_the_loss_in_second_order_only():
    """G2: |J - (C - L)| / eta^2 tends to a constant."""
    model = optimal_model()
    x, advantages = draw_group(model, 1)
    ratios = [gap(x, advantages, model, model + eta * _direction(2)) / eta**2 for eta in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert abs(ratios[-1]) > 1e-5
    for ratio, tolerance in zip(ratios, (0.7, 0.1, 0.01), strict=False):  # tenfold closer with each tenth of the step
        assert ratio == pytest.approx(ratios[-1], rel=tolerance)


def test_the_inequality_fails_for_signed_advantages_and_holds_for_clipped_ones():
    """G2: with group advantages as the paper has them, J >= C - L is wrong more often than it is right."""
    model, trials = optimal_model(), 400
    signed, clipped = 0, 0
    for trial in range(trials):
        x, advantages = draw_group(model, 10 + trial)
        new = model + 1e-3 * _direction(1000 + trial)
        signed += gap(x, transform_advantages(advantages), model, new) < 0
        clipped += gap(x, transform_advantages(advantages, clip_min=0.0), model, new) < 0
    assert 0.55 < signed / trials < 0.75
    assert clipped == 0


def test_the_inequality_holds_far_away_for_clipped_advantages_too():
    model = optimal_model()
    x, advantages = draw_group(model, 1)
    clipped = transform_advantages(advantages, clip_min=0.0)
    assert all(gap(x, clipped, model, model + eta * _direction(seed)) >= 0 for seed in range(20) for eta in (0.1, 1.0))


def test_a_counterexample_by_hand():
    """G = 2, A = (+1, -1): an unlearnt image whose error moves by z makes the gap -q(z) / 2, q(z) = exp(-z) - 1 + z."""
    for z in (-0.5, 0.5):
        changes, advantages = torch.tensor([0.0, z]), torch.tensor([1.0, -1.0])
        found = (advantages * (torch.exp(-changes) - 1 + changes)).mean().item()
        assert found == pytest.approx(-(math.exp(-z) - 1 + z) / 2, abs=1e-7) and found < 0


@pytest.mark.parametrize(
    ("spread", "weights", "lowest"),
    [(0.0, ELBO, 0.999), (0.0, ONES, 0.95), (0.05, ELBO, 0.98), (0.2, ELBO, 0.85), (0.2, ONES, 0.85)],
    ids=["optimal", "optimal, w=1", "near", "far", "far, w=1"],
)
def test_the_loss_descends_along_the_policy_gradient(spread, weights, lowest):
    """G3: -grad L against the exact mean A grad log p. At the optimum and with the ELBO's weights they are one direction;
    without weights (as CRAFT trains), or away from the optimum, they agree less."""
    model = optimal_model(spread).requires_grad_()
    cosines = []
    for seed in range(40):
        x, advantages = draw_group(model, seed)
        exact = _gradient((advantages * log_likelihood(x, model)).mean(), model)
        ours = -_gradient((advantages * denoising_errors(x, model, weights)).mean(), model)
        cosines.append(torch.cosine_similarity(exact, ours, dim=0).item())
    assert sum(cosines) / len(cosines) > lowest


@pytest.mark.parametrize("weights", [ELBO, ONES], ids=["elbo", "w=1"])
def test_a_step_along_the_loss_raises_the_expected_reward(weights):
    """G4: E[-(x - 1)^2] = -((mu - 1)^2 + v) rises in nearly every group, and about as fast as along the exact gradient."""
    model = optimal_model().requires_grad_()

    def expected_reward(at: torch.Tensor) -> torch.Tensor:
        mean, variance = marginal(at)
        return -((mean - 1) ** 2 + variance)

    slope, ours, exact = _gradient(expected_reward(model), model), [], []
    for seed in range(60):
        x, advantages = draw_group(model, seed)
        direction = -_gradient((advantages * denoising_errors(x, model, weights)).mean(), model)
        ours.append((slope @ direction / direction.norm()).item())
        best = _gradient((advantages * log_likelihood(x, model)).mean(), model)
        exact.append((slope @ best / best.norm()).item())
    assert sum(gain > 0 for gain in ours) >= len(ours) - 1  # 99 % of groups
    assert sum(ours) > 0.9 * sum(exact) > 0


def test_the_elbo_weights_give_the_bound_its_name():
    """-M with the ELBO's weights differs from log p by a gap that is the same for every x at the optimum, to 1e-2."""
    model = optimal_model()
    x = torch.linspace(-1, 1.5, 6, dtype=torch.float64)
    rest = log_likelihood(x, model) + denoising_errors(x, model, ELBO)
    weighted = (rest.max() - rest.min()).item()
    unweighted = log_likelihood(x, model) + denoising_errors(x, model, ONES)
    assert weighted < 0.1 * (unweighted.max() - unweighted.min()).item()
