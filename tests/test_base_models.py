# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Base models that people really have: parts that are missing, foreign, or not made for each other."""

import json
import logging
import pickle
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from original_layout import save_single_file
from safetensors.torch import load_file, save_file

from diffusers_craft import SD15, SDXL, UserError, load_pipeline
from diffusers_craft.models.checks import check_parts, only_variant, warn_of_cut_prompts
from diffusers_craft.scripts import ModelSource


FAMILIES = pytest.mark.parametrize("family", [SD15, SDXL], ids=["sd15", "sdxl"])


@pytest.fixture
def folder(random_sd15, random_sdxl, tmp_path):
    """`folder(family)`: a copy of its random model, to be changed."""

    def copy(family):
        return shutil.copytree(random_sd15 if family is SD15 else random_sdxl, tmp_path / family.name)

    return copy


@pytest.fixture
def single_file(random_sd15, random_sdxl, tmp_path):
    """`single_file(family, change)`: source of a random model in one file, whose tensors `change` alters."""

    def save(family, change=lambda tensors: tensors, vae=None):
        model, path = random_sd15 if family is SD15 else random_sdxl, tmp_path / f"{family.name}.safetensors"
        save_single_file(DiffusionPipeline.from_pretrained(model), path)
        save_file(change(load_file(path)), path)
        return ModelSource(str(path), config=str(model), vae=vae)

    return save


def edit(file, **changes):
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def refused(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def last_tokenizer(folder):
    return max(folder.glob("tokenizer*"))  # SDXL's second, SD1.5's only one


@FAMILIES
def test_a_tokenizer_without_its_vocabulary_is_refused(family, folder):
    """transformers 5 makes one up in silence, whose every caption is unknown tokens."""
    model = folder(family)
    for file in last_tokenizer(model).iterdir():
        if file.name not in ("tokenizer_config.json", "special_tokens_map.json"):
            file.unlink()
    refused(
        lambda: load_pipeline(model, device="cpu"),
        rf"{last_tokenizer(model).name}: expected a vocabulary .* found|expected a whole pipeline",  # transformers 4 fails
    )


@FAMILIES
def test_a_tokenizer_larger_than_its_encoder_is_refused(family, folder):
    model = folder(family)
    tokenizer = load_pipeline(model, device="cpu").components[last_tokenizer(model).name]
    tokenizer.add_tokens(["<one>", "<more>"])
    tokenizer.save_pretrained(last_tokenizer(model))
    size = len(tokenizer)
    refused(lambda: load_pipeline(model, device="cpu"), f"expected a vocabulary .* {size - 2} tokens, found {size}")


@FAMILIES
def test_a_tokenizer_that_does_not_say_how_long_captions_are_takes_the_encoders_length(family, folder):
    model = folder(family)
    expected = family.encode_prompts(family.load(ModelSource(str(model))), ["a red circle"])
    edit(last_tokenizer(model) / "tokenizer_config.json", model_max_length=...)
    found = family.encode_prompts(family.load(ModelSource(str(model))), ["a red circle"])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@FAMILIES
@pytest.mark.parametrize(("channels", "kind"), [(9, "inpainting"), (8, "image editing")])
def test_a_unet_that_takes_more_than_latents_is_refused(family, channels, kind, folder, single_file):
    words = rf"expected a UNet of 4 input channels as the latents, found {channels} \({kind}"
    model = folder(family)
    edit(model / "unet" / "config.json", in_channels=channels)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    wide = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :channels].contiguous()
    save_file(tensors | {"conv_in.weight": wide}, weights)
    refused(lambda: load_pipeline(model, device="cpu"), words)

    key = "model.diffusion_model.input_blocks.0.0.weight"
    source = single_file(family, lambda tensors: tensors | {key: wide})
    refused(lambda: family.load(source), words)


@FAMILIES
def test_a_file_without_vae_asks_for_one_and_takes_it(family, single_file, folder):
    def without_vae(tensors):
        return {name: value for name, value in tensors.items() if not name.startswith("first_stage_model.")}

    refused(
        lambda: family.load(single_file(family, without_vae)), "^--pretrained_vae_model_name_or_path: expected a VAE"
    )
    vae = folder(family) / "vae"
    found = family.load(single_file(family, without_vae, vae=str(vae))).vae.state_dict()
    for name, value in AutoencoderKL.from_pretrained(vae).state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        (SD15, lambda name: name.replace(".text_model.", ".")),  # of an old transformers
        (SDXL, lambda name: None if "embedders.0." in name else name),  # a refiner's
    ],
)
def test_a_file_whose_text_encoder_cannot_be_read_is_one_line(family, change, single_file):
    source = single_file(family, lambda tensors: {change(name): v for name, v in tensors.items() if change(name)})
    refused(lambda: family.load(source), "expected a whole checkpoint in the original layout|expected a whole Stable")


