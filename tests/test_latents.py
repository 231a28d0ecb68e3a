# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Latents of VAEs with a scale, a shift, or a mean and deviation for each channel: one meaning in every place."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from diffusers_craft import SDXL, SFT, SPO, GenerationSettings, TrainingSettings, generate_images, load_pipeline
from diffusers_craft.data.encoding import prepare_prompt_data
from diffusers_craft.data.pictures import as_vae_input
from diffusers_craft.models.latents import decode, encode_images, latent_factor, latent_shape
from diffusers_craft.scripts import DataSettings, ModelSource, prepare_training_data, vae_fingerprint
from diffusers_craft.training.loop import TrainingContext


SCALES = {
    "plain": {"scaling_factor": 0.18215},
    "shift": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "channels": {
        "scaling_factor": 0.5,
        "latents_mean": [0.1, -1.2, 0.3, 0.02],
        "latents_std": [0.8, 1.5, 2.0, 0.4],
    },
}


@pytest.fixture(scope="module", params=SCALES)
def model(request, random_sdxl, tmp_path_factory):
    """Folder of a pipeline with such a VAE, its scales, and the VAE."""
    folder = shutil.copytree(random_sdxl, tmp_path_factory.mktemp("model") / request.param)
    config, scales = folder / "vae" / "config.json", SCALES[request.param]
    config.write_text(json.dumps(json.loads(config.read_text()) | scales))
    return folder, scales, load_pipeline(str(folder), device="cpu").vae


@pytest.fixture
def pixels(make_images):
    return as_vae_input([np.asarray(image) for image in make_images(3)], torch.device("cpu"))


def _by_hand(z: torch.Tensor, scales: dict) -> torch.Tensor:
    mean, std = (
        torch.tensor(scales.get(name, [of] * 4)) for name, of in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    z = z - scales.get("shift_factor", 0.0)
    return (z - mean.reshape(1, 4, 1, 1)) / std.reshape(1, 4, 1, 1) * scales["scaling_factor"]


@torch.no_grad()
def test_encoding_and_decoding_are_the_vaes_own(model, pixels):
    """Within 1 of 255 of the plain round trip; without mean, deviation and shift to the last bit."""
    _, scales, vae = model
    posterior = vae.encode(pixels).latent_dist
    means, stds = encode_images(vae, pixels)
    torch.testing.assert_close(means, _by_hand(posterior.mean, scales))
    torch.testing.assert_close(stds, _by_hand(posterior.std, scales) - _by_hand(torch.zeros(1, 4, 1, 1), scales))
    back, expected = decode(vae, means), vae.decode(posterior.mean).sample
    assert (back - expected).abs().max() < 2 / 255
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)
    if len(scales) == 1:
        assert torch.equal(means, posterior.mean * vae.config.scaling_factor)
        assert torch.equal(stds, posterior.std * vae.config.scaling_factor)
        assert torch.equal(back, vae.decode(means / vae.config.scaling_factor).sample)


def test_the_pipelines_decode_alike(model):
    """diffusers' SDXL pipeline knows mean and deviation; a shift is SD3's."""
    folder, scales, _ = model
    pipeline = load_pipeline(str(folder), device="cpu")
    settings = GenerationSettings(num_inference_steps=2, guidance_scale=2.0)
    made = generate_images(pipeline, ["a cat"], [5], settings)
    own = pipeline("a cat", num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(5))
    difference = np.abs(np.asarray(own.images[0], int) - np.asarray(made.images[0], int)).max()
    assert difference > 1 if "shift_factor" in scales else difference <= 1


def _prepared(folder, tmp_path, columns: dict, **changes):
    settings = DataSettings(dataset_name="x", resolution=64, center_crop=True, cache_dir=str(tmp_path), **changes)
    return prepare_training_data(
        Dataset.from_dict(columns), SDXL, SDXL.load(ModelSource(str(folder))), settings, SFT()
    )


