# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Noise paths of the four kinds: closed forms, and diffusers' schedulers and formulas as oracles."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from objective_driver import ALPHAS, COEFFICIENTS, SCHEDULE, SHAPE, random_latents

from diffusers_craft.models.noise import KINDS, Draw, diffuse
from diffusers_craft.scripts import NoisePath


VARIANCE_KINDS = KINDS[:3]
TIMES = [0, 300, 700, 998]
EXACT = {"rtol": 0, "atol": 1e-12}


def path_of(kind: str, **options) -> NoisePath:
    if kind == "flow":
        return NoisePath.from_scheduler(FlowMatchEulerDiscreteScheduler(**options))
    return NoisePath.from_scheduler(DDPMScheduler(**SCHEDULE, **options), kind)


def mixture(kind: str):
    """Path, levels of four rows, clean latents, noise, and what the table makes of them: x and o."""
    path = path_of(kind)
    levels, clean, noise = path.levels[TIMES], random_latents(4, 1), random_latents(4, 2)
    coefficients = [torch.as_tensor(value).expand(4).reshape(-1, 1, 1, 1) for value in COEFFICIENTS[kind](levels)]
    a, s, c, d = coefficients
    return path, levels, clean, noise, a * clean + s * noise, c * clean + d * noise


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_and_output_tell_the_clean_latents_and_the_noise(kind):
    path, levels, clean, noise, noisy, output = mixture(kind)
    torch.testing.assert_close(path.mix(clean, noise, levels), noisy, **EXACT)
    torch.testing.assert_close(path.target(clean, noise, levels), output, **EXACT)
    torch.testing.assert_close(path.clean(noisy, output, levels), clean, **EXACT)
    torch.testing.assert_close(path.noise(noisy, output, levels), noise, **EXACT)
    torch.testing.assert_close(path.implied_clean(noisy, noise, levels), clean, **EXACT)
    torch.testing.assert_close(path.implied_noise(noisy, clean, levels), noise, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_moves_keep_the_clean_latents_and_the_noise(kind):
    """Also up, to and from the clean latents, and with rows at different times."""
    path, levels, clean, noise, noisy, output = mixture(kind)
    for to_levels in (levels.flip(0), torch.full_like(levels, path.clean_level)):
        expected = path.mix(clean, noise, to_levels)
        torch.testing.assert_close(path.move(noisy, output, levels, to_levels), expected, **EXACT)
        torch.testing.assert_close(path.follow(noisy, noise, levels, to_levels), expected, **EXACT)
    at_clean = torch.full_like(levels, path.clean_level)
    assert torch.equal(path.follow(clean, noise, at_clean, levels), path.mix(clean, noise, levels))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_output_are_scaled_to_those_of_the_noise(kind):
    path, levels, _, noise, noisy, true = mixture(kind)
    wrong = random_latents(4, 3)
    of_output, of_noise = (
        (guess - truth).square().flatten(1).mean(1)
        for guess, truth in ((wrong, true), (path.noise(noisy, wrong, levels), noise))
    )
    scale = path.noise_error_scale(levels)
    assert (scale is None) == (kind == "epsilon")
    torch.testing.assert_close(of_output if scale is None else scale * of_output, of_noise, rtol=1e-9, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", VARIANCE_KINDS)
def test_moves_match_the_ddim_scheduler(kind, eta):
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=kind, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(20)
    path, noisy, output, fresh = path_of(kind), random_latents(3), random_latents(3, 2), random_latents(3, 3)
    for time in (901, 451, 51):
        here, there = ALPHAS[time].expand(3), ALPHAS[time - 50].expand(3)
        expected = scheduler.step(output, time, noisy, eta=eta, variance_noise=fresh if eta else None).prev_sample
        mean, sigma = path.random_move(noisy, output, here, there, eta)
        torch.testing.assert_close(mean + sigma[0] * fresh, expected, rtol=1e-5, atol=1e-5)
        assert sigma[0].item() == pytest.approx(eta * scheduler._get_variance(time, time - 50).item() ** 0.5, rel=1e-4)
        if not eta:
            torch.testing.assert_close(path.move(noisy, output, here, there), mean, **EXACT)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_moves_of_a_flow_are_euler_steps(shift):
    scheduler, path = FlowMatchEulerDiscreteScheduler(shift=shift), path_of("flow", shift=shift)
    scheduler.set_timesteps(8)
    noisy, output = random_latents(3).float(), random_latents(3, 2).float()
    for step, time in enumerate(scheduler.timesteps):
        here, there = (scheduler.sigmas[step + i].double().expand(3) for i in (0, 1))
        found = path.move(noisy, output, here, there)
        torch.testing.assert_close(found, noisy + (there - here)[0].float() * output, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found, scheduler.step(output, time, noisy).prev_sample, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_move_keeps_the_mixtures_coefficients(kind):
    """Of x = a x_0 + s n with the true output: mean and spread at the next time are a' x_0 and s' in all, at any eta."""
    path, levels, clean, noise, noisy, output = mixture(kind)
    levels, to_levels = levels[1:], path.levels[[200, 650, 990]]
    for eta in (0.0, 0.5, 1.0):
        mean, sigma = path.random_move(noisy[1:], output[1:], levels, to_levels, eta)
        a, s = path.mixing(to_levels, clean)
        left = (mean - a * clean[1:]) / noise[1:]  # what is left of the noise
        torch.testing.assert_close(left.square() + sigma.reshape(-1, 1, 1, 1).square(), s.square().expand_as(left))
    signal, noise_power = path.squares(levels)
    to_signal, to_noise = path.squares(to_levels)
    ratio = (signal / noise_power) / (to_signal / to_noise)
    torch.testing.assert_close(sigma.square(), to_noise * (1 - ratio))


@pytest.mark.parametrize("kind", KINDS)
def test_random_moves_from_pure_noise_are_finite(kind):
    """The first move where the last time has no signal; an epsilon model alone has no clean estimate there."""
    path = path_of(kind) if kind == "flow" else path_of(kind, rescale_betas_zero_snr=True)
    assert path.ends_without_signal
    noisy, output = random_latents(2), random_latents(2, 2)
    here, there = path.levels[-1].expand(2), path.levels[800].expand(2)
    mean, sigma = path.random_move(noisy, output, here, there)
    assert mean.isfinite().all() == (kind != "epsilon") and sigma.isfinite().all()
    assert path.move(noisy, output, here, there).isfinite().all() == (kind != "epsilon")
    torch.testing.assert_close(sigma.square(), path.squares(there)[1])  # nothing of the noise before is kept
    assert path_of("epsilon").ends_without_signal is False


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_error_of_the_clean_latents(kind):
    """min(SNR, gamma) s^2 / det^2."""
    path, times, gamma = path_of(kind), torch.arange(0, 1000, 37), 5.0
    a, s, c, d = (torch.as_tensor(value).double() for value in COEFFICIENTS[kind](path.levels[times]))
    expected = (a / s).square().clamp(max=gamma) * s.square() / (a * d - s * c).square()
    torch.testing.assert_close(path.min_snr_weights(times, gamma).double(), expected, rtol=1e-5, atol=0)


def test_min_snr_weights_are_those_of_diffusers_scripts():
    scheduler, times, gamma = DDPMScheduler(**SCHEDULE), torch.arange(0, 1000, 37), 5.0
    snr = compute_snr(scheduler, times)
    capped = snr.clamp(max=gamma)
    for kind, expected in {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}.items():
        found = NoisePath.from_scheduler(scheduler, kind).min_snr_weights(times, gamma)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_has_its_limit_where_there_is_no_signal(kind):
    path = path_of(kind) if kind == "flow" else path_of(kind, rescale_betas_zero_snr=True)
    assert path.min_snr_weights(torch.tensor([999]), 5.0).tolist() == [float(kind == "epsilon")]


def test_times_are_drawn_by_their_density():
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    assert path_of("epsilon").draw_times(uniform).bincount().tolist() == [200] * 1000
    found = path_of("flow").draw_times(uniform).double() / 1000
    torch.manual_seed(0)
    expected = compute_density_for_timestep_sampling("logit_normal", 200_000, logit_mean=0.0, logit_std=1.0).double()
    steps = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(found.quantile(steps), expected.quantile(steps), rtol=0, atol=5e-3)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for kind in KINDS:
        assert path_of(kind).draw_times(ends).tolist()[0] == 0 and path_of(kind).draw_times(ends).max() < 1000


@pytest.mark.parametrize("kind", VARIANCE_KINDS)
def test_mixtures_are_those_of_diffusers_bit_for_bit(kind):
    scheduler, times = DDPMScheduler(**SCHEDULE, prediction_type=kind), torch.tensor([0, 250, 500, 999])
    latents, noise = random_latents(4).float(), random_latents(4, 2).float()
    batch = diffuse(Draw(latents, noise, times, {}, torch.ones(4), times, times), NoisePath.from_scheduler(scheduler))
    assert torch.equal(batch.noisy_latents, scheduler.add_noise(latents, noise, times))
    velocity = scheduler.get_velocity(latents, noise, times)
    targets = {"epsilon": noise, "v_prediction": velocity, "sample": latents}
    assert torch.equal(batch.target, targets[kind]) and torch.equal(batch.timesteps, times)


def test_a_flow_is_trained_as_diffusers_scripts_train_it():
    """train_dreambooth_lora_sd3.py: x = (1 - sigma) x_0 + sigma n, target n - x_0, the model told 1000 sigma."""
    scheduler, times = FlowMatchEulerDiscreteScheduler(shift=3.0), torch.tensor([0, 250, 500, 999])
    latents, noise = random_latents(4).float(), random_latents(4, 2).float()
    path = NoisePath.from_scheduler(scheduler)
    batch = diffuse(Draw(latents, noise, times, {}, torch.ones(4), times, times), path)
    timesteps = scheduler.timesteps[999 - times]
    assert torch.equal(batch.timesteps, timesteps) and batch.timesteps.dtype == torch.float32
    torch.testing.assert_close(batch.noisy_latents, scheduler.scale_noise(latents, timesteps, noise))
    assert torch.equal(batch.target, noise - latents) and batch.noisy_latents.dtype == torch.float32
    scheduler.set_timesteps(7)
    assert torch.equal(NoisePath.from_scheduler(scheduler).levels, path.levels)  # whatever was sampled with it
    dynamic = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert torch.equal(NoisePath.from_scheduler(dynamic).levels.float(), torch.arange(1, 1001) / 1000)


SAMPLERS = ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete"]
SAMPLERS += ["KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"]
SAMPLERS += ["DEISMultistep", "SASolver", "LCM", "TCD", "DDIMParallel", "DDPMParallel"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_a_unet_means_the_same_path(name):
    kind = getattr(diffusers, f"{name}Scheduler")
    betas = {key: value for key, value in SCHEDULE.items() if key != "clip_sample"}
    expected = DDPMScheduler(**betas).alphas_cumprod.double()
    for scheduler in (kind(**betas), kind.from_config(DDIMScheduler(**SCHEDULE).config)):
        path = NoisePath.from_scheduler(scheduler)
        assert torch.equal(path.levels, expected) and path.kind == "epsilon" and path.density == "uniform"
        assert torch.equal(path.labels, torch.arange(1000)) and len(path) == 1000
    defaults = NoisePath.from_scheduler(kind())  # not DDPM's: LCM's and Heun's betas are others
    torch.testing.assert_close(defaults.levels.float(), kind().alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_the_config_says_the_rest():
    trained = torch.linspace(1e-4, 0.05, 50).tolist()
    path = NoisePath.from_scheduler(DDIMScheduler(trained_betas=trained, num_train_timesteps=50))
    torch.testing.assert_close(path.levels, (1 - torch.tensor(trained).double()).cumprod(0), rtol=1e-5, atol=0)
    assert len(path) == 50
    rescaled = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    path = NoisePath.from_scheduler(rescaled)
    assert path.ends_without_signal and path.kind == "v_prediction" and path.levels[0] == ALPHAS[0]
    assert NoisePath.from_scheduler(rescaled, "sample").kind == "sample"


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("EDMEulerScheduler", "found EDMEulerScheduler without beta_start, beta_end, beta_schedule"),
        ("EDMDPMSolverMultistepScheduler", "found EDMDPMSolverMultistepScheduler without beta_start"),
        ("FlowMatchHeunDiscreteScheduler", "found FlowMatchHeunDiscreteScheduler without beta_start"),
        ("DDPMWuerstchenScheduler", "found DDPMWuerstchenScheduler without beta_start"),
        ("CogVideoXDDIMScheduler", "a scheduler with snr_shift_scale 1.0, found CogVideoXDDIMScheduler with 3.0"),
    ],
)
def test_a_scheduler_that_is_not_understood_is_refused_by_name(scheduler, message):
    with pytest.raises(ValueError, match=f"^--pretrained_model_name_or_path: expected .*{message}"):
        NoisePath.from_scheduler(getattr(diffusers, scheduler)())


def test_settings_that_are_not_understood_are_refused_by_name():
    continuous = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    with pytest.raises(
        ValueError, match="with timestep_type discrete, found EulerDiscreteScheduler with 'continuous'"
    ):
        NoisePath.from_scheduler(continuous)
    with pytest.raises(ValueError, match="expected a beta_schedule .* found HeunDiscreteScheduler with 'exp'"):
        NoisePath.from_scheduler(diffusers.HeunDiscreteScheduler(beta_schedule="exp"))
    solver = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    wanted = "^--prediction_type: expected epsilon, v_prediction or sample for DPMSolverMultistepScheduler, found"
    with pytest.raises(ValueError, match=f"{wanted} 'flow_prediction'"):
        NoisePath.from_scheduler(solver)
    with pytest.raises(ValueError, match="for DDIMScheduler, found 'flow'"):
        NoisePath.from_scheduler(DDIMScheduler(), "flow")
    with pytest.raises(ValueError, match="--prediction_type: expected none for FlowMatch.*, found 'epsilon'"):
        NoisePath.from_scheduler(FlowMatchEulerDiscreteScheduler(), "epsilon")


def test_single_rows_and_batches_move_alike():
    path, noisy, output = path_of("v_prediction"), random_latents(3), random_latents(3, 2)
    here, there = path.levels[[100, 500, 900]], path.levels[[50, 100, 850]]
    together = path.move(noisy, output, here, there)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], path.move(noisy[one], output[one], here[one], there[one]), **EXACT)
    assert together.shape == (3, *SHAPE)
