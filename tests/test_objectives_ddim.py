# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""DDIM moves and inversion: diffusers' schedulers as the oracle, closed forms, and orders of convergence."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from diffusers_craft.objectives.ddim import (
    clean_estimate,
    ddim_mean_std,
    ddim_move,
    ddim_sample,
    implied_noise,
    inversion_times,
    invert,
)


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
ALPHAS = DDIMScheduler(**SCHEDULE).alphas_cumprod.double()
SHAPE = (4, 3, 3)


def _random(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _optimal(latents, timesteps, rows=None, variance=0.8):
    """The exact noise prediction for data from N(0, variance)."""
    abar = ALPHAS[timesteps].reshape(-1, 1, 1, 1)
    return (1 - abar).sqrt() * latents / (abar * variance + 1 - abar)


def test_inversion_matches_the_inverse_scheduler_of_diffusers():
    """Its labels 1, 201, ..., 801: a step ends at its label, the first one starts from abar = 1."""
    scheduler = DDIMInverseScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    latents = expected = _random(2)
    for label in scheduler.timesteps:
        expected = scheduler.step(_optimal(expected, label.expand(2)), label, expected).prev_sample
    found = invert(latents, torch.tensor([5, 5]), scheduler.timesteps.tolist(), ALPHAS, _optimal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # the scheduler's tables are float32


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_moves_match_the_ddim_scheduler(eta):
    scheduler = DDIMScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(20)
    noisy, noise, fresh = _random(3), _random(3, 1), _random(3, 2)
    for label in (901, 451, 51):
        here, there = ALPHAS[label].expand(3), ALPHAS[label - 50].expand(3)
        expected = scheduler.step(noise, label, noisy, eta=eta, variance_noise=fresh if eta else None).prev_sample
        mean, sigma = ddim_mean_std(noisy, noise, here, there, eta)
        torch.testing.assert_close(mean + sigma[0] * fresh, expected, rtol=1e-5, atol=1e-5)
        variance = scheduler._get_variance(label, label - 50).item()
        assert sigma[0].item() == pytest.approx(eta * variance**0.5, rel=1e-4)
        if not eta:
            torch.testing.assert_close(ddim_move(noisy, noise, here, there), mean)


def test_rows_may_stand_at_different_times():
    noisy, noise = _random(3), _random(3, 1)
    here, there = ALPHAS[[100, 500, 900]], ALPHAS[[50, 100, 850]]
    together = ddim_move(noisy, noise, here, there)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], ddim_move(noisy[one], noise[one], here[one], there[one]))


@pytest.mark.parametrize("renoise", ["none", "final", "every"])
def test_a_model_that_predicts_a_constant_is_inverted_exactly(renoise):
    latents, noise = _random(3), _random(1, 5)
    num_steps, times = torch.tensor([1, 4, 9]), inversion_times(1000, 9)

    def predict(x, t, rows):
        return noise.expand_as(x)

    noisy = invert(latents, num_steps, times, ALPHAS, predict, renoise)
    abar = ALPHAS[[times[step - 1] for step in num_steps]]
    torch.testing.assert_close(implied_noise(noisy, latents, abar), noise.expand(3, *SHAPE), rtol=0, atol=1e-12)
    torch.testing.assert_close(clean_estimate(noisy, noise, abar), latents, rtol=0, atol=1e-12)
    shifted = invert(latents, num_steps, times, ALPHAS, predict, renoise, abar_start=float(ALPHAS[0]))
    assert (implied_noise(shifted, latents, abar) - noise).abs().max() > 1e-2  # abar_0 is not 1


def test_a_model_that_predicts_nothing():
    latents = _random(2)
    noisy = invert(latents, torch.tensor([2, 3]), [100, 300, 600], ALPHAS, lambda x, t, rows: torch.zeros_like(x))
    abar = ALPHAS[[300, 600]]
    torch.testing.assert_close(noisy, abar.sqrt().reshape(-1, 1, 1, 1) * latents)
    torch.testing.assert_close(implied_noise(noisy, latents, abar), torch.zeros_like(noisy), rtol=0, atol=1e-14)


