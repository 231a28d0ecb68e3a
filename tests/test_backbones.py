# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Backbones against diffusers' own pipelines as the oracle."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from training_driver import same, weights

from diffusers_craft import SD15, SDXL, load_pipeline, load_tuned_pipeline
from diffusers_craft.models import loading as backbones_loading
from diffusers_craft.scripts import ModelSource, vae_fingerprint


PROMPTS = ["a red circle", "two green stars, sharp", ""]


@pytest.fixture(scope="module")
def models(random_sd15, random_sdxl):
    return {SD15: random_sd15, SDXL: random_sdxl}


@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=lambda b: b.name)
def test_prompts_are_encoded_as_the_pipeline_encodes_them(models, backbone):
    pipeline = load_pipeline(models[backbone], device="cpu")
    conditioning = backbone.encode_prompts(backbone.load(ModelSource(str(models[backbone]))), PROMPTS)
    expected = pipeline.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    torch.testing.assert_close(conditioning["encoder_hidden_states"], expected[0], rtol=0, atol=0)
    if backbone is SDXL:
        torch.testing.assert_close(conditioning["text_embeds"], expected[2], rtol=0, atol=0)
    else:
        assert set(conditioning) == {"encoder_hidden_states"}


@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=lambda b: b.name)
def test_empty_prompt_is_what_guidance_guides_away_from(models, backbone):
    pipeline = load_pipeline(models[backbone], device="cpu")
    empty = backbone.encode_empty_prompt(backbone.load(ModelSource(str(models[backbone]))))
    expected = pipeline.encode_prompt(["x"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    torch.testing.assert_close(empty["encoder_hidden_states"], expected[1], rtol=0, atol=0)
    if backbone is SDXL:
        torch.testing.assert_close(empty["text_embeds"], expected[3], rtol=0, atol=0)


def test_sizes_are_ordered_as_the_pipeline_orders_them_and_stay_float32(models):
    pipeline = load_pipeline(models[SDXL], device="cpu")
    original, crop, target = (1023, 700), (3, 5), (512, 256)
    time_ids = SDXL.size_conditioning(*(torch.tensor([pair]) for pair in (original, crop, target)))["time_ids"]
    width = pipeline.text_encoder_2.config.projection_dim
    expected = pipeline._get_add_time_ids(original, crop, target, torch.float32, text_encoder_projection_dim=width)
    assert time_ids.dtype == torch.float32
    torch.testing.assert_close(time_ids, expected, rtol=0, atol=0)
    assert SD15.size_conditioning(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2)) == {}


@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=lambda b: b.name)
def test_predict_depends_on_every_conditioning_tensor(models, backbone):
    components = backbone.load(ModelSource(str(models[backbone])))
    generator = torch.Generator().manual_seed(0)
    latents, timesteps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 900])
    sizes = torch.full((2, 2), 64)
    conditioning = backbone.encode_prompts(components, PROMPTS[:2])
    conditioning |= backbone.size_conditioning(sizes, torch.zeros(2, 2), sizes)
    with torch.no_grad():
        reference = backbone.predict(components.denoiser, latents, timesteps, conditioning)
        assert reference.shape == latents.shape
        for name, value in conditioning.items():
            other = backbone.predict(components.denoiser, latents, timesteps, conditioning | {name: value + 1})
            assert not torch.allclose(reference, other), name


def test_the_noise_schedule_is_the_pipelines_own(models):
    components = SDXL.load(ModelSource(str(models[SDXL])))
    expected = load_pipeline(models[SDXL], device="cpu").scheduler.alphas_cumprod
    torch.testing.assert_close(components.path.levels.float(), expected)
    assert components.path.kind == "epsilon"
    assert SDXL.load(ModelSource(str(models[SDXL])), prediction_type="v_prediction").path.kind == "v_prediction"


def test_a_cpu_gets_float32_and_no_safety_checker(models):
    pipeline = load_pipeline(models[SD15], dtype=torch.float16, device="cpu")
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32
    assert pipeline.safety_checker is None
    assert isinstance(load_pipeline(models[SDXL], device="cpu"), StableDiffusionXLPipeline)


def test_embedded_names_are_resolved(models, monkeypatch):
    monkeypatch.setattr(backbones_loading.tiny, "model_path", {"tiny-sd15": str(models[SD15])}.get)
    assert load_pipeline("tiny-sd15", device="cpu").unet.config.cross_attention_dim == 16


def test_pipeline_wraps_a_trained_unet(models):
    components = SD15.load(ModelSource(str(models[SD15])))
    pipeline = SD15.pipeline(ModelSource(str(models[SD15])), denoiser=components.denoiser)
    assert pipeline.unet is components.denoiser


