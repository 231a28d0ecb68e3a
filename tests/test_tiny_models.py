# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The embedded models: small enough to ship, good enough to be improved, judged on held-out captions."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from rebuild_tiny.data import enrich
from rebuild_tiny.pictures import mistake, render, sample_picture, sample_scene
from safetensors import safe_open

from diffusers_craft import GenerationSettings, exact_score, generate_images, load_pipeline, load_reward
from diffusers_craft.scripts import is_tiny, parse_caption
from diffusers_craft.tiny import MODELS, WEIGHTS, model_path, prompt_file, reward_checkpoint
from diffusers_craft.tiny.world import COLORS, SHAPES


SCRIPTS = Path(__file__).parents[1] / "scripts"
SETTINGS = GenerationSettings(num_inference_steps=10, guidance_scale=3.0, batch_size=50)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return prompt_file("tiny-heldout").read_text().splitlines()[:100]


@pytest.fixture(scope="module")
def exact(captions) -> dict[tuple[str, str], float]:
    """(model, kind of caption) -> share of held-out captions that the model's pictures show exactly."""
    rng = np.random.default_rng(0)
    texts = {"plain": captions, "rich": [enrich(caption, rng) for caption in captions]}
    shares = {}
    for model in MODELS:
        pipeline = load_pipeline(model, device="cpu")
        for kind, prompts in texts.items():
            images = generate_images(pipeline, prompts, range(len(prompts)), SETTINGS).images
            shares[model, kind] = float(exact_score(captions, images).mean())
    return shares


def test_all_weights_are_half_precision_and_fit_in_24_megabytes():
    files = {path.resolve() for path in WEIGHTS.rglob("*") if path.is_file()}  # both pipelines share the VAE's file
    assert sum(path.stat().st_size for path in files) <= 24e6
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                dtypes = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}
            assert dtypes <= {"F16", "I64"}, path


@pytest.mark.parametrize("model", MODELS)
def test_plain_diffusers_loads_an_embedded_pipeline_and_draws_with_it(model):
    pipeline = DiffusionPipeline.from_pretrained(model_path(model))
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)


def test_names_of_the_embedded_models():
    assert is_tiny("tiny-sd15") and is_tiny(model_path("tiny-sdxl"))
    assert not is_tiny("org/tiny-sd15") and not is_tiny("outputs/craft")
    assert model_path("org/model") == "org/model"
    assert reward_checkpoint("no_such_reward") is None and reward_checkpoint("tiny-sd15") is None


def test_the_vae_keeps_every_colour_and_shape():
    pipeline = load_pipeline("tiny-sd15", device="cpu")
    rng = np.random.default_rng(1)
    captions = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
    pixels = np.stack([np.asarray(render(sample_scene(parse_caption(text), rng))) for text in captions])
    with torch.no_grad():
        latents = pipeline.vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        decoded = pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample, output_type="pil")
    assert exact_score(captions, decoded).mean() >= 0.9


def test_tiny_sd15_is_good_and_improvable(exact):
    # 30 to 75 % is the aim; three standard errors of 100 captions on either side.
    assert 0.16 <= exact["tiny-sd15", "plain"] <= 0.88


@pytest.mark.parametrize("model", MODELS)
def test_words_of_quality_lead_to_better_pictures(exact, model):
    assert exact[model, "rich"] > exact[model, "plain"]


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore", "aesthetic"])
def test_rewards_prefer_clean_pictures_of_held_out_captions(captions, name):
    reward = load_reward(name, reward_checkpoint(name), device="cpu", batch_size=50)
    rng = np.random.default_rng(2)
    clean = [sample_picture(parse_caption(caption), rng, flawed=False) for caption in captions]
    flawed = [sample_picture(parse_caption(caption), rng, flawed=True) for caption in captions]
    assert (reward.score(captions, clean) > reward.score(captions, flawed)).mean() >= 0.93


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore"])
def test_rewards_prefer_what_the_caption_says(captions, name):
    reward = load_reward(name, reward_checkpoint(name), device="cpu", batch_size=50)
    rng = np.random.default_rng(3)
    scenes = [sample_scene(parse_caption(caption), rng) for caption in captions]
    right = [render(scene) for scene in scenes]
    wrong = [render(mistake(scene, rng)) for scene in scenes]
    kept = exact_score(captions, wrong) == 0  # some mistakes still show their caption
    better = reward.score(captions, right) > reward.score(captions, wrong)
    assert better[kept].mean() >= 0.75


@pytest.mark.parametrize("command", [[str(SCRIPTS / "rebuild_tiny_models.py")], ["-m", "rebuild_tiny.rewards"]])
def test_the_rebuild_starts(command, tmp_path):
    """The models' from any folder, the rewards' from `scripts/`."""
    folder = SCRIPTS if "-m" in command else tmp_path
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent / "src"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *command, "--help"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and "usage:" in result.stdout, result.stderr
