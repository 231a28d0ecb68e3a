# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The first step's loss of the scripts against a computation of its own, for every flag that enters it."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from training_driver import losses


STEP = ["--train_batch_size=6", "--gradient_accumulation_steps=2", "--max_train_steps=1"]


@pytest.fixture
def velocity_sd15(random_sd15, tmp_path):
    """The random pipeline with a scheduler that says v-prediction and zero terminal SNR."""
    folder = shutil.copytree(random_sd15, tmp_path / "velocity")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps(config))
    return folder


def _reference_loss(base, steps, kind: str = "epsilon", gamma: float | None = None) -> float:
    """The loss from x_0, noise and timesteps alone, a row at a time."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    abars = DDPMScheduler.from_pretrained(base, subfolder="scheduler").alphas_cumprod
    terms = []
    for batch in sum(steps, []):
        for row, t in enumerate(batch.timesteps.tolist()):
            abar, clean, noise = abars[t], batch.latents[row], batch.noise[row]
            noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
            hidden = batch.conditioning["encoder_hidden_states"][row : row + 1]
            with torch.no_grad():
                prediction = unet(noisy[None], t, hidden).sample[0]
            velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
            error = (prediction - {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]).square().mean()
            snr = (abar / (1 - abar)).item()
            divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[kind]
            weight = 1.0 if gamma is None else min(snr, gamma) / divisor
            terms.append(weight * batch.weights[row].item() * error.item())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_loss_is_the_reference(train, kept, random_sd15, kind, gamma):
    flags = [f"--prediction_type={kind}", *([] if gamma is None else [f"--snr_gamma={gamma}"])]
    found = losses(train("sd15", "out", *STEP, *flags))[0]
    expected = _reference_loss(random_sd15, kept["batches"], kind, gamma)
    assert found == pytest.approx(expected, rel=1e-4)
    other = _reference_loss(random_sd15, kept["batches"], kind, 0.5 if gamma is None else None)
    assert abs(other - expected) > 0.01  # the flag is seen


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_velocity_model_is_trained_as_one_without_a_flag(train, kept, velocity_sd15, gamma):
    flags = [f"--pretrained_model_name_or_path={velocity_sd15}", *([] if gamma is None else [f"--snr_gamma={gamma}"])]
    folder = train("sd15", "out", *STEP, *flags)
    expected = _reference_loss(velocity_sd15, kept["batches"], "v_prediction", gamma)
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-4)
    assert abs(_reference_loss(velocity_sd15, kept["batches"], "epsilon") - expected) > 0.01
    assert DiffusionPipeline.from_pretrained(folder).scheduler.config.prediction_type == "v_prediction"


def test_min_snr_survives_a_zero_terminal_snr_schedule(train, velocity_sd15):
    """The last timestep is drawn about once in 1000 rows: among 4096 of this seed it is, and noise has no signal."""
    flags = [f"--pretrained_model_name_or_path={velocity_sd15}", "--prediction_type=epsilon", "--snr_gamma=5"]
    flags += ["--train_batch_size=1024", "--gradient_accumulation_steps=4", "--max_train_steps=1"]
    assert 0 < abs(losses(train("sd15", "out", *flags))[0]) < 2


def test_a_noise_offset_reaches_the_loss(train, kept, random_sd15):
    found = losses(train("sd15", "out", *STEP, "--noise_offset=0.5"))[0]
    assert found == pytest.approx(_reference_loss(random_sd15, kept["batches"]), rel=1e-4)
    shifted = [batch.noise for batch in kept["batches"][0]]
    assert losses(train("sd15", "plain", *STEP))[0] != pytest.approx(found, rel=1e-3)
    for noise, batch in zip(shifted, kept["batches"][0], strict=True):
        offsets = noise - batch.noise
        assert offsets.abs().max() > 0.1
        torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), rtol=0, atol=1e-5)
