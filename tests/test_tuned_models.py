# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Results of other tools: LoRA weights and UNets under any name and in any layout, on the base they belong to."""

import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from original_layout import save_single_file
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from training_driver import same

from diffusers_craft import UserError, load_tuned_pipeline
from diffusers_craft.evaluation.args import find_training_data


@pytest.fixture
def bases(random_sd15, random_sdxl):
    return {"sd15": random_sd15, "sdxl": random_sdxl}


@pytest.fixture
def other_unet(bases):
    """`other_unet(family)`: a pipeline whose UNet has other weights than the base's."""

    def make(family):
        pipeline = DiffusionPipeline.from_pretrained(bases[family])
        torch.manual_seed(1)
        for value in pipeline.unet.parameters():
            value.data += 0.1 * torch.randn_like(value)
        return pipeline

    return make


def adapters(base):
    """LoRA weights of rank 2 on every attention, none of them zero, as diffusers writes them."""
    unet = DiffusionPipeline.from_pretrained(base).unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(2)
    return {f"unet.{name}": torch.randn_like(value) for name, value in get_peft_model_state_dict(unet).items()}


FORMS = {"diffusers": lambda tensors: tensors, "kohya": convert_state_dict_to_kohya}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("form", FORMS)
def test_lora_weights_of_others_load_from_their_file_and_its_folder(family, form, bases, tmp_path):
    tensors = adapters(bases[family])
    (tmp_path / "ours").mkdir()
    save_file(tensors, tmp_path / "ours" / "pytorch_lora_weights.safetensors")
    expected = load_tuned_pipeline(tmp_path / "ours", str(bases[family]), device="cpu").unet.state_dict()
    assert not same(expected, DiffusionPipeline.from_pretrained(bases[family]).unet.state_dict())

    (tmp_path / "theirs").mkdir()
    file = tmp_path / "theirs" / "spo_lora (v2).safetensors"
    save_file({name: value.contiguous() for name, value in FORMS[form](tensors).items()}, file)
    for source in (file, file.parent):
        found = load_tuned_pipeline(source, str(bases[family]), device="cpu").unet.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=f"{form} {name}")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_bare_unet_file_loads_in_either_layout(family, layout, bases, other_unet, tmp_path):
    pipeline, file = other_unet(family), tmp_path / "unet_only.safetensors"
    if layout == "original":
        save_single_file(pipeline, file)
        whole = load_file(file)
        save_file({name: value for name, value in whole.items() if name.startswith("model.diffusion_model.")}, file)
    else:
        save_file(pipeline.unet.state_dict(), file)
    found = load_tuned_pipeline(file, str(bases[family]), device="cpu").unet.state_dict()
    assert same(found, pipeline.unet.state_dict())


@pytest.mark.parametrize("place", ["", "unet"])
@pytest.mark.parametrize("variant", ["fp16", "ema"])
def test_a_unet_folder_that_has_one_variant_only_loads(place, variant, bases, other_unet, tmp_path):
    pipeline = other_unet("sd15")
    pipeline.unet.save_pretrained(tmp_path / place, variant=variant)
    found = load_tuned_pipeline(tmp_path, str(bases["sd15"]), device="cpu").unet.state_dict()
    assert same(found, pipeline.unet.state_dict())


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"options": []}', '{"options": {}, "paths": []}'])
def test_a_record_that_is_not_ours_is_named(record, bases, tmp_path):
    save_file(adapters(bases["sd15"]), tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "craft_run.json").write_text(record)
    for read in (
        lambda: load_tuned_pipeline(tmp_path, str(bases["sd15"]), device="cpu"),
        lambda: find_training_data({"base": "base", "tuned": str(tmp_path)}),
    ):
        with pytest.raises(UserError, match=r"craft_run.json: expected (JSON|a JSON object|the record of a run)"):
            read()


def test_what_cannot_be_told_is_asked_for(bases, tmp_path):
    base = str(bases["sd15"])
    tensors = adapters(base)
    for name in ("step-100", "step-200"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        UserError, match="expected one file of weights, .* found step-100.safetensors, step-200.safeten"
    ):
        load_tuned_pipeline(tmp_path, base, device="cpu")
    other = shutil.copy(tmp_path / "step-100.safetensors", tmp_path / "lora")
    with pytest.raises(UserError, match="expected a pipeline folder or a .safetensors file, found a file"):
        load_tuned_pipeline(other, base, device="cpu")
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="expected the weights of a UNet that was trained from the base") as caught:
        load_tuned_pipeline(tmp_path / "part.safetensors", base, device="cpu")
    assert "\n" not in str(caught.value)
