# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Chains of DDIM moves and their inversion: diffusers' schedulers as the oracle, closed forms, orders of convergence."""

import pytest
import torch
from diffusers import DDIMInverseScheduler
from objective_driver import ALPHAS, PATH, SCHEDULE, SHAPE, random_latents

from diffusers_craft.objectives.chains import inversion_times, invert, sample


def _optimal(latents, times, rows=None, variance=0.8):
    """The exact noise prediction for data from N(0, variance)."""
    abar = ALPHAS[times].reshape(-1, 1, 1, 1)
    return (1 - abar).sqrt() * latents / (abar * variance + 1 - abar)


def test_inversion_matches_the_inverse_scheduler_of_diffusers():
    """Its labels 1, 201, ..., 801: a step ends at its label, the first one starts from abar = 1."""
    scheduler = DDIMInverseScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    latents = expected = random_latents(2)
    for label in scheduler.timesteps:
        expected = scheduler.step(_optimal(expected, label.expand(2)), label, expected).prev_sample
    found = invert(latents, torch.tensor([5, 5]), scheduler.timesteps.tolist(), PATH, _optimal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # the scheduler's tables are float32


@pytest.mark.parametrize("renoise", ["none", "final", "every"])
def test_a_model_that_predicts_a_constant_is_inverted_exactly(renoise):
    latents, noise = random_latents(3), random_latents(1, 5)
    num_steps, times = torch.tensor([1, 4, 9]), inversion_times(1000, 9)

    def predict(x, t, rows):
        return noise.expand_as(x)

    noisy = invert(latents, num_steps, times, PATH, predict, renoise)
    abar = ALPHAS[[times[step - 1] for step in num_steps]]
    torch.testing.assert_close(PATH.implied_noise(noisy, latents, abar), noise.expand(3, *SHAPE), rtol=0, atol=1e-12)
    torch.testing.assert_close(PATH.clean(noisy, noise.expand(3, *SHAPE), abar), latents, rtol=0, atol=1e-12)
    shifted = invert(latents, num_steps, times, PATH, predict, renoise, start_level=float(ALPHAS[0]))
    assert (PATH.implied_noise(shifted, latents, abar) - noise).abs().max() > 1e-2  # abar_0 is not 1


def test_a_model_that_predicts_nothing():
    latents = random_latents(2)
    noisy = invert(latents, torch.tensor([2, 3]), [100, 300, 600], PATH, lambda x, t, rows: torch.zeros_like(x))
    abar = ALPHAS[[300, 600]]
    torch.testing.assert_close(noisy, abar.sqrt().reshape(-1, 1, 1, 1) * latents)
    torch.testing.assert_close(PATH.implied_noise(noisy, latents, abar), torch.zeros_like(noisy), rtol=0, atol=1e-14)


def _optimal_sample(noise: torch.Tensor, num_steps: int) -> torch.Tensor:
    times = inversion_times(1000, num_steps)[::-1]
    return sample(noise, ALPHAS[times].tolist(), PATH, lambda x, step: _optimal(x, times[step]))


def _round_trip_error(num_steps: int, mode: str) -> float:
    """Relative error of clean -> noise -> clean with the optimal model, stepping alike in both directions."""
    latents, times = random_latents(2), inversion_times(1000, num_steps)
    steps = torch.full((2,), num_steps)
    if mode == "last_iterate":  # every step repeated with the second prediction alone
        noisy = latents
        for step in range(num_steps):
            previous = times[step - 1] if step else None
            noisy = _last_iterate_step(noisy, previous, times[step])
    else:
        noisy = invert(latents, steps, times, PATH, _optimal, mode)
    back = _optimal_sample(noisy, num_steps)
    return ((back - latents).norm() / latents.norm()).item()


def _last_iterate_step(noisy, previous, time):
    """One step of `invert` with renoise `final`, started from any time."""
    here = torch.ones(()).double() if previous is None else ALPHAS[previous]
    label = torch.full((len(noisy),), time)
    first = PATH.move(noisy, _optimal(noisy, label), here.expand(2), ALPHAS[time].expand(2))
    return PATH.move(noisy, _optimal(first, label), here.expand(2), ALPHAS[time].expand(2))


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
    latents, times, steps = random_latents(2), [200, 500, 900], torch.tensor([1, 3])
    plain = invert(latents, torch.tensor([3, 2]), times, PATH, _optimal)
    found = invert(latents, steps, times, PATH, _optimal, "final")
    torch.testing.assert_close(found[:1], _last_iterate_step(latents[:1].repeat(2, 1, 1, 1), None, 200)[:1])
    torch.testing.assert_close(found[1:], _last_iterate_step(plain[1:].repeat(2, 1, 1, 1), 500, 900)[:1])


def test_inversion_times():
    assert inversion_times(1000, 5) == [199, 399, 599, 799, 999]
    times = inversion_times(1000, 9)
    assert times[-1] == 999 and len(set(times)) == 9 and min(times) > 0


def test_rows_without_steps_stay():
    latents = random_latents(2)
    found = invert(latents, torch.tensor([0, 1]), [500], PATH, _optimal)
    assert torch.equal(found[0], latents[0]) and not torch.equal(found[1], latents[1])


def test_sampling_follows_the_probability_flow():
    """For Gaussian data the flow scales noise by the data's deviation; many small moves come close to it."""
    noise = random_latents(4)
    clean = _optimal_sample(noise, 500)
    end = ALPHAS[-1]
    expected = noise * (0.8 / (end * 0.8 + 1 - end)) ** 0.5
    torch.testing.assert_close(clean, expected, rtol=0.02, atol=1e-3)