def test_another_vae_replaces_the_pipelines_own(models):
    source = ModelSource(str(models[SDXL]), vae=str(models[SD15] / "vae"))
    own = SD15.load(ModelSource(str(models[SD15]))).vae.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in SDXL.load(source).vae.state_dict().items())


def test_the_fingerprint_of_a_vae_tells_what_its_latents_mean(models):
    """Encoder and scale count; neither the decoder nor a precision in which the same weights are loaded."""
    first = load_pipeline(models[SD15], device="cpu").vae
    own = vae_fingerprint(first)
    assert own.startswith("scaling_factor=0.18215 encoder=")
    for dtype in (torch.float16, torch.bfloat16):
        assert vae_fingerprint(load_pipeline(models[SD15], device="cpu").vae.to(dtype)) == own
    with torch.no_grad():
        first.decoder.conv_in.weight.neg_()
        assert vae_fingerprint(first) == own
        first.register_to_config(scaling_factor=0.13025)
        assert vae_fingerprint(first) == own.replace("0.18215", "0.13025")
        first.register_to_config(scaling_factor=0.18215)
        first.encoder.conv_in.weight.flatten()[3].neg_()
        assert vae_fingerprint(first) != own


def test_errors_name_the_model(models, tmp_path):
    with pytest.raises(ValueError, match="expected a StableDiffusionXLPipeline .* found a StableDiffusionPipeline"):
        SDXL.load(ModelSource(str(models[SD15])))
    with pytest.raises(ValueError, match=r"^model 'no/such-model': expected a diffusers pipeline folder") as caught:
        load_pipeline("no/such-model")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected a diffusers pipeline folder"):
        load_pipeline(str(tmp_path))


def _without_unet(folder):
    shutil.rmtree(folder / "unet")


def _without_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def _truncated(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10" * 100)


def _truncated_text_encoder(folder):
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"\x10" * 100)


def _of_another_shape(folder):
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [16, 32]}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_unet, "found no unet/ in it$"),
        (_without_tokenizer, "found no tokenizer/ in it$"),
        (_truncated, r"\(diffusers .* says: .*diffusion_pytorch_model.safetensors"),
        (_truncated_text_encoder, r"\(diffusers .* says: .*header"),
        (_of_another_shape, r"\(diffusers .* says: .*shape"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(models, tmp_path, damage, words):
    folder = shutil.copytree(models[SD15], tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match=rf"^model '.*model': expected a whole pipeline.* {words}") as caught:
        load_pipeline(folder, device="cpu")
    assert "\n" not in str(caught.value) and caught.traceback[-1].frame.f_globals["__name__"].startswith(
        "diffusers_craft"
    )


def test_files_that_are_not_there_are_named(models, tmp_path):
    with pytest.raises(ValueError, match="expected a whole pipeline with files of --variant fp16 .*variant=fp16"):
        load_pipeline(models[SD15], variant="fp16", device="cpu")
    with pytest.raises(ValueError, match="^--pretrained_vae_model_name_or_path: expected a Hub id or folder of a VAE"):
        SDXL.load(ModelSource(str(models[SDXL]), vae=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a UNet that was trained from the base"):
        load_tuned_pipeline(str(tmp_path), str(models[SD15]), device="cpu")


@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=lambda backbone: backbone.name)
def test_only_what_encodes_goes_to_the_device(models, backbone):
    components = backbone.load(ModelSource(str(models[backbone])), device="meta")
    assert {module.device.type for module in (components.vae, *components.encoders())} == {"meta"}
    assert components.denoiser.device.type == "cpu"  # until the encoders have made room, see `TrainingRun`


def test_a_checkpoint_is_a_tuned_model_with_the_weights_that_its_run_would_end_with(train, random_sd15):
    folder = train(
        "sd15", "out", "--max_train_steps=2", "--checkpointing_steps=2", "--train_batch_size=4", "--use_ema"
    )
    tuned = load_tuned_pipeline(str(folder / "checkpoint-2"), str(random_sd15), device="cpu")
    assert same(tuned.unet.state_dict(), weights(folder)) and type(tuned) is StableDiffusionPipeline
    last = weights(folder / "checkpoint-2")
    assert not same(last, weights(folder)), "nothing was averaged"
    shutil.rmtree(folder / "checkpoint-2" / "unet_ema")
    assert same(load_tuned_pipeline(str(folder / "checkpoint-2"), str(random_sd15)).unet.cpu().state_dict(), last)
