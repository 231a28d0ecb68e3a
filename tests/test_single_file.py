# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Models that come as one `.safetensors` file in the layout of the original releases."""

import pytest
import torch
from diffusers import DiffusionPipeline
from original_layout import save_single_file
from safetensors.torch import load_file, save_file
from training_driver import losses, same, weights

from diffusers_craft.backbones import SD15, SDXL, ModelSource
from diffusers_craft.backbones_loading import load_pipeline


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


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_training_equals_that_of_the_folder(train, family, single_files, random_sd15, random_sdxl):
    folder = {"sd15": random_sd15, "sdxl": random_sdxl}[family]
    plain = train(family, "plain", *STEP)
    flags = [f"--pretrained_model_name_or_path={single_files[family]}", f"--single_file_config={folder}"]
    single = train(family, "single", *STEP, *flags)
    assert losses(single) == losses(plain) and same(weights(single), weights(plain))
    assert type(DiffusionPipeline.from_pretrained(single)) is type(DiffusionPipeline.from_pretrained(folder))


def test_a_half_precision_file_is_trained_in_float32(single_files, random_sd15, tmp_path):
    half = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in load_file(single_files["sd15"]).items()}, half)
    components = SD15.load(ModelSource(str(half), config=str(random_sd15)))
    assert {value.dtype for value in components.unet.state_dict().values()} == {torch.float32}


def test_errors_say_what_is_missing(single_files, tmp_path):
    missing = r"--single_file_config: expected a pipeline folder or a reachable Hub id .*, found none"
    with pytest.raises(ValueError, match=missing):
        load_pipeline(str(single_files["sd15"]), device="cpu")  # offline, and nothing cached
    with pytest.raises(ValueError, match="expected a .safetensors file, found none"):
        load_pipeline("nowhere.safetensors", device="cpu")
    with pytest.raises(ValueError, match="expected a StableDiffusionPipeline for this script, found a .*XLPipeline"):
        SD15.pipeline(ModelSource(str(single_files["sdxl"])))
    unet = tmp_path / "unet.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, unet)
    with pytest.raises(
        ValueError, match="expected a whole Stable Diffusion 1.5 or SDXL checkpoint .* no text encoder"
    ):
        load_pipeline(str(unet), device="cpu")