def test_training_reads_and_checks_the_same_latents(model, make_images, pixels, tmp_path):
    folder, scales, vae = model
    columns = {"image": make_images(3), "prompt": ["a", "b", "c"]}
    data = _prepared(folder, tmp_path, columns)
    means, stds = encode_images(vae, pixels)
    torch.testing.assert_close(data.latents[0], means)
    torch.testing.assert_close(data.latent_stds[0], stds)
    # Without a fingerprint, stored latents are compared with encoded ones: an unscaled one would be far off.
    stored = _prepared(folder, tmp_path, columns | {"latent": list(means.numpy())}, use_generated_latents=True)
    assert torch.equal(stored.latents[0], means)
    with torch.no_grad():
        unscaled = vae.encode(pixels).latent_dist.mean.numpy()
    if scales["scaling_factor"] > 1:
        return  # near enough to be another picture of the same VAE
    with pytest.raises(ValueError, match="--use_generated_latents: expected latents of this model's VAE"):
        _prepared(folder, tmp_path, columns | {"latent": list(unscaled)}, use_generated_latents=True)


def test_the_cache_belongs_to_the_scale(random_sdxl, make_images, tmp_path):
    """Another mean is another file, with the same weights."""
    columns, found = {"image": make_images(2), "prompt": ["a", "b"]}, []
    for name, mean in (("one", [0.0] * 4), ("other", [0.5] * 4)):
        folder = shutil.copytree(random_sdxl, tmp_path / name)
        config = folder / "vae" / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"latents_mean": mean, "latents_std": [1.0] * 4})
        )
        found.append(_prepared(folder, tmp_path, columns).latents)
    torch.testing.assert_close(found[0] - found[1], torch.full_like(found[0], 0.5 * 0.18215))


def test_the_cache_belongs_to_the_empty_prompt(random_sdxl, make_images, tmp_path):
    """The same encoders, once with zeros for the unconditional branch."""
    columns, found = {"image": make_images(2), "prompt": ["a", "b"]}, []
    for zeros in (True, False):
        folder = shutil.copytree(random_sdxl, tmp_path / str(zeros))
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": zeros}))
        found.append(_prepared(folder, tmp_path, columns).prompts["encoder_hidden_states"][-1])
    assert not found[0].any() and found[1].any()


def test_rewards_see_what_generation_shows(model, pixels):
    folder, _, vae = model
    seen = []
    scorer = SimpleNamespace(score=lambda prompts, images: seen.extend(images) or np.zeros(len(images), np.float32))
    components = SDXL.load(ModelSource(str(folder)))
    settings = TrainingSettings(pretrained_model_name_or_path=str(folder), dataset_name="x")
    context = TrainingContext(SPO(), settings, SDXL, components, scorer)
    context._captions = lambda rows: ["a"] * len(rows)
    means = encode_images(vae, pixels)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert context.score(means, torch.arange(3)).tolist() == [0.0] * 3
    shown = ((decode(vae, means) + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    for image, expected in zip(seen, shown, strict=True):
        assert np.abs(np.asarray(image, int) - expected).max() <= 1


def test_decoding_is_cut_where_memory_ends(model, monkeypatch):
    _, _, vae = model
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, calls, own = decode(vae, latents), [], vae.decode
    monkeypatch.setattr("diffusers_craft.models.latents.MAX_DECODE_PIXELS", 2 * 64 * 64)
    monkeypatch.setattr(vae, "decode", lambda part, **options: calls.append(len(part)) or own(part, **options))
    torch.testing.assert_close(decode(vae, latents), whole)
    assert calls == [2, 2, 1]


def test_shapes_and_fingerprints(model):
    folder, scales, vae = model
    assert latent_factor(vae) == 8 and latent_shape(vae, 64) == (4, 8, 8)
    shown = " ".join(f"{name}={value}" for name, value in scales.items())
    assert vae_fingerprint(vae).startswith(f"{shown} encoder=")
    settings = DataSettings(dataset_name="x", resolution=64)
    data = prepare_prompt_data(["a", "a", "b"], SDXL, SDXL.load(ModelSource(str(folder))), settings)
    assert data.latents.shape == (1, 3, 4, 8, 8) and not data.latents.any()