def test_parts_that_only_a_safety_checker_needs_may_be_missing(folder):
    model = folder(SD15)
    unused = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    edit(model / "model_index.json", **unused, feature_extractor=["transformers", "CLIPImageProcessor"])
    pipeline = load_pipeline(model, device="cpu")
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None


@FAMILIES
@pytest.mark.parametrize("part", ["unet", "scheduler", "text_encoder"])
@pytest.mark.parametrize("library", ["evil", "os", "stable_diffusion.evil", 3])
def test_a_model_brings_no_code(family, part, library, folder, tmp_path):
    model = folder(family)
    edit(model / "model_index.json", **{part: [library, "Thing"]})
    ran = tmp_path / "ran"
    (model / part / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Thing: pass\n")
    refused(lambda: load_pipeline(model, device="cpu"), f"expected {part} of diffusers or transformers, found")
    assert not ran.exists()


@FAMILIES
@pytest.mark.parametrize("file", ["unet/diffusers.py", "tokenizer/transformers.py", "vae/diffusers.py", "None.py"])
def test_a_model_brings_no_code_under_a_librarys_name(family, file, folder, tmp_path):
    """diffusers before 0.35 imports it."""
    model = folder(family)
    (model / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(lambda: load_pipeline(model, device="cpu"), f"expected no code in its folder, found {file}$")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [3, "os.system", ["pipeline", "MyPipeline"], None])
def test_a_pipeline_class_that_diffusers_does_not_have_is_refused(name, folder):
    model = folder(SD15)
    edit(model / "model_index.json", _class_name=name)
    refused(lambda: load_pipeline(model, device="cpu"), "expected a pipeline class of diffusers as _class_name, found")


def test_pickled_weights_of_strangers_do_not_run(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    model = folder(SD15)
    (model / "text_encoder" / "model.safetensors").unlink()
    (model / "text_encoder" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload()}))
    refused(lambda: load_pipeline(model, device="cpu"), "expected a whole pipeline")
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_alone_are_said(folder, caplog):
    model = folder(SD15)
    weights = model / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), model / "text_encoder" / "pytorch_model.bin")
    load_pipeline(model, device="cpu")
    assert "pickled" not in caplog.text
    weights.unlink()
    load_pipeline(model, device="cpu")
    assert caplog.text.count("expected weights as .safetensors, found pickled ones (.bin) alone in text_encoder/") == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate 144000000000 bytes")]
)
def test_a_unet_that_does_not_fit_into_memory_is_one_line(error, folder, monkeypatch):
    def too_large(*_, **__):
        raise error

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", too_large)
    refused(lambda: load_pipeline(folder(SD15), device="cpu"), "^model .*: expected a whole pipeline")


@FAMILIES
def test_a_distilled_model_is_told_by_its_marks(family, folder, caplog):
    model = folder(family)
    index, scheduler = model / "model_index.json", model / "scheduler" / "scheduler_config.json"
    with caplog.at_level(logging.WARNING, logger="diffusers_craft"):
        family.load(ModelSource(str(model)))
        assert not caplog.records
        edit(index, scheduler=["diffusers", "LCMScheduler"])
        family.load(ModelSource(str(model)))
        edit(index, scheduler=["diffusers", "EulerAncestralDiscreteScheduler"])
        edit(scheduler, timestep_spacing="trailing")  # as SDXL-Turbo's
        family.load(ModelSource(str(model)))
    first, second = (record.getMessage() for record in caplog.records)
    assert "distilled to a few steps" in first and "LCMScheduler" in first
    assert "EulerAncestralDiscreteScheduler with timestep_spacing trailing" in second


@FAMILIES
def test_an_lcm_unet_is_refused(family, folder):
    model = folder(family)
    unet = load_pipeline(model, device="cpu").unet
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    type(unet)(**config | {"time_cond_proj_dim": 8}).save_pretrained(model / "unet")
    load_pipeline(model, device="cpu")  # which draws
    refused(lambda: family.load(ModelSource(str(model))), "expected the UNet of a base model, found .* guidance scale")