def _round_trip_error(num_steps: int, mode: str) -> float:
    """Relative error of clean -> noise -> clean with the optimal model, stepping alike in both directions."""
    latents, times = _random(2), inversion_times(1000, num_steps)
    steps = torch.full((2,), num_steps)
    if mode == "last_iterate":  # every step repeated with the second prediction alone
        noisy = latents
        for step in range(num_steps):
            previous = times[step - 1] if step else None
            noisy = _last_iterate_step(noisy, previous, times[step])
    else:
        noisy = invert(latents, steps, times, ALPHAS, _optimal, mode)
    back = ddim_sample(noisy, num_steps, ALPHAS, lambda x, t: _optimal(x, t))
    return ((back - latents).norm() / latents.norm()).item()


def _last_iterate_step(noisy, previous, time):
    """One step of `invert` with renoise `final`, started from any time."""
    here = torch.ones(()).double() if previous is None else ALPHAS[previous]
    label = torch.full((len(noisy),), time)
    first = ddim_move(noisy, _optimal(noisy, label), here.expand(2), ALPHAS[time].expand(2))
    return ddim_move(noisy, _optimal(first, label), here.expand(2), ALPHAS[time].expand(2))


def test_renoise_lowers_the_round_trip_error_and_raises_its_order():
    """Plain inversion and the mean of two predictions are O(1/n), half the constant for the latter; the last iterate
    is O(1/n^2)."""
    errors = {
        mode: [_round_trip_error(n, mode) for n in (5, 10, 50, 100)] for mode in ("none", "every", "last_iterate")
    }
    for plain, averaged, last in zip(*errors.values(), strict=True):
        assert plain > averaged > last
    assert errors["none"][2] / errors["none"][3] == pytest.approx(2, rel=0.15)
    assert errors["every"][2] / errors["every"][3] == pytest.approx(2, rel=0.15)
    assert errors["every"][3] / errors["none"][3] == pytest.approx(0.5, rel=0.1)
    assert errors["last_iterate"][2] / errors["last_iterate"][3] == pytest.approx(4, rel=0.25)


def test_final_renoise_repeats_the_last_step_of_each_row_only():
    latents, times, steps = _random(2), [200, 500, 900], torch.tensor([1, 3])
    plain = invert(latents, torch.tensor([3, 2]), times, ALPHAS, _optimal)
    found = invert(latents, steps, times, ALPHAS, _optimal, "final")
    torch.testing.assert_close(found[:1], _last_iterate_step(latents[:1].repeat(2, 1, 1, 1), None, 200)[:1])
    torch.testing.assert_close(found[1:], _last_iterate_step(plain[1:].repeat(2, 1, 1, 1), 500, 900)[:1])


def test_inversion_times():
    assert inversion_times(1000, 5) == [199, 399, 599, 799, 999]
    times = inversion_times(1000, 9)
    assert times[-1] == 999 and len(set(times)) == 9 and min(times) > 0


def test_rows_without_steps_stay_and_unknown_modes_are_refused():
    latents = _random(2)
    found = invert(latents, torch.tensor([0, 1]), [500], ALPHAS, _optimal)
    assert torch.equal(found[0], latents[0]) and not torch.equal(found[1], latents[1])
    with pytest.raises(ValueError, match="--renoise: expected one of none, final, every, found 'twice'"):
        invert(latents, torch.tensor([1, 1]), [500], ALPHAS, _optimal, "twice")


def test_sampling_follows_the_probability_flow():
    """For Gaussian data the flow scales noise by the data's deviation; many small moves come close to it."""
    noise = _random(4)
    clean = ddim_sample(noise, 500, ALPHAS, lambda x, t: _optimal(x, t))
    end = ALPHAS[-1]
    expected = noise * (0.8 / (end * 0.8 + 1 - end)) ** 0.5
    torch.testing.assert_close(clean, expected, rtol=0.02, atol=1e-3)
