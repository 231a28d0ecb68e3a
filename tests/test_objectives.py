# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT's loss against closed forms, DPO's gradient and the first-order theorem (arXiv 2603.18991, theorem 3.1)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from objective_driver import SHAPE, gradient, random_latents, small_net

from diffusers_craft import craft_loss, denoising_errors
from diffusers_craft.scripts import NoisePath, transform_advantages


@pytest.fixture
def net():
    """A stand-in for the UNet: (B, 4, 3, 3) -> (B, 4, 3, 3), in float64."""
    return small_net()


def _errors(net: torch.nn.Module, noisy: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Like `denoising_errors`, but in float64, for tests that need more digits."""
    return (net(noisy) - target).square().flatten(1).mean(1)


def test_loss_by_hand():
    prediction, target = torch.zeros(3, 2, 1, 1), torch.zeros(3, 2, 1, 1)
    target[0] = 2.0  # error 4
    target[1, 0] = 2.0  # error (4 + 0) / 2
    advantages = torch.tensor([1.0, -0.5, 3.0])
    assert craft_loss(prediction, target, advantages).item() == pytest.approx((4 - 0.5 * 2 + 0) / 3)
    assert denoising_errors(prediction, target).tolist() == [4.0, 2.0, 0.0]


def test_weights_of_one_are_plain_fine_tuning_bit_for_bit():
    prediction, target = random_latents(5).float().requires_grad_(), random_latents(5, seed=2).float()
    craft = craft_loss(prediction, target, torch.ones(5))
    (craft_gradient,) = torch.autograd.grad(craft, prediction)
    sft = (prediction - target).square().flatten(1).mean(1).mean()
    (sft_gradient,) = torch.autograd.grad(sft, prediction)
    assert torch.equal(craft, sft) and torch.equal(craft_gradient, sft_gradient)
    assert craft.item() == pytest.approx(F.mse_loss(prediction, target).item(), rel=1e-6)


def test_the_mean_is_over_rows_not_over_weights():
    prediction, target, advantages = random_latents(4), random_latents(4, seed=2), torch.tensor([0.1, 0.2, 0.3, -0.4])
    halves = [craft_loss(prediction[i], target[i], advantages[i]) for i in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(craft_loss(prediction, target, advantages), sum(halves) / 2)


def test_predicting_nothing_costs_the_variance_of_the_noise():
    """E[m] = 1, to three deviations sqrt(2 / (B D)) of its estimate."""
    rows = 200
    errors = denoising_errors(torch.zeros(rows, *SHAPE), random_latents(rows))
    assert errors.mean().item() == pytest.approx(1, abs=3 * (2 / errors.numel() / 36) ** 0.5)


@pytest.mark.parametrize("abar", [0.9, 0.5, 0.1])
def test_the_minimum_for_gaussian_data(abar):
    """For x_0 ~ N(0, s2) the loss of slope * x_t is least at sqrt(1 - abar) / d, with value abar s2 / d, d = abar s2 + 1 -
    abar; it is quadratic, so that one Newton step finds the place."""
    variance, rows = 0.8, 2000
    clean, noise = variance**0.5 * random_latents(rows), random_latents(rows, seed=2)
    noisy, total = abar**0.5 * clean + (1 - abar) ** 0.5 * noise, abar * variance + 1 - abar
    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss(at):
        return craft_loss(at * noisy, noise, torch.ones(rows))

    (pull,) = torch.autograd.grad(loss(slope), slope, create_graph=True)
    (curvature,) = torch.autograd.grad(pull, slope)
    best = (slope - pull / curvature).detach()
    assert best.item() == pytest.approx((1 - abar) ** 0.5 / total, rel=0.02)
    assert loss(best).item() == pytest.approx(abar * variance / total, rel=0.02)


def test_half_precision_predictions_are_compared_in_float32():
    prediction, target = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16), torch.zeros(1, 1, 1, 1)
    assert craft_loss(prediction, target, torch.ones(1)).item() == 90000.0  # more than float16 holds


def test_gradient_for_two_candidates_is_that_of_dpo_at_the_reference(net):
    """With A = (+1, -1), shared noise and theta = ref: grad L_CRAFT = (2 / beta) grad L_DPO (L_CRAFT = sum A m / 2)."""
    beta, pairs = 5000.0, 6
    timestep_noise, target = random_latents(pairs), random_latents(pairs, seed=2)
    winner, loser = random_latents(pairs, seed=3) + timestep_noise, random_latents(pairs, seed=4) + timestep_noise
    reference = copy.deepcopy(net).requires_grad_(False)
    noisy, targets = torch.cat([winner, loser]), torch.cat([target, target])
    advantages = torch.cat([torch.ones(pairs), -torch.ones(pairs)]).double()
    change = _errors(net, noisy, targets) - _errors(reference, noisy, targets)
    dpo = F.softplus(0.5 * beta * (change[:pairs] - change[pairs:])).mean()
    craft = (advantages * _errors(net, noisy, targets)).sum() / (2 * pairs)
    torch.testing.assert_close(gradient(craft, net), 2 / beta * gradient(dpo, net), rtol=1e-10, atol=1e-14)
    ours = gradient(craft_loss(net(noisy), targets, advantages), net)
    torch.testing.assert_close(ours, 2 / beta * gradient(dpo, net), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_lowers_the_error_of_good_rows_and_raises_that_of_bad_rows(net, sign):
    noisy, target = random_latents(1), random_latents(1, seed=2)
    before = denoising_errors(net(noisy), target).item()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    craft_loss(net(noisy), target, torch.tensor([sign])).backward()
    optimizer.step()
    assert (denoising_errors(net(noisy), target).item() - before) * sign < 0


@pytest.mark.parametrize("zero_sum", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_policy_gradient_surrogate_has_the_opposite_gradient(net, zero_sum, weighted):
    """G1: J(theta) = mean_i A_i exp(M_i(old) - M_i(theta)) and L = mean_i A_i M_i have opposite gradients at old."""
    group, draws = 8, 5
    advantages = random_latents(group, seed=5)[:, 0, 0, 0] + (0.0 if zero_sum else 1.0)
    advantages = advantages - advantages.mean() if zero_sum else advantages
    weights = torch.linspace(0.5, 2.0, draws).double() if weighted else torch.ones(draws).double()
    noisy = [random_latents(group, seed=10 + k) for k in range(draws)]  # the same draws in both
    targets = [random_latents(group, seed=50 + k) for k in range(draws)]

    def expected_errors():
        errors = [w * _errors(net, x, y) for w, x, y in zip(weights, noisy, targets, strict=True)]
        return torch.stack(errors).mean(0)

    old = expected_errors().detach()
    surrogate = (advantages * torch.exp(old - expected_errors())).mean()
    loss = (advantages * expected_errors()).mean()
    torch.testing.assert_close(gradient(surrogate, net), -gradient(loss, net), rtol=0, atol=1e-10)
    if not weighted:
        ours = sum(craft_loss(net(x), y, advantages) for x, y in zip(noisy, targets, strict=True)) / draws
        torch.testing.assert_close(gradient(ours, net), gradient(loss, net), rtol=1e-4, atol=1e-6)


def test_clipped_advantages_make_the_theorem_an_inequality(net):
    """J - (C - L) = mean A q(dM) with q(z) = exp(-z) - 1 + z >= 0: signed weights violate J >= C - L, clipped do not."""
    group, violations = 4, 0
    noisy, target = random_latents(group), random_latents(group, seed=2)
    old = _errors(net, noisy, target).detach()
    for trial in range(40):
        advantages = random_latents(group, seed=100 + trial)[:, 0, 0, 0]
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in moved.parameters():
                generator = torch.Generator().manual_seed(trial)
                parameter += 1e-2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        change = _errors(moved, noisy, target).detach() - old

        def gap(a, change=change):
            return (a * (torch.exp(-change) - 1 + change)).mean().item()

        assert gap(transform_advantages(advantages, clip_min=0.0)) >= 0
        violations += gap(transform_advantages(advantages)) < 0
    assert violations > 0


def test_timestep_weights_multiply_the_rows():
    prediction, target, advantages = random_latents(3), random_latents(3, seed=2), torch.tensor([1.0, -0.5, 2.0])
    weights = torch.tensor([0.25, 2.0, 0.0])
    by_hand = sum(w * a * e for w, a, e in zip(weights, advantages, denoising_errors(prediction, target), strict=True))
    torch.testing.assert_close(craft_loss(prediction, target, advantages, weights), by_hand / 3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_clean_image(prediction_type):
    """Whatever the model predicts: the weight times its error is min(SNR, gamma) times the implied error of x_0."""
    gamma, abar = 5.0, torch.tensor([0.99, 0.9, 0.5, 0.05], dtype=torch.float64)
    clean, noise, wrong = random_latents(4), random_latents(4, seed=2), random_latents(4, seed=3)
    signal, sigma = (value.sqrt()[:, None, None, None] for value in (abar, 1 - abar))
    noisy = signal * clean + sigma * noise
    target, implied = {
        "epsilon": (noise, (noisy - sigma * wrong) / signal),
        "v_prediction": (signal * noise - sigma * clean, signal * noisy - sigma * wrong),
        "sample": (clean, wrong),
    }[prediction_type]
    weights = NoisePath(prediction_type, abar, torch.arange(4)).min_snr_weights(torch.arange(4), gamma)
    of_prediction, of_clean = (
        (guess - truth).square().flatten(1).mean(1) for guess, truth in ((wrong, target), (implied, clean))
    )
    expected = (abar / (1 - abar)).clamp(max=gamma) * of_clean
    torch.testing.assert_close(weights.double() * of_prediction, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("prediction_type", "last"), [("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)])
def test_min_snr_is_finite_where_there_is_only_noise(prediction_type, last):
    path = NoisePath(prediction_type, torch.tensor([0.9, 0.0]), torch.arange(2))
    assert path.min_snr_weights(torch.tensor([1]), 5.0).tolist() == [last]


def test_transform_advantages():
    advantages = torch.tensor([-2.0, -0.1, 0.0, 1.5])
    assert transform_advantages(advantages).tolist() == advantages.tolist()
    assert transform_advantages(advantages, clip_min=-0.5).tolist() == pytest.approx([-0.5, -0.1, 0.0, 1.5])
