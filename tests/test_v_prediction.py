# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Models of velocity through the scripts of every objective, also where the last time is pure noise."""

import importlib.util
import json
import math
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from build_driver import BrightnessReward
from diffusers import DiffusionPipeline
from training_driver import ROOT, losses, run_json, same, weights

from diffusers_craft import TrainingRun, register_reward


FIXED = ["--resolution=64", "--report_to=none", "--learning_rate=1e-3", "--train_batch_size=2"]
FIXED += ["--gradient_accumulation_steps=1", "--max_train_steps=2"]
PREFERENCE, SMPO = "preference/train_preference.py", "smpo/train_smpo.py"
SHARPENING = "diffusion_sharpening/train_diffusion_sharpening.py"
ONLINE = ["--rewards=brightness", "--guidance_scale=2"]
METHODS = {
    "dpo": (PREFERENCE, ["--objective=dpo"]),
    "kto": (PREFERENCE, ["--objective=kto"]),
    "mapo": (PREFERENCE, ["--objective=mapo"]),
    "dspo": (PREFERENCE, ["--objective=dspo"]),
    "inpo": (PREFERENCE, ["--objective=inpo", "--inversion_steps=3"]),
    "smpo": (SMPO, ["--inversion_steps=3"]),
    "spo": (PREFERENCE, ["--objective=spo", "--chain_steps=4", "--first_step=0", "--states_per_prompt=3", *ONLINE]),
    "sharpening-sft": (SHARPENING, ["--num_states=2", "--rewards=brightness"]),
    "sharpening-rlhf": (
        SHARPENING,
        ["--sharpening=rlhf", "--generation_steps=2", "--num_states=2", "--eta=0", *ONLINE],
    ),
}
AT_REFERENCE = dict.fromkeys(("dpo", "inpo", "smpo", "spo", "sharpening-rlhf"), math.log(2)) | {"kto": 0.5}


@pytest.fixture(autouse=True)
def brightness():
    register_reward("brightness", lambda: BrightnessReward("pickscore"))


def _with_scheduler(source, folder, **config):
    """A copy of a pipeline whose scheduler's config says something else."""
    shutil.copytree(source, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.fixture
def zero_snr(uneven_sd15, tmp_path):
    """Zero terminal SNR (arXiv 2305.08891)."""
    return _with_scheduler(
        uneven_sd15, tmp_path / "zero-snr", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


@pytest.fixture
def align(preference_build, tmp_path):
    """`align(model, "dpo", ...)`: trains in this process, returns the output folder."""

    def run(model, method, *flags):
        AcceleratorState._reset_state(reset_partial_state=True)
        script, own = METHODS[method]
        path = ROOT / "examples" / script
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        where = [f"--pretrained_model_name_or_path={model}", f"--output_dir={tmp_path / method}"]
        where += [f"--dataset_name={preference_build}", "--backbone=sd15"]
        module.main(module.parse_args([*where, *FIXED, *own, *flags]))
        return tmp_path / method

    return run


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_velocity_model_with_zero_terminal_snr(align, method, zero_snr, monkeypatch):
    runs = []
    monkeypatch.setattr(TrainingRun, "finish", lambda run: runs.append(run))  # saving has a test below
    align(zero_snr, method, "--prediction_type=v_prediction")
    runs[0].log.flush()
    first, second = runs[0].log.history
    assert math.isfinite(second["train_loss"]) and first["grad_norm"] > 0
    if method in AT_REFERENCE:
        assert first["train_loss"] == pytest.approx(AT_REFERENCE[method], abs=1e-6)


def test_times_of_pure_noise_are_trained_on(align, zero_snr, monkeypatch):
    """Every time is the last one: nothing is divided by its signal, which is 0."""
    from diffusers_craft.scripts import NoisePath

    runs = []
    monkeypatch.setattr(TrainingRun, "finish", lambda run: runs.append(run))
    monkeypatch.setattr(NoisePath, "draw_times", lambda path, uniform: torch.full_like(uniform, len(path) - 1).long())
    for method in ("dspo", "smpo", "sharpening-sft", "sharpening-rlhf"):
        align(zero_snr, method, "--prediction_type=v_prediction")
        runs[-1].log.flush()
        assert all(math.isfinite(entry["train_loss"]) for entry in runs[-1].log.history)


@pytest.mark.parametrize("method", ["inpo", "spo", "sharpening-rlhf"])
def test_noise_without_signal_is_refused(align, method, zero_snr):
    with pytest.raises(ValueError, match="^--prediction_type: expected v_prediction or sample for .*found epsilon$"):
        align(zero_snr, method)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_the_saved_pipeline_samples_as_it_was_trained(align, scheduler, uneven_sd15, tmp_path, monkeypatch):
    source = _with_scheduler(uneven_sd15, tmp_path / "model", _class_name=scheduler)
    index = source / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", scheduler))
    folder = align(source, "dpo", "--prediction_type=v_prediction", "--max_train_steps=1")
    assert run_json(folder)["options"]["prediction_type"] == "v_prediction" and math.isfinite(losses(folder)[0])
    assert not same(weights(folder), weights(uneven_sd15))
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["prediction_type"]) == (scheduler, "v_prediction")
    assert config["beta_start"] == 0.00085 and config["beta_schedule"] == "scaled_linear"
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    pipeline("ab", num_inference_steps=4, output_type="latent")  # PNDM needs 4