@FAMILIES
@pytest.mark.parametrize("scheduler", ["EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_the_settings_of_another_scheduler_are_refused(family, scheduler, folder):
    """diffusers fills in a schedule of betas that no model has."""
    model = folder(family)
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler}))
    refused(lambda: family.load(ModelSource(str(model))), "expected betas in its scheduler_config.json .* found none")


@FAMILIES
def test_a_scheduler_with_which_the_pipeline_cannot_draw_is_refused(family, folder):
    model, scheduler = folder(family), "FlowMatchEulerDiscreteScheduler"
    edit(model / "model_index.json", scheduler=["diffusers", scheduler])
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler}))
    words = f"expected a scheduler with which {family.pipeline_class} draws, found {scheduler}"
    refused(lambda: family.load(ModelSource(str(model))), words)


@FAMILIES
@pytest.mark.parametrize("mark", ["edm_vpred.sigma_max", "edm_mean"])
def test_a_file_of_an_edm_model_is_refused(family, mark, single_file):
    source = single_file(family, lambda tensors: tensors | {mark: torch.zeros(1)})
    refused(lambda: family.load(source), f"expected a model that predicts noise or velocity, .* found '{mark}'")


def test_an_encoder_that_keeps_its_sizes_elsewhere_is_not_measured():
    """As Qwen-Image's, whose configuration nests the text's."""
    tokenizer = MagicMock(model_max_length=77)
    tokenizer.__len__.return_value = 3
    encoder = SimpleNamespace(config=SimpleNamespace(text_config=None))
    check_parts("x", SimpleNamespace(components={"tokenizer": tokenizer, "text_encoder": encoder}))
    encoder.config.vocab_size = 1000
    refused(
        lambda: check_parts("x", SimpleNamespace(components={"tokenizer": tokenizer, "text_encoder": encoder})),
        "found 3 tokens",
    )


def test_other_files_than_safetensors_are_named(tmp_path):
    for name in ("model.ckpt", "model.bin"):
        (tmp_path / name).write_bytes(b"weights")
        refused(
            lambda: load_pipeline(tmp_path / name),
            rf"expected a pipeline folder or a .safetensors file, found {name[5:]}",
        )


@FAMILIES
def test_a_configuration_without_a_single_file_is_refused(family, folder):
    model = str(folder(family))
    refused(lambda: family.load(ModelSource(model, config=model)), "^--single_file_config: expected a single")


@FAMILIES
def test_prompts_that_are_cut_are_counted_once(family, folder, caplog):
    pipeline = load_pipeline(folder(family), device="cpu")  # of 16 tokens, a letter each, two of them special
    prompts = ["a" * 14, "b" * 15, "c" * 30, "b" * 15, "", "é" * 8]
    with caplog.at_level(logging.WARNING):
        warn_of_cut_prompts(pipeline, prompts, "captions")
        warn_of_cut_prompts(pipeline, prompts[:1], "captions")
        warn_of_cut_prompts(pipeline, [], "captions")
    found = [record.getMessage() for record in caplog.records if record.name.startswith("diffusers_craft")]
    assert [text.split(" that ")[0] for text in found] == ["3 of 5 captions are longer than the 16 tokens"]
    for prompt in prompts:
        whole = pipeline.tokenizer(prompt).input_ids
        assert (len(whole) > 16) == (prompt in ("b" * 15, "c" * 30, "é" * 8))


@FAMILIES
def test_one_bar_shows_the_loading(family, folder, capsys):
    load_pipeline(folder(family), device="cpu")
    shown = capsys.readouterr().err
    assert "Loading pipeline components" in shown and "Loading weights" not in shown and "\x1b[A" not in shown


@FAMILIES
@pytest.mark.parametrize("variant", ["fp16", "ema"])
def test_a_model_of_one_variant_alone_names_the_flag(family, folder, variant):
    model = folder(family)
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(
        model / "unet" / f"diffusion_pytorch_model.{variant}.safetensors"
    )
    refused(
        lambda: load_pipeline(model, device="cpu"), f"expected --variant {variant} for weights .* found no --variant"
    )
    load_pipeline(model, device="cpu", variant=variant)


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["diffusion_pytorch_model.fp16.safetensors"], "fp16"),
        (["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/config.json"], "fp16"),
        (["diffusion_pytorch_model.fp16.bin"], "fp16"),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], None),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.ema.safetensors"], None),
        (["diffusion_pytorch_model.safetensors"], None),
        ([], None),
    ],
)
def test_a_variant_is_the_only_one_if_there_is_nothing_else(files, variant):
    assert only_variant(files) == variant
