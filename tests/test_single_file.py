# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Models that come as one `.safetensors` file in the layout of the original releases."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from build_driver import load_script, register_brightness_rewards
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, PNDMScheduler
from diffusers.utils import logging as diffusers_logging
from original_layout import save_single_file
from safetensors.torch import load_file, save_file
from training_driver import ROOT, losses, same, weights

from diffusers_craft import SD15, SDXL, load_pipeline, register_reward
from diffusers_craft.build import builder
from diffusers_craft.evaluation import run as evaluation
from diffusers_craft.scripts import ModelSource


EXAMPLES = ROOT / "examples" / "craft"
STEP = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=1"]


@pytest.fixture
def single_files(random_sd15, random_sdxl, tmp_path):
    files = {}
    for name, folder in (("sd15", random_sd15), ("sdxl", random_sdxl)):
        files[name] = tmp_path / f"{name}.safetensors"
        save_single_file(DiffusionPipeline.from_pretrained(folder), files[name])
    return files


@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_every_weight_comes_back(backbone, single_files, random_sd15, random_sdxl):
    name, folder = ("sd15", random_sd15) if backbone is SD15 else ("sdxl", random_sdxl)
    found = backbone.pipeline(ModelSource(str(single_files[name]), config=str(folder)))
    expected = DiffusionPipeline.from_pretrained(folder)
    assert type(found) is type(expected)
    for part in ("unet", "vae", *backbone.text_encoders):
        states = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert states[0].keys() == states[1].keys()
        for key in states[1]:
            torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0, msg=f"{part}.{key}")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_loading_is_shown_once_per_machine(rank, single_files, random_sd15, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(diffusers_logging, "_tqdm_active", True)
    capsys.readouterr()
    load_pipeline(single_files["sd15"], config=str(random_sd15), device="cpu")
    shown = capsys.readouterr().err
    assert ("Loading pipeline components" in shown) == (rank == 0) and "Loading weights" not in shown


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_training_equals_that_of_the_folder(train, family, single_files, random_sd15, random_sdxl):
    folder = {"sd15": random_sd15, "sdxl": random_sdxl}[family]
    plain = train(family, "plain", *STEP)
    flags = [f"--pretrained_model_name_or_path={single_files[family]}", f"--single_file_config={folder}"]
    single = train(family, "single", *STEP, *flags)
    assert losses(single) == losses(plain) and same(weights(single), weights(plain))
    assert type(DiffusionPipeline.from_pretrained(single)) is type(DiffusionPipeline.from_pretrained(folder))


MARKED = {
    ("v_pred",): {"prediction_type": "v_prediction"},
    ("v_pred", "ztsnr"): {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    ("ztsnr",): {},  # which says nothing alone
}


@pytest.mark.parametrize("markers", MARKED, ids="+".join)
@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_a_file_that_says_it_predicts_velocity_is_taken_at_its_word(
    backbone, markers, random_sd15, random_sdxl, tmp_path
):
    folder = random_sd15 if backbone is SD15 else random_sdxl
    base = DiffusionPipeline.from_pretrained(folder)
    save_single_file(base, tmp_path / "model.safetensors", *markers)
    source = ModelSource(str(tmp_path / "model.safetensors"), config=str(folder))
    pipeline, path = backbone.pipeline(source), backbone.load(source).path
    assert type(pipeline.scheduler) is type(base.scheduler)
    assert dict(pipeline.scheduler.config) | MARKED[markers] == dict(pipeline.scheduler.config)
    assert pipeline.scheduler.config.beta_start == base.scheduler.config.beta_start
    assert path.kind == MARKED[markers].get("prediction_type", "epsilon")
    assert path.ends_without_signal == (len(markers) == 2)
    assert same(pipeline.unet.state_dict(), base.unet.state_dict())
    assert backbone.load(source, prediction_type="epsilon").path.kind == "epsilon"  # the flag has the last word


def test_a_sampler_without_zero_terminal_snr_gives_way(random_sd15, tmp_path):
    """PNDM, which SD1.5 comes with, would sample from the schedule as it was."""
    base = DiffusionPipeline.from_pretrained(random_sd15)
    base.scheduler = PNDMScheduler.from_config(base.scheduler.config, skip_prk_steps=True)
    base.save_pretrained(tmp_path / "folder")
    save_single_file(base, tmp_path / "plain.safetensors", "v_pred")
    save_single_file(base, tmp_path / "rescaled.safetensors", "v_pred", "ztsnr")
    plain, rescaled = (
        load_pipeline(str(tmp_path / f"{name}.safetensors"), config=str(tmp_path / "folder"), device="cpu").scheduler
        for name in ("plain", "rescaled")
    )
    assert type(plain) is PNDMScheduler and plain.config.prediction_type == "v_prediction"
    assert type(rescaled) is DDIMScheduler and rescaled.alphas_cumprod[-1] == 0 and not rescaled.config.clip_sample


def test_a_velocity_file_is_trained_and_saved_as_one(train, random_sd15, tmp_path):
    save_single_file(DiffusionPipeline.from_pretrained(random_sd15), tmp_path / "v.safetensors", "v_pred", "ztsnr")
    flags = [f"--pretrained_model_name_or_path={tmp_path / 'v.safetensors'}", f"--single_file_config={random_sd15}"]
    folder = train("sd15", "marked", *STEP, *flags)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert dict(config) | MARKED["v_pred", "ztsnr"] == config
    assert losses(folder) != losses(train("sd15", "plain", *STEP))


@pytest.fixture
def run_example(random_sd15, tmp_path, monkeypatch):
    """Runs an example on two prompts with cheap rewards; returns the cache folders of the models that it loaded."""
    register_brightness_rewards(register_reward)
    monkeypatch.setattr(builder, "write_build_report", lambda *_: None)
    (tmp_path / "prompts.txt").write_text("a thing\nanother")

    def run(name, output, *flags):
        script, loaded = load_script(EXAMPLES / f"{name}.py"), []
        for module in (script, evaluation):  # whose engine loads the models
            for function in {"load_pipeline", "load_tuned_pipeline"} & vars(module).keys():

                def load(*args, original=getattr(module, function), **options):
                    loaded.append(options["cache_dir"])
                    return original(*args, **options)

                monkeypatch.setattr(module, function, load)
        common = ["--prompts", str(tmp_path / "prompts.txt"), "--num_inference_steps", "1"]
        script.main(script.parse_args([*common, "--output_dir", str(tmp_path / output), *map(str, flags)]))
        return loaded

    return run


def test_building_equals_that_of_the_folder(run_example, single_files, random_sd15, tmp_path):
    flags = ["--refiner=none", "--filter_rule=none", "--num_samples=1", "--pretrained_model_name_or_path"]
    run_example("build_craft_dataset", "folder", *flags, random_sd15)
    where = [f"--single_file_config={random_sd15}", f"--cache_dir={tmp_path}"]
    assert run_example("build_craft_dataset", "single", *flags, single_files["sd15"], *where) == [str(tmp_path)]
    made = [pq.read_table(tmp_path / name / "candidates" / "part-00000.parquet") for name in ("folder", "single")]
    assert len(made[0]) == 10 and made[0]["image"] == made[1]["image"]


def test_base_and_tuned_model_under_evaluation_may_be_single_files(run_example, single_files, random_sd15, tmp_path):
    models = ["--base", f"single={single_files['sd15']}", "--tuned", f"folder={random_sd15}"]
    models += [f"again={single_files['sd15']}", f"--single_file_config={random_sd15}", f"--cache_dir={tmp_path}"]
    loaded = run_example("evaluate_craft", "evaluation", *models, "--rewards", "pickscore")
    rows = json.loads((tmp_path / "evaluation" / "results.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["single", "folder", "again"]
    assert len({row["mean"] for row in rows}) == 1 and set(loaded) == {str(tmp_path)}


def test_a_file_without_a_vae_is_evaluated_with_another(run_example, single_files, random_sd15, tmp_path):
    """The base, and a UNet for it; a model with a VAE of its own draws with the given one, too."""
    tensors = load_file(single_files["sd15"])
    bare = {name: value for name, value in tensors.items() if not name.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "bare.safetensors")
    models = ["--base", f"bare={tmp_path / 'bare.safetensors'}", "--tuned", f"unet={random_sd15 / 'unet'}"]
    models += [f"whole={random_sd15}", f"--single_file_config={random_sd15}", "--rewards", "pickscore"]
    with pytest.raises(ValueError, match="--pretrained_vae_model_name_or_path: expected a VAE for a file that holds"):
        run_example("evaluate_craft", "without", *models)
    vae = AutoencoderKL.from_pretrained(random_sd15 / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(0.3)
    vae.save_pretrained(tmp_path / "vae")
    means = {}
    for name, folder in (("same", random_sd15 / "vae"), ("other", tmp_path / "vae")):
        run_example("evaluate_craft", name, *models, f"--pretrained_vae_model_name_or_path={folder}")
        rows = json.loads((tmp_path / name / "results.json").read_text())["rows"]
        assert [row["model"] for row in rows] == ["bare", "unet", "whole"]
        (means[name],) = {row["mean"] for row in rows}
    assert means["other"] > means["same"]
    with pytest.raises(ValueError, match="images/prompts/bare.* --pretrained_model_name_or_path"):
        run_example("evaluate_craft", "same", *models, f"--pretrained_vae_model_name_or_path={tmp_path / 'vae'}")


def test_a_half_precision_file_is_trained_in_float32(single_files, random_sd15, tmp_path):
    half = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in load_file(single_files["sd15"]).items()}, half)
    components = SD15.load(ModelSource(str(half), config=str(random_sd15)))
    assert {value.dtype for value in components.denoiser.state_dict().values()} == {torch.float32}


def test_errors_say_what_is_missing(single_files, tmp_path):
    missing = r"--single_file_config: expected a pipeline folder or a reachable Hub id .*, found none"
    with pytest.raises(ValueError, match=missing):
        load_pipeline(str(single_files["sd15"]), device="cpu")  # offline, and nothing cached
    with pytest.raises(ValueError, match="expected a .safetensors file, found none"):
        load_pipeline("nowhere.safetensors", device="cpu")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(single_files["sd15"].read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"broken.safetensors': expected a .safetensors file \(diffusers .* says: "):
        load_pipeline(str(broken), device="cpu")
    with pytest.raises(ValueError, match="expected a StableDiffusionPipeline for this script, found a .*XLPipeline"):
        SD15.pipeline(ModelSource(str(single_files["sdxl"])))
    unet = tmp_path / "unet.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, unet)
    with pytest.raises(
        ValueError, match="expected a whole Stable Diffusion 1.5 or SDXL checkpoint .* no text encoder"
    ):
        load_pipeline(str(unet), device="cpu")
